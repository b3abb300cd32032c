import io
import math

import pytest
import torch
import torch.nn.functional as F

from batchminer import Parametric, parametric
from batchminer.parametric import FACTORS, FLOOR, kmeans, nmi, validation_scores
from criteria import Triplet
from metrics import clustering
from tests.batchminer.mining import around, assert_drawn_with, normalised, places_drawn
from utilities import checkpoint


def miner_with(probabilities, **kwargs):
    miner = Parametric(0, bins=len(probabilities), **kwargs)
    miner.probabilities.copy_(torch.tensor(probabilities))
    return miner


def validation(generator_seed=0, classes=8, each=8, dim=16):
    generator = torch.Generator().manual_seed(generator_seed)
    labels = torch.arange(classes).repeat_interleave(each) * 3  # not contiguous
    centres = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)[labels // 3]
    return centres, torch.randn(len(labels), dim, generator=generator), labels


# --------------------------------------------------------------------------------------------------
# Draws
# --------------------------------------------------------------------------------------------------
def test_bins_are_drawn_with_their_probabilities_however_crowded():
    # Bins [0.4, 0.6), [0.6, 0.8), [0.8, 1.0), [1.0, 1.2) hold 1, 3, 0 and 2 negatives.
    points = around([0.5, 0.62, 0.7, 0.78, 1.05, 1.15, 0.3, 1.3, 2.0])
    miner = miner_with([0.5, 0.2, 0.2, 0.1], lower=0.4, upper=1.2)
    weights = [0.5, *[0.2 / 3] * 3, *[0.1 / 2] * 2]
    assert_drawn_with(normalised(dict(enumerate(weights))), places_drawn(miner, *points))


def test_distances_are_those_on_the_unit_sphere():
    embeds, labels = around([0.5, 0.7, 1.1])
    lengths = torch.linspace(0.1, 30, len(labels))[:, None]
    one, two = (miner_with([0.7, 0.3], lower=0.4, upper=0.8) for _ in range(2))
    expected = one(embeds, labels).negatives
    assert torch.equal(expected, two(lengths * embeds, labels).negatives)


def test_an_anchor_without_negatives_in_the_bins_draws_from_all():
    drawn = places_drawn(Parametric(0), *around([0.05, 1.45, 1.7, 2.0]))
    assert_drawn_with(dict.fromkeys(range(4), 0.25), drawn)


@pytest.mark.parametrize(("init", "shares"), [("low", [0.9991, 0.0009]), ("uniform", [0.5, 0.5])])
def test_before_the_first_adaptation_it_draws_from_the_initial_distribution(init, shares):
    miner = Parametric(0, init=init)
    assert_drawn_with(dict(enumerate(shares)), places_drawn(miner, *around([0.5, 1.0])))
    assert miner.probabilities.sum().item() == pytest.approx(1)
    inner = (miner.centres() >= 0.3) & (miner.centres() <= 0.7)
    assert miner.probabilities[inner].sum() > (0.99 if init == "low" else 0.25)


def test_an_initial_range_that_holds_no_bin_leaves_all_bins_alike():
    assert Parametric(0, lower=0.8).probabilities.tolist() == pytest.approx([1 / 30] * 30)


# --------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------
def test_recall_and_distances_equal_scalar_loops():
    centres, noise, labels = validation(1)
    labels[-1] = 100  # alone in its class: no query, but a neighbour
    embeds = (2 * (centres + noise / 2)).double()
    units = (embeds / embeds.norm(dim=1, keepdim=True)).tolist()
    hits, intra, inter = [], [], []
    for i, a in enumerate(units):
        distances = [math.dist(a, b) if j != i else math.inf for j, b in enumerate(units)]
        nearest = min(range(len(units)), key=distances.__getitem__)
        if (labels == labels[i]).sum() > 1:
            hits.append(float(labels[nearest] == labels[i]))
        for j, d in enumerate(distances):
            if j != i:
                (intra if labels[i] == labels[j] else inter).append(d)
    recall, _, within, between = validation_scores(embeds, labels, 0)
    assert 0.1 < recall < 1
    assert recall == pytest.approx(sum(hits) / len(hits))
    assert within == pytest.approx(sum(intra) / len(intra), rel=1e-5)
    assert between == pytest.approx(sum(inter) / len(inter), rel=1e-5)


def test_a_query_is_left_out_by_place_and_its_duplicate_counts():
    embeds = torch.eye(4)[[0, 0, 1, 1]]
    assert validation_scores(embeds, torch.tensor([0, 0, 1, 1]), 0)[0] == 1
    assert validation_scores(embeds, torch.tensor([0, 1, 0, 1]), 0)[0] == 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),  # another naming
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.0),  # independent
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),
        # joint 1/2, 1/4, 1/4: I = h(3/4) - h(1/2) / 2 over the mean of ln 2 and h(3/4)
        ([0, 0, 1, 1], [0, 0, 0, 1], 0.34371),
    ],
)
def test_nmi_of_hand_worked_labellings(a, b, expected):
    assert nmi(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected, abs=1e-5)


def test_nmi_equals_that_of_the_metrics():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(7, (2, 60), generator=generator)
    assert nmi(a, b).item() == pytest.approx(clustering.nmi(a, b), abs=1e-6)


def test_kmeans_improves_on_its_starts_and_repeats_itself():
    centres, noise, labels = validation(2)
    embeds = F.normalize(centres + noise / 8, dim=1)
    classes = labels // 3

    def agreement(steps):
        return sum(float(nmi(kmeans(embeds, 8, seed, steps), classes)) for seed in range(5))

    assert agreement(10) > agreement(0) + 0.1
    assert torch.equal(kmeans(embeds, 8, 0), kmeans(embeds, 8, 0))


# --------------------------------------------------------------------------------------------------
# Adaptation
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "embeds",
    [torch.eye(4)[[0, 0, 0, 0]], torch.zeros(4, 4), torch.eye(4) * torch.nan, torch.eye(4) / 0],
    ids=["collapsed", "zero", "nan", "infinite"],
)
def test_degenerate_embeddings_are_scored(embeds):
    miner, labels = Parametric(0), torch.tensor([0, 0, 1, 1])
    for _ in range(3):
        assert all(math.isfinite(x) for x in miner.adapt(embeds, labels).values())
    assert miner.probabilities.isfinite().all()


def test_reward_is_the_sign_of_the_change():
    centres, noise, labels = validation()
    miner = Parametric(0)
    rewards = [
        miner.adapt(centres + spread * noise, labels)["reward"]
        for spread in (0.5, 0.3, 0.3, 1.0, 0.0, 0.3)
    ]
    assert rewards == [0, 1, 0, -1, 1, -1]


def test_recall_and_nmi_make_the_reward_and_distances_do_not(monkeypatch):
    scores = iter([[0.5, 0.5, 1, 1], [0.4, 0.7, 1, 1], [0.6, 0.4, 1, 1], [0.6, 0.4, 0, 2]])
    monkeypatch.setattr(parametric, "validation_scores", lambda *_: next(scores))
    miner = Parametric(0)
    embeds, labels = torch.eye(2), torch.arange(2)
    assert [miner.adapt(embeds, labels)["reward"] for _ in range(4)] == [0, 1, -1, 0]


def test_an_adaptation_multiplies_each_bin_by_one_of_the_factors():
    centres, _, labels = validation()
    miner = Parametric(0, init="uniform")
    before = miner.probabilities.clone()
    logged = miner.adapt(centres, labels)
    factors = torch.tensor(FACTORS)[miner._policy.decisions[-1].actions]
    assert set(factors.tolist()) == set(torch.tensor(FACTORS).tolist())
    expected = before * factors / (before * factors).sum()
    assert miner.probabilities.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert miner.probabilities.sum().item() == pytest.approx(1)
    assert logged["entropy"] == pytest.approx(math.log(3))  # nothing is learned yet
    assert logged["mean_distance"] == pytest.approx(
        sum(p * (0.1 + (k + 0.5) * 1.3 / 30) for k, p in enumerate(miner.probabilities.tolist())),
        rel=1e-4,
    )


def test_no_bin_is_lost_for_good(monkeypatch):
    miner = Parametric(0, bins=4)
    factors = torch.tensor([0.8, 0.8, 1.25, 1.25])
    monkeypatch.setattr(miner._policy, "act", lambda _: (factors, 0.0))
    monkeypatch.setattr(miner._policy, "learn", lambda _: None)
    monkeypatch.setattr(parametric, "validation_scores", lambda *_: [0.5, 0.5, 1, 1])
    for _ in range(200):
        miner.adapt(torch.eye(2), torch.arange(2))
    assert miner.probabilities.min() > 0.99 * FLOOR
    factors = factors.flip(0)
    for _ in range(40):
        miner.adapt(torch.eye(2), torch.arange(2))
    assert miner.probabilities[:2].sum() > 0.99


TARGET = slice(20, 26)  # of the bins, around distance 1.1


def trained(seed, lr, steps=120):
    """What the policy makes of a world in which negatives of the target bins separate classes."""
    centres, noise, labels = validation()
    miner = Parametric(seed, lr=lr, init="uniform")
    for _ in range(steps):
        share = miner.probabilities[TARGET].sum()
        logged = miner.adapt((0.5 + share) * centres + noise / 3, labels)
    return miner.probabilities[TARGET].sum().item(), logged["entropy"]


def test_the_policy_learns_which_distribution_is_better():
    learned, entropy = trained(0, lr=1e-3)
    control, undecided = trained(0, lr=0.0)  # a random walk from 6 of 30 bins
    assert learned > 0.9
    assert control < 0.5
    assert entropy < 1
    assert undecided == pytest.approx(math.log(3))


def test_a_reward_makes_its_actions_likelier_and_a_punishment_rarer():
    miner = Parametric(0)
    centres, _, labels = validation()
    for _ in range(2):
        miner.adapt(centres, labels)  # two decisions, equal scores
    policy = miner._policy
    for _ in range(3):  # of one decision with reward 0 and one with -1
        policy.learn(-1.0)
    states = torch.stack([decision.state for decision in policy.decisions])
    log_probs = policy.network(states).log_softmax(dim=2)
    for now, decision in zip(log_probs, policy.decisions, strict=True):
        change = now.gather(1, decision.actions[:, None]).squeeze(1) - decision.log_probs
        differs = policy.decisions[0].actions != policy.decisions[1].actions
        assert differs.any()
        sign = 1 if decision.reward == 0 else -1  # against the mean of both
        assert (sign * change[differs] > 0).all()


def test_equal_rewards_teach_nothing():
    miner = Parametric(0)
    for _ in range(4):
        logged = miner.adapt(torch.eye(1), torch.tensor([5]))  # one image: scores never change
    assert logged["reward"] == logged["recall@1"] == 0
    assert logged["entropy"] == pytest.approx(math.log(3), abs=1e-6)


def test_one_class_and_singletons_are_scored():
    noise = validation()[1]
    for labels in (torch.zeros(len(noise)).long(), torch.arange(len(noise))):
        logged = Parametric(0).adapt(noise, labels)
        assert all(math.isfinite(x) for x in logged.values())
        assert logged["recall@1"] == (0 if labels[-1] else 1)


def test_an_adaptation_follows_the_seed_alone():
    """Neither grad mode nor autocast matters, and the global generator is left alone."""
    before = torch.get_rng_state()
    (one, two), other = (Parametric(1), Parametric(1)), Parametric(2)
    centres, noise, labels = validation()
    for spread in (1.0, 0.3, 0.5, 0.2):
        embeds = centres + spread * noise
        plain = one.adapt(embeds, labels)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert two.adapt(embeds, labels) == plain
        other.adapt(embeds, labels)
    assert torch.equal(one.probabilities, two.probabilities)
    assert not torch.equal(one.probabilities, other.probabilities)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("embeds", "labels"),
    [((0, 4), (0,)), ((3, 4), (2,)), ((3,), (3,))],
)
def test_adapt_refuses_what_is_no_set_of_images(embeds, labels):
    with pytest.raises(ValueError, match=r"embeds \(M, D\) and labels \(M,\) of M >= 1"):
        Parametric(0).adapt(torch.zeros(embeds), torch.zeros(labels).long())


# --------------------------------------------------------------------------------------------------
# State
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("before", [0, 5, 40])
def test_a_restored_criterion_goes_on_bit_by_bit(before, tmp_path):
    centres, noise, labels = validation()
    spreads = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()

    def step(criterion, spread):
        logged = criterion.miner.adapt(centres + spread * noise, labels)
        return logged, criterion(centres + noise, labels).item()

    one = Triplet(Parametric(1))
    for spread in spreads[:before]:
        step(one, spread)
    checkpoint.save(tmp_path / "last.pt", {"criterion": one.state_dict()})
    two = Triplet(Parametric(7))
    for spread in spreads[:3]:
        step(two, spread)  # all of it is undone
    two.miner.seed = 1  # decides the first draw and the start of k-means
    two.load_state_dict(checkpoint.load(tmp_path / "last.pt")["criterion"])
    for spread in spreads[40:46]:
        assert step(one, spread) == step(two, spread)
    assert torch.equal(one.miner.probabilities, two.miner.probabilities)


def test_a_state_in_memory_is_not_changed_by_who_restored_it():
    centres, noise, labels = validation()
    one = Parametric(0)
    for spread in (1.0, 0.3, 0.5):
        one.adapt(centres + spread * noise, labels)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    two = Parametric(0)
    two.load_state_dict(one.state_dict())
    for spread in (0.2, 0.9):
        two.adapt(centres + spread * noise, labels)
    file.seek(0)
    saved = Parametric(0)
    saved.load_state_dict(torch.load(file, weights_only=True))
    for spread in (0.1, 0.6):
        embeds = centres + spread * noise
        assert one.adapt(embeds, labels) == saved.adapt(embeds, labels)
    assert torch.equal(one.probabilities, saved.probabilities)


def test_a_criterion_has_none_of_the_policys_parameters():
    criterion = Triplet(Parametric(0))
    assert not list(criterion.parameters())
    assert criterion.param_groups(1e-5) == []
    assert criterion.miner.adapt_every == 30
    weights = criterion.miner._policy.network[0].weight
    criterion.to(torch.float64).to("meta")
    assert (weights.dtype, weights.device.type) == (torch.float32, "cpu")
