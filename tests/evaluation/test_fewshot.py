"""Episodes in blocks are episodes in a loop; queries are never among the shots."""

import math

import pytest
import torch
from scipy import stats

from evaluation.fewshot import draw_episodes, interval, score_episodes


def points(sizes, d=8, spread=1.0, seed=0):
    """Images of as many classes as ``sizes`` has, around their centres, in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(len(sizes), d, generator=generator)
    return centres[labels] + spread * torch.randn(len(labels), d, generator=generator), labels


def loop(features, episodes):
    """One query at a time, from the definition."""
    accuracies = []
    for rows in episodes.rows.tolist():
        drawn = [features[row] for other in rows for row in other[: episodes.shots]]
        centre = sum(drawn) / len(drawn)
        hits = []
        for way, chosen in enumerate(rows):
            for query in chosen[episodes.shots :]:
                distances = []
                for other in rows:
                    shots = [features[row] - centre for row in other[: episodes.shots]]
                    mean = sum(shot / shot.norm() for shot in shots) / len(shots)
                    point = features[query] - centre
                    distances.append(float((point / point.norm() - mean).square().sum()))
                hits.append(distances.index(min(distances)) == way)
        accuracies.append(sum(hits) / len(hits))
    return torch.tensor(accuracies, dtype=torch.float64)


@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 5, 6), (3, 1, 2), (2, 4, 1)])
def test_equals_a_loop_of_episodes(ways, shots, queries):
    features, labels = points([12, 15, 20, 11, 13, 40], spread=2.0)
    episodes = draw_episodes(labels, ways=ways, shots=shots, queries=queries, episodes=40)
    found = score_episodes(features, episodes)
    assert found.accuracies.equal(loop(features, episodes))
    assert found.accuracy == pytest.approx(float(found.accuracies.mean()))
    assert 0.3 < found.accuracy < 1


def test_blocks_and_a_shift_of_all_features_change_nothing():
    features, labels = points([12] * 6)
    episodes = draw_episodes(labels, episodes=50)
    whole = score_episodes(features, episodes)
    assert score_episodes(features, episodes, block_bytes=1).accuracies.equal(whole.accuracies)
    assert score_episodes(features + 10, episodes).accuracies.equal(whole.accuracies)


@pytest.mark.parametrize("sizes", [(9, 7), (5, 6), (30, 8)])
def test_shots_and_queries_of_two_sets_with_the_same_classes(sizes):
    """Shots are of the first set and queries of the second, in a loop as well."""
    features, labels = points([sum(sizes)] * 7, spread=2.0)
    first = torch.cat([(labels == label).nonzero()[: sizes[0], 0] for label in range(7)])
    second = torch.cat([(labels == label).nonzero()[sizes[0] :, 0] for label in range(7)])
    episodes = draw_episodes(labels[first], labels[second], episodes=60)
    assert (episodes.queries, episodes.n_classes) == (6, 7)
    n = len(first)
    assert (episodes.rows[:, :, :5] < n).all() and (episodes.rows[:, :, 5:] >= n).all()
    both = torch.cat([first, second])
    of = labels[both][episodes.rows]
    assert (of == of[:, :, :1]).all()
    found = score_episodes(features[both], episodes)
    assert found.accuracies.equal(loop(features[both], episodes))


def test_classes_of_one_set_only_take_no_part():
    labels = torch.arange(8).repeat_interleave(6)
    others = torch.arange(2, 9).repeat_interleave(4)
    episodes = draw_episodes(labels, others, episodes=100)
    assert (episodes.queries, episodes.n_classes) == (4, 6)  # 2 to 7
    assert set(torch.cat([labels, others])[episodes.rows].flatten().tolist()) == {*range(2, 8)}
    with pytest.raises(ValueError, match=r"5 classes of 6 images; 3 of 8 classes have as many"):
        draw_episodes(labels, others[12:24], episodes=1)


def test_images_of_an_episode_are_distinct_and_of_their_class():
    _, labels = points([12, 11, 14, 30, 11, 11, 3])
    episodes = draw_episodes(labels, episodes=300)
    assert episodes.rows.shape == (300, 5, 11) and episodes.queries == 6
    for rows in episodes.rows:
        assert len(set(rows.flatten().tolist())) == 55
        of = labels[rows]
        assert (of == of[:, :1]).all() and len(set(of[:, 0].tolist())) == 5
    assert 6 not in labels[episodes.rows]  # three images are not enough


def test_every_image_is_equally_often_a_shot_and_a_query():
    _, labels = points([5, 8, 6, 20])
    episodes = draw_episodes(labels, ways=2, shots=2, queries=2, episodes=40_000)
    shots = episodes.rows[:, :, :2].flatten().bincount(minlength=39).double()
    queries = episodes.rows[:, :, 2:].flatten().bincount(minlength=39).double()
    for label, size in enumerate([5, 8, 6, 20]):
        expected = 40_000 * 2 / 4 * 2 / size
        for counts in (shots, queries):
            error = (counts[labels == label] - expected).abs().max()
            assert error < 5 * math.sqrt(expected)


def test_seeded():
    _, labels = points([12] * 8)
    first = draw_episodes(labels, episodes=20, seed=3).rows
    assert first.equal(draw_episodes(labels, episodes=20, seed=3).rows)
    assert not first.equal(draw_episodes(labels, episodes=20, seed=4).rows)


def test_small_classes_give_fewer_queries_or_stay_out():
    _, labels = points([7, 8, 9, 9, 12, 6, 5])
    episodes = draw_episodes(labels, episodes=200)  # five classes have 5 shots and 2 queries
    assert episodes.queries == 2
    assert set(labels[episodes.rows].flatten().tolist()) == {0, 1, 2, 3, 4}
    assert draw_episodes(labels, ways=2, episodes=5).queries == 4


@pytest.mark.parametrize("sizes", [[5, 5, 5, 5, 5], [20, 20, 20, 20], [20, 20, 20, 20, 5]])
def test_too_few_images_are_refused(sizes):
    _, labels = points(sizes)
    with pytest.raises(ValueError, match="5 ways and 5 shots need 5 classes of 6 images"):
        draw_episodes(labels)


def test_a_collapsed_embedder_is_at_chance():
    _, labels = points([12] * 5)
    found = score_episodes(torch.ones(60, 4), draw_episodes(labels, episodes=10))
    assert found.accuracy == pytest.approx(0.2)


@pytest.mark.parametrize("by", ["classes", "images"])
def test_interval_leaves_out_one_unit_in_turn(by):
    features, labels = points([12] * 8, spread=2.0)
    episodes = draw_episodes(labels, episodes=300)
    accuracies = score_episodes(features, episodes).accuracies
    units = labels[episodes.rows[:, :, 0]] if by == "classes" else episodes.rows.flatten(1)
    without = []
    for unit in sorted({*units.flatten().tolist()}):
        kept = (units != unit).all(dim=1)
        without.append(sum(accuracies[kept].tolist()) / int(kept.sum()))
    n, centre = len(without), sum(without) / len(without)
    error = math.sqrt((n - 1) / n * sum((value - centre) ** 2 for value in without))
    half = stats.t.ppf(0.975, n - 1) * error
    mean = float(accuracies.mean())
    assert interval(accuracies, units) == pytest.approx((mean - half, mean + half))


@pytest.mark.parametrize("n_classes", [6, 8, 16])
def test_interval_covers_the_accuracy_of_all_classes(n_classes):
    """Of 100 sets of classes about 95 or more; intervals over episodes hold it in fewer than 40."""
    options = {"shots": 2, "queries": 2, "ways": 3}
    everything, of = points([4] * 400, d=4)
    drawn = draw_episodes(of, **options, episodes=10_000)
    truth = score_episodes(everything, drawn).accuracy
    held = narrow = 0
    for seed in range(100):
        features, labels = points([4] * n_classes, d=4, seed=seed + 1)
        episodes = draw_episodes(labels, **options, episodes=500, seed=seed)
        found = score_episodes(features, episodes)
        low, high = interval(found.accuracies, labels[episodes.rows[:, :, 0]])
        held += low <= truth <= high
        over_episodes = 1.96 * float(found.accuracies.std()) / len(found.accuracies) ** 0.5
        narrow += abs(found.accuracy - truth) <= over_episodes
    assert held >= 92 and narrow < 40


@pytest.mark.parametrize("n_images", [8, 20])
def test_interval_covers_the_accuracy_on_other_images_of_five_classes(n_images):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 6, generator=generator)

    def images(n):
        labels = torch.arange(5).repeat_interleave(n)
        return centres[labels] + 1.6 * torch.randn(len(labels), 6, generator=generator), labels

    features, labels = images(2000)
    truth = score_episodes(features, draw_episodes(labels, episodes=10_000)).accuracy
    held = narrow = 0
    for seed in range(60):
        (train, train_labels), (test, test_labels) = images(n_images), images(n_images)
        episodes = draw_episodes(train_labels, test_labels, episodes=500, seed=seed)
        found = score_episodes(torch.cat([train, test]), episodes)
        low, high = interval(found.accuracies, episodes.rows.flatten(1))
        held += low <= truth <= high
        over_episodes = 1.96 * float(found.accuracies.std()) / len(found.accuracies) ** 0.5
        narrow += abs(found.accuracy - truth) <= over_episodes
    assert held >= 56 and narrow < 20


def test_more_episodes_of_the_same_classes_say_no_more_about_others():
    features, labels = points([12] * 7, spread=3.0)
    widths = []
    for n in (1000, 20_000):
        episodes = draw_episodes(labels, episodes=n)
        accuracies = score_episodes(features, episodes).accuracies
        low, high = interval(accuracies, labels[episodes.rows[:, :, 0]])
        widths.append(high - low)
    assert widths[1] > 0.6 * widths[0]


def test_what_is_always_drawn_cannot_be_left_out():
    _, labels = points([11] * 5)  # of no more classes and images than an episode takes
    episodes = draw_episodes(labels, episodes=20)
    for units in (labels[episodes.rows[:, :, 0]], episodes.rows.flatten(1)):
        assert all(map(math.isnan, interval(torch.rand(20).double(), units)))


def test_interval_ends_at_0_and_1():
    units = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3], [0, 3], [1, 3]])
    low, high = interval(torch.tensor([1, 1, 1, 0.1, 1, 1]).double(), units)
    assert low < 0.9 and high == 1.0
