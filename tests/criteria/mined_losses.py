"""The contract of a loss on mined triplets: a subclass gives the loss and its equation."""

import math
from typing import ClassVar

import pytest
import torch

from batchminer import Distance, Random
from tests.criteria.scalars import shuffle, unit_rows
from utilities.structures import References, Triplets

LABELS = [7, 3, 7, 40, 3, 7, 12, 12]  # uneven, a singleton, neither ordered nor contiguous
TRIPLETS = [(0, 2, 1), (2, 5, 3), (5, 0, 6), (1, 4, 0), (4, 1, 7), (6, 7, 3), (7, 6, 1), (0, 5, 1)]
INTRA = [(0, 2, 5), (2, 5, 0), (1, 4, 4)]  # a miner may return negatives of the anchor's class
WHOLE = [
    (a, p, n)
    for a in range(8)
    for p in range(8)
    for n in range(8)
    if a != p and LABELS[a] == LABELS[p] != LABELS[n]
]


class Given(Random):
    """A miner that returns the triplets it was made with; its generator is a real one."""

    def __init__(self, triplets, seed=0):
        super().__init__(seed)
        columns = torch.tensor(triplets, dtype=torch.long).reshape(-1, 3)
        self.triplets = Triplets(*columns.unbind(dim=1))

    def forward(self, embeds, labels, references=None):
        return self.triplets


def batch(n=8, dim=3, seed=0, length=1.0):
    """LABELS and, beyond eight images, one of a class of its own each."""
    embeds = length * unit_rows(n, dim, seed)
    return embeds.requires_grad_(), torch.tensor([*LABELS, *range(50, 42 + n)])


def squared_distance(x, y):
    return math.dist(x, y) ** 2


# Few pairs of many images are compared one by one, most pairs of a small batch all at once.
each_choice = pytest.mark.parametrize(
    ("triplets", "n"),
    [(TRIPLETS, 8), (TRIPLETS, 36), (INTRA, 8), (INTRA, 24), (WHOLE, 8)],
    ids=["mined", "mined of many", "intra", "intra of many", "whole"],
)
REFERENCES = References(unit_rows(6, 3, seed=1), torch.tensor([3, 40, 3, 12, 12, 7]))
AGAINST = [(0, 5, 4), (1, 0, 5), (7, 3, 2), (7, 3, 2)]  # of a batch and REFERENCES, one twice


class MinedLossTests:
    """Tests of a loss on mined triplets.

    Attributes:
        loss: makes the loss, of a miner and hyperparameters.
        equation: the paper's equation in plain numbers, of (embeds, labels, triplets, others) and
            the hyperparameters.
        settings: hyperparameters to test; the gradient is checked with the last.
        hinges: hyperparameters without which only hinges are left.
        length: of the rows.
    """

    loss: staticmethod
    equation: staticmethod
    settings: ClassVar[tuple] = ({},)
    hinges: ClassVar[dict] = {}
    length = 1.0
    within = 1e-9

    def check(self, embeds, labels, triplets, references=None, **setting):
        """Compare the loss with its equation; return the loss and its gradient, which is finite."""
        loss = self.loss(Given(triplets), **setting)(embeds, labels, references)
        (gradient,) = torch.autograd.grad(loss, embeds)
        others = embeds if references is None else references.embeds
        expected = self.equation(
            embeds.tolist(), labels.tolist(), triplets, others.tolist(), **setting
        )
        assert loss.item() == pytest.approx(expected, abs=self.within)
        assert gradient.isfinite().all()
        return loss.item(), gradient

    @each_choice
    def test_equals_the_equation(self, setting, triplets, n):
        for seed in range(3):
            self.check(*batch(n, seed=seed, length=self.length), triplets, **setting)

    def test_equals_the_equation_against_references(self, setting):
        for n in (8, 36):
            self.check(*batch(n, length=self.length), AGAINST, REFERENCES, **setting)

    @pytest.mark.parametrize("references", [None, REFERENCES], ids=["batch", "memory"])
    @each_choice
    def test_gradient(self, triplets, n, references):
        """Within a batch that of all three images of a triplet, else that of the anchor."""
        embeds, labels = batch(n, length=self.length)
        if references is not None:
            triplets = AGAINST[: len(triplets)]
        criterion = self.loss(Given(triplets), **self.settings[-1]).double()
        rest = embeds.detach()[8:]

        def loss(first):
            return criterion(torch.cat([first, rest]), labels, references)

        first = embeds.detach()[:8].requires_grad_()
        assert torch.autograd.gradcheck(loss, (first,))

    def test_batch_order_does_not_matter(self):
        embeds, labels = batch(length=self.length)
        order = shuffle(8)
        place = order.argsort()
        moved = [tuple(place[list(triplet)].tolist()) for triplet in TRIPLETS]
        loss = self.loss(Given(TRIPLETS))(embeds, labels)
        assert torch.allclose(loss, self.loss(Given(moved))(embeds[order], labels[order]))

    def test_the_references_reach_the_miner(self):
        embeds, labels = batch()
        references = References(embeds.detach()[[0, 6]], labels[[0, 6]])
        miner, seen = Distance(0), []
        miner.register_forward_hook(lambda module, given, triplets: seen.append(triplets))
        self.loss(miner)(embeds, labels, references)
        # Image 0 is its own positive and image 6 its negative, and the other way round.
        expected = [[0, 2, 5, 6, 7], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]
        assert [column.tolist() for column in seen[0]] == expected

    @pytest.mark.parametrize("labels", [[0, 0], [0, 1], [2, 2, 2, 2], [5]])
    def test_no_triplet_gives_a_differentiable_zero(self, labels):
        embeds = unit_rows(len(labels)).requires_grad_()
        loss = self.loss(Distance(0), **self.hinges)(embeds, torch.tensor(labels))
        (grad,) = torch.autograd.grad(loss, embeds)
        assert loss.item() == 0
        assert torch.equal(grad, torch.zeros_like(embeds))
        self.check(embeds, torch.tensor(labels), [])

    def test_no_active_triplet_gives_a_differentiable_zero(self):
        embeds = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
        loss = self.loss(Given([(0, 1, 2)]))(embeds, torch.tensor([0, 0, 1]))
        (grad,) = torch.autograd.grad(loss, embeds)
        assert loss.item() == 0
        assert torch.equal(grad, torch.zeros_like(embeds))

    def test_coinciding_images_have_a_loss_and_no_direction(self):
        embeds, labels = batch()
        collapsed = embeds[:1].detach().repeat(8, 1).requires_grad_()
        loss, gradient = self.check(collapsed, labels, TRIPLETS, **self.hinges)
        assert loss > 0.1
        assert torch.allclose(gradient, torch.zeros_like(embeds), atol=1e-7)
        on_its_anchor = torch.eye(2, dtype=torch.float64)[[0, 1, 0]].requires_grad_()
        loss, _ = self.check(on_its_anchor, torch.tensor([0, 0, 1]), [(0, 1, 2)])
        assert loss > 0
