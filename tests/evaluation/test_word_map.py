"""The closed form of the map from words to images, against the plain formula and brute force."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation import word_map
from evaluation.word_map import Solver, choose_penalties, class_means, fit


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(n=30, d_text=6, d=4, per_class=3, noise=0.3):
    """Names whose embeddings say, by a linear map and with noise, where their images lie."""
    texts = F.normalize(normal(n, d_text), dim=1)
    labels = torch.arange(n).repeat(per_class)  # (N,)
    centres = texts @ normal(d_text, d, seed=1) + 0.5
    embeds = centres[labels] + noise * normal(len(labels), d, seed=2)
    return texts, F.normalize(embeds, dim=1), labels


def formula(texts, embeds, labels, image_penalty, word_penalty):
    """W = (Tᵀ T + β I)⁻¹ Tᵀ M (Xᵀ X / N + γ I)⁻¹, with β and γ in mean eigenvalues above 0."""
    centred = texts - texts.mean(dim=0)
    means = torch.stack([embeds[labels == c].mean(dim=0) for c in range(len(texts))])
    images = embeds - embeds.mean(dim=0)
    covariance = images.T @ images / len(images)
    beta = word_penalty * centred.square().sum() / torch.linalg.matrix_rank(centred)
    gamma = image_penalty * covariance.trace() / len(covariance)
    left = torch.linalg.inv(centred.T @ centred + beta * torch.eye(texts.shape[1]))
    right = torch.linalg.inv(covariance + gamma * torch.eye(len(covariance)))
    return left @ centred.T @ (means - means.mean(dim=0)) @ right


@pytest.mark.parametrize("shape", [(30, 6), (12, 20)])  # more classes than dimensions, and fewer
@pytest.mark.parametrize("penalties", [(0.1, 1.0), (3.0, 0.03)])
def test_the_map_is_the_formula(shape, penalties):
    texts, embeds, labels = planted(*shape)
    fitted = fit(texts, embeds, labels, penalties)
    expected = formula(texts, embeds, labels, *penalties)
    torch.testing.assert_close(fitted.weight, expected.float(), rtol=1e-4, atol=1e-5)
    new = F.normalize(normal(5, shape[1], seed=3), dim=1)
    queries = F.normalize((new - texts.mean(dim=0)) @ expected, dim=1)
    torch.testing.assert_close(fitted(new.float()), queries.float(), rtol=1e-4, atol=1e-5)
    assert fitted.penalties == penalties


def test_penalties_are_those_that_rank_left_out_classes_best():
    texts, embeds, labels = planted(n=23, noise=1.0)
    order = np.random.default_rng(5).permutation(23)
    scores = {}
    for penalties in product(word_map.IMAGE_PENALTIES, word_map.WORD_PENALTIES):
        total = 0.0
        for fold in np.array_split(order, word_map.FOLDS):
            others = [c for c in order.tolist() if c not in fold]
            kept = torch.tensor([int(label) in others for label in labels])
            renumbered = torch.tensor([others.index(c) for c in labels[kept].tolist()])
            weight = formula(texts[others], embeds[kept], renumbered, *penalties)
            for c in fold.tolist():
                query = (texts[c] - texts[others].mean(dim=0)) @ weight
                found = sorted(
                    ((float(embeds[i] @ query), int(labels[i]) == c)
                     for i in (~kept).nonzero()[:, 0]), reverse=True,
                )  # fmt: skip
                total += 1 / (1 + [hit for _, hit in found].index(True))
        scores[penalties] = total
    best = max(scores.values())
    chosen = choose_penalties(texts, embeds, labels, seed=5)
    assert scores[chosen] == pytest.approx(best, rel=1e-9)
    assert fit(texts, embeds, labels, seed=5).penalties == chosen


def test_similarities_are_those_of_the_weights():
    texts, embeds, labels = planted()
    solver = Solver.of(texts, embeds, labels)
    expected = (texts - texts.mean(dim=0)) @ solver.weight((0.3, 1.0)) @ embeds.T
    torch.testing.assert_close(solver.cosines(texts, embeds)((0.3, 1.0)), expected)


def test_many_classes_choose_penalties_on_some(monkeypatch):
    monkeypatch.setattr(word_map, "MOST", 15)
    texts, embeds, labels = planted(n=40)
    read = set()
    monkeypatch.setattr(Solver, "of", lambda t, e, y, of=Solver.of: read.add(len(t)) or of(t, e, y))
    choose_penalties(texts, embeds, labels, seed=0)
    assert read == {12}  # of 15, less a fold of 3


def test_class_means():
    embeds, labels = normal(6, 2), torch.tensor([1, 0, 1, 2, 0, 1])
    expected = torch.stack([embeds[[1, 4]].mean(0), embeds[[0, 2, 5]].mean(0), embeds[3]])
    torch.testing.assert_close(class_means(embeds, labels, 3), expected)


def test_few_classes_are_refused():
    with pytest.raises(ValueError, match="at least 10 training classes; got 9"):
        fit(*planted(n=9))
