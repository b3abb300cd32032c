"""Episodes in blocks are episodes in a loop; queries are never among the shots."""

import math

import pytest
import torch

from evaluation.fewshot import draw_episodes, interval, score_episodes


def points(sizes, d=8, spread=1.0, seed=0):
    """Images of as many classes as ``sizes`` has, around their centres, in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(len(sizes), d, generator=generator)
    return centres[labels] + spread * torch.randn(len(labels), d, generator=generator), labels


def loop(features, labels, episodes, centre):
    """One query at a time, from the definition."""
    accuracies = []
    for rows in episodes.rows.tolist():
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
    centre = torch.randn(8, generator=torch.Generator().manual_seed(5))
    found = score_episodes(features, episodes, centre=centre)
    assert found.accuracies.equal(loop(features, labels, episodes, centre))
    assert found.accuracy == pytest.approx(float(found.accuracies.mean()))
    assert 0.3 < found.accuracy < 1


def test_blocks_change_nothing_and_the_centre_is_the_mean_unless_given():
    features, labels = points([12] * 6)
    episodes = draw_episodes(labels, episodes=50)
    whole = score_episodes(features, episodes)
    assert score_episodes(features, episodes, block_bytes=1).accuracies.equal(whole.accuracies)
    given = score_episodes(features + 100, episodes, centre=features.mean(dim=0) + 100)
    assert given.accuracies.equal(whole.accuracies)
    off = score_episodes(features, episodes, centre=features.mean(dim=0) + 100)
    assert off.accuracy < whole.accuracy


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


def test_interval_is_that_of_a_mean():
    values = [0.2, 0.4, 0.9, 0.5]
    mean = sum(values) / 4
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
    low, high = interval(torch.tensor(values, dtype=torch.float64))
    assert low == pytest.approx(mean - 1.96 * deviation / 2)
    assert high == pytest.approx(mean + 1.96 * deviation / 2)
    assert interval(torch.tensor([0.7], dtype=torch.float64)) == pytest.approx((0.7, 0.7))
