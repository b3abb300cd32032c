"""In one process: the whole is the sum of its parts. Several processes are in test_ranks.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchminer import Distance
from criteria import CLIP, CrossBatchMemory, LanguageDistillation, Margin, MultiSimilarity, SimCLR
from criteria.objective import Objective
from language.guide import LanguageGuide
from language.words import Words
from tests.criteria.caption_losses import Hashes, refuse
from utilities.structures import Batch, Embedding

WEIGHT = 7.5


class Toy(nn.Module):
    """Images (B, 3, 2, 2) to features (B, 5) and embeddings (B, 4)."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh())
        self.embedding = nn.Linear(5, 4)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        features = self.backbone(images)
        return Embedding(self.embedding(features), features, features[:, :, None, None])


def batch(n_views=1, seed=0):
    images = torch.randn(n_views, 6, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    labels, rows = torch.tensor([0, 0, 2, 2, 1, 1]), torch.tensor([9, 4, 7, 0, 5, 2])
    return Batch(tuple(images), labels, rows, ("fox", "sea", "cats", "a", "dog", "tree"))


def guide(level):
    generator = torch.Generator().manual_seed(1)
    embeds = F.normalize(torch.randn(5, 3, generator=generator), dim=1)
    index = torch.randint(5, (3 if level == "class" else 10, 2), generator=generator)
    return LanguageGuide(embeds, Words(tuple("abcde"), index, level))


CRITERIA = {
    "all pairs": MultiSimilarity,
    "mined": lambda: Margin(3, Distance()),
    "memory": lambda: CrossBatchMemory(MultiSimilarity(), 4, size=8, start=0),
    "views": lambda: SimCLR(5, hidden_dim=6, proj_dim=4),
    "captions": lambda: CLIP(5, refuse, Hashes, text="frozen", proj_dim=4),
}


def make(name, *words):
    """The same first weights and draws at each call."""
    torch.manual_seed(0)
    return Objective(Toy(), CRITERIA[name](), *words)


def gradients(loss, objective):
    return torch.autograd.grad(loss, list(objective.parameters()), allow_unused=True)


@pytest.mark.parametrize("name", CRITERIA)
def test_without_words_it_is_the_criterion(name):
    objective, parts = make(name), make(name)
    for step in range(2):
        given = batch(objective.criterion.n_views, step)
        views = [parts.embedder(view) for view in given.views]
        expected = parts.criterion.compute(views, given)
        outcome = objective(given)
        assert torch.equal(outcome.loss, expected)
        assert list(outcome.terms) == ["loss_dml"]
        assert torch.equal(outcome.terms["loss_dml"], expected)
        assert torch.equal(outcome.embeds, views[0].embeds)
        assert torch.equal(outcome.rows, given.rows)
        grads = zip(gradients(outcome.loss, objective), gradients(expected, parts), strict=True)
        for got, wanted in grads:
            assert (got is None) == (wanted is None)
            assert got is None or torch.equal(got, wanted)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("level", ["class", "row"])
def test_words_are_matched_by_what_the_criterion_reads(name, level):
    words, distill = guide(level), LanguageDistillation(temp=0.5)
    objective, parts = make(name, words, distill, WEIGHT), make(name)
    given = batch(objective.criterion.n_views)
    views = [parts.embedder(view) for view in given.views]
    read = views[0].features if name in ("views", "captions") else views[0].embeds
    dml = parts.criterion.compute(views, given)
    match = distill(read, words.similarity(given), given.labels)
    outcome = objective(given)
    assert match > 0
    torch.testing.assert_close(outcome.loss, dml + WEIGHT * match)
    assert list(outcome.terms) == ["loss_dml", "loss_match"]
    torch.testing.assert_close(outcome.terms["loss_dml"], dml.detach())
    torch.testing.assert_close(outcome.terms["loss_match"], match.detach())
    expected = gradients(dml + WEIGHT * match, parts)
    for got, wanted in zip(gradients(outcome.loss, objective), expected, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", CRITERIA)
def test_words_that_are_not_in_force_yet_change_nothing(name):
    objective = make(name, guide("class"), LanguageDistillation(), WEIGHT)
    given = batch(objective.criterion.n_views)
    outcome = objective(given, guided=False)
    assert torch.equal(outcome.loss, make(name)(given).loss)
    assert list(outcome.terms) == ["loss_dml"]


@pytest.mark.parametrize("name", CRITERIA)
def test_each_view_is_embedded_once_and_what_is_told_has_no_graph(name):
    objective = make(name, guide("row"), LanguageDistillation(), WEIGHT)
    outcome = objective(batch(objective.criterion.n_views))
    assert objective.embedder.calls == objective.criterion.n_views
    assert outcome.loss.requires_grad
    assert not any(term.requires_grad for term in outcome.terms.values())
    assert not outcome.embeds.requires_grad


def test_all_that_is_trained_is_among_its_parameters():
    objective = make("mined", guide("class"), LanguageDistillation(), WEIGHT)
    names = {name for name, _ in objective.named_parameters()}
    assert {"embedder.embedding.weight", "criterion.beta"} <= names
    assert not any(name.startswith(("guide", "distill")) for name in names)


def test_words_without_a_distillation_are_refused():
    with pytest.raises(ValueError, match="a guide needs a distillation"):
        Objective(Toy(), MultiSimilarity(), guide("class"))
