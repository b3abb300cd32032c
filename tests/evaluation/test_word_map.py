"""Ridge regression from words to class means, against brute force."""

import pytest
import torch
import torch.nn.functional as F

from evaluation.word_map import PENALTIES, Fit, fit


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def words_and_means(n=30, d_text=6, d=4, noise=0.1):
    texts = F.normalize(normal(n, d_text), dim=1)
    return texts, texts @ normal(d_text, d, seed=1) + noise * normal(n, d, seed=2) + 2


def ridge(texts, means, penalty):
    """The normal equations, with a column of ones that the penalty leaves alone."""
    design = torch.cat([texts, torch.ones(len(texts), 1, dtype=texts.dtype)], dim=1)
    weights = torch.full((design.shape[1],), penalty, dtype=texts.dtype)
    weights[-1] = 0
    return torch.linalg.solve(design.T @ design + weights.diag(), design.T @ means)


@pytest.mark.parametrize("shape", [(30, 6), (9, 20)])  # more classes than dimensions, and fewer
@pytest.mark.parametrize("penalty", [0.01, 3.0])
def test_the_map_is_ridge_regression(shape, penalty):
    texts, means = words_and_means(*shape)
    solution = ridge(texts, means, penalty)
    fitted = fit(texts, means, [penalty])
    assert fitted.penalty == penalty
    new = F.normalize(normal(5, shape[1], seed=3), dim=1)
    expected = F.normalize(new @ solution[:-1] + solution[-1], dim=1)
    torch.testing.assert_close(fitted(new.float()), expected.float())


@pytest.mark.parametrize("shape", [(12, 6), (9, 20)])
def test_leaving_out_a_class_is_fitting_without_it(shape):
    texts, means = words_and_means(*shape)
    left_out = Fit.of(texts, means).left_out(0.5) + means.mean(dim=0)
    for row in range(len(texts)):
        others = [other for other in range(len(texts)) if other != row]
        solution = ridge(texts[others], means[others], 0.5)
        torch.testing.assert_close(left_out[row], texts[row] @ solution[:-1] + solution[-1])


def test_the_penalty_ranks_left_out_classes_best():
    texts, means = words_and_means(n=40, noise=1.0)
    units = F.normalize(means, dim=1)
    scores = {}
    for penalty in PENALTIES:
        ranks = []
        for row in range(len(texts)):
            others = [other for other in range(len(texts)) if other != row]
            solution = ridge(texts[others], means[others], penalty)
            cosines = units @ (texts[row] @ solution[:-1] + solution[-1])
            ranks.append(1 / int((cosines >= cosines[row]).sum()))
        scores[penalty] = sum(ranks) / len(ranks)
    best = max(scores.values())
    assert fit(texts, means).penalty == max(p for p, s in scores.items() if s > best - 1e-12)


def test_words_that_say_nothing_are_shrunk():
    texts, _ = words_and_means(n=200)
    assert fit(texts, normal(200, 4, seed=9)).penalty >= 1


def test_few_classes_are_refused():
    with pytest.raises(ValueError, match="at least 8 training classes; got 7"):
        fit(*words_and_means(n=7))
