"""Rank correlation, visual places and chance, against brute force; planted signal and noise."""

import numpy as np
import pytest
from scipy.stats import kstest, rankdata, spearmanr

from language import predicts_looks
from language.predicts_looks import (
    FEWEST,
    image_similarities,
    jackknife_error,
    looks,
    nearest_other,
    p_value,
    partners,
    permutations,
    predict,
)


def sims(n, seed, dim=6, decimals=None):
    """Cosines of random vectors; rounded ones have ties."""
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = rows @ rows.T
    return found if decimals is None else found.round(decimals)


def pairs(table):
    return table[np.triu_indices(len(table), 1)]


@pytest.mark.parametrize("decimals", [None, 1])
def test_the_correlation_is_spearmans_over_pairs_and_chance_that_of_permuted_words(decimals):
    words, images = sims(9, 0, decimals=decimals), sims(9, 1, decimals=decimals)
    orders = permutations(9, 7, seed=3)
    found = predict(words, looks(images), orders)
    assert found.correlation == pytest.approx(spearmanr(pairs(words), pairs(images))[0], abs=1e-6)
    for value, order in zip(found.chance, orders, strict=True):
        permuted = [[words[order[i], order[j]] for j in range(9)] for i in range(9)]
        wanted = spearmanr(pairs(np.array(permuted)), pairs(images))[0]
        assert value == pytest.approx(wanted, abs=1e-6)
    assert found.excess == pytest.approx(found.correlation - found.chance.mean())


def test_the_place_of_the_nearest_word_is_counted_one_by_one():
    words, images = sims(8, 0), sims(8, 1, decimals=1)  # images have ties
    orders = permutations(8, 5, seed=0)
    found = predict(words, looks(images), orders)

    def place(table, item):
        others = [other for other in range(8) if other != item]
        near = max(others, key=lambda other: table[item, other])
        more = sum(images[item, other] > images[item, near] for other in others)
        same = sum(images[item, other] == images[item, near] for other in others)
        return near, more + (same + 1) / 2

    wanted = [place(words, item) for item in range(8)]
    assert [*zip(found.nearest.tolist(), found.places.tolist(), strict=True)] == wanted
    assert found.place == np.median([where for _, where in wanted])
    for median, order in zip(found.chance_places, orders, strict=True):
        permuted = words[np.ix_(order, order)]
        assert median == np.median([place(permuted, item)[1] for item in range(8)])


def test_of_equally_near_words_a_random_one_is_nearest():
    table = np.ones((6, 6))
    table[0, 3] = table[3, 0] = 2
    drawn = [nearest_other(table, np.random.default_rng(seed)) for seed in range(60)]
    assert {int(near[0]) for near in drawn} == {3}
    assert {int(near[5]) for near in drawn} == {0, 1, 2, 3, 4}


def test_the_correlation_without_each_item_is_that_of_the_other_pairs():
    words, images = sims(7, 0), sims(7, 1)
    found = predict(words, looks(images), permutations(7, 2, seed=0))
    above = np.triu_indices(7, 1)
    x, y = rankdata(pairs(words)), rankdata(pairs(images))  # ranked once, with all items
    for item in range(7):
        others = (above[0] != item) & (above[1] != item)
        assert found.without[item] == pytest.approx(np.corrcoef(x[others], y[others])[0, 1])
    assert found.error == pytest.approx(jackknife_error(found.without))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=11)
    without = np.array([np.delete(values, place).mean() for place in range(11)])
    assert jackknife_error(without) == pytest.approx(values.std(ddof=1) / np.sqrt(11))


def test_planted_signal_is_found_and_grows_with_its_share():
    images = sims(40, 0)
    orders = permutations(40, 99, seed=0)
    found = [
        predict(share * images + (1 - share) * sims(40, 1), looks(images), orders)
        for share in (0, 0.3, 0.6, 1)
    ]
    assert found[3].correlation == pytest.approx(1, abs=1e-5) and found[3].place == 1
    assert np.all(np.diff([one.correlation for one in found]) > 0.1)
    assert p_value(found[3:], 0) == p_value(found[1:2], 0) == 0.01
    assert p_value(found[:1], 0) > 0.05
    assert 15 < found[0].chance_places.mean() < 25


def test_p_of_noise_is_uniform():
    values = []
    for seed in range(100):
        orders = permutations(8, 19, seed)
        found = predict(sims(8, [seed, 0]), looks(sims(8, [seed, 1])), orders)
        values.append(p_value([found], 0))
    assert kstest(values, "uniform").pvalue > 0.01


def test_p_accounts_for_the_choice_among_many_words():
    """The best of twelve that say nothing would be "significant" by itself most of the time."""
    alone, corrected = [], []
    for seed in range(40):
        seen, orders = looks(sims(8, [seed, 0])), permutations(8, 19, seed)
        found = [predict(sims(8, [seed, 1, number]), seen, orders) for number in range(12)]
        best = max(range(12), key=lambda place: found[place].excess)
        alone.append(p_value(found[best : best + 1], 0))
        corrected.append(p_value(found, best))
    assert np.mean(np.array(alone) <= 0.05) > 0.2
    assert kstest(corrected, "uniform").pvalue > 0.01


def test_words_that_are_all_alike_predict_nothing():
    found = predict(np.ones((6, 6)), looks(sims(6, 0)), permutations(6, 9, seed=0))
    assert found.correlation == 0 and not found.chance.any() and found.error == 0
    assert p_value([found], 0) == 1


def test_image_similarities_are_cosines_of_centred_class_means():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(9, 4)) + 3, np.array([0, 1, 2, 0, 1, 2, 2, 2, 0])
    unit = [row / np.sqrt((row**2).sum()) for row in features]
    means = [np.mean([unit[i] for i in range(9) if labels[i] == c], axis=0) for c in range(3)]
    means = [mean - np.mean(means, axis=0) for mean in means]
    wanted = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in means] for a in means]
    np.testing.assert_allclose(image_similarities(features, labels), wanted)
    scaled = features * rng.uniform(0.5, 2, size=(9, 1))
    np.testing.assert_allclose(image_similarities(scaled, labels), wanted)


@pytest.mark.parametrize("block", [3, 100])
def test_partners_are_those_of_a_scalar_loop(block, monkeypatch):
    monkeypatch.setattr(predicts_looks, "BLOCK", block)
    rng = np.random.default_rng(0)
    words, features = rng.normal(size=(11, 5)), rng.normal(size=(11, 4)) + 2
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    found = partners(words, features)
    seen = image_similarities(features, np.arange(11))
    for item in range(11):
        others = [other for other in range(11) if other != item]
        near = max(others, key=lambda other: words[item] @ words[other])
        assert found.nearest[item] == near
        assert found.cosines[item] == pytest.approx(words[item] @ words[near])
        more = sum(seen[item, other] > seen[item, near] for other in others)
        assert found.places[item] == more + 1
    threshold = float(np.median(found.cosines))
    kept, near = found.above(threshold)
    rows = [row for row in range(11) if found.cosines[row] >= threshold]
    assert kept == len(rows) / 11
    assert near == np.mean([found.places[row] <= 1 for row in rows])  # 1 % of 10, at least one
    assert found.above(2)[0] == 0 and np.isnan(found.above(2)[1])


def test_too_few_items_are_refused():
    with pytest.raises(ValueError, match=f"over {FEWEST} or more items; got 4"):
        looks(np.eye(4))
    assert predicts_looks.looks(sims(FEWEST, 0)).pairs.shape == (FEWEST, FEWEST)
