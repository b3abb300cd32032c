"""The contract of a loss over all pairs of a batch: a subclass gives the loss and its equation."""

from typing import ClassVar

import pytest
import torch

from tests.criteria.scalars import shuffle, unit_rows
from utilities.structures import References

LABELS = [
    [7, 3, 7, 50, 3, 7, 11, 3],  # uneven, singletons, unordered, not contiguous
    [5, 2, 9, 9, 2, 5],
    [4, 1, 4, 4, 4, 9],
]


def batch(labels, dim=4, seed=0, length=1.0):
    embeds = length * unit_rows(len(labels), dim, seed)
    return embeds.requires_grad_(), torch.tensor(labels)


def memory(seed=5):
    embeds, labels = batch([3, 50, 7, 7, 2, 3, 4, 4, 9, 11, 5], seed=seed)
    return References(embeds.detach(), labels)


def pairs_of(embeds, labels, references):
    """Yield each anchor, its positives and its negatives, as lists of floats."""
    itself = references is None
    others, other_labels = (embeds, labels) if itself else references
    others = others.tolist()
    for i, row in enumerate(embeds.tolist()):
        same = [k for k in range(len(others)) if other_labels[k] == labels[i]]
        positives = [others[k] for k in same if not (itself and k == i)]
        negatives = [others[k] for k in range(len(others)) if other_labels[k] != labels[i]]
        yield row, positives, negatives


each_batch = pytest.mark.parametrize("labels", LABELS, ids=["uneven", "pairs", "one large class"])
each_way = pytest.mark.parametrize("references", [None, memory()], ids=["batch", "memory"])


class PairLossTests:
    """Tests of a loss over pairs.

    Attributes:
        loss: the class.
        equation: the paper's equation in plain numbers, of (embeds, labels, references) and the
            loss's hyperparameters; 0 where its sums are empty.
        settings: hyperparameters to test; the gradient is checked with the last.
        length: of the rows; a length other than 1 shows where the loss normalises.
        at_one_place: absolute tolerance where images coincide.
        extreme: hyperparameters, and the length of rows, at which careless exponentials overflow.
    """

    loss: type[torch.nn.Module]
    equation: staticmethod
    settings: ClassVar[tuple] = ({},)
    length = 1.0
    at_one_place = 1e-10
    extreme: tuple[dict, float]

    def batch(self, labels):
        return batch(labels, length=self.length)

    def check(self, embeds, labels, references=None, within=1e-10, **setting):
        """Compare the loss with its equation; return the loss and its gradient, which is finite."""
        loss = self.loss(**setting)(embeds, labels, references)
        (gradient,) = torch.autograd.grad(loss, embeds)
        expected = self.equation(embeds, labels, references, **setting)
        assert loss.item() == pytest.approx(expected, abs=within)
        assert gradient.isfinite().all()
        return loss.item(), gradient

    @each_way
    @each_batch
    def test_equals_the_equation(self, setting, labels, references):
        self.check(*self.batch(labels), references, **setting)

    @each_way
    @each_batch
    def test_gradient(self, labels, references):
        embeds, labels = self.batch(labels)
        criterion = self.loss(**self.settings[-1])
        assert torch.autograd.gradcheck(lambda x: criterion(x, labels, references), (embeds,))

    def test_a_batch_as_its_own_references_has_the_self_pairs_too(self):
        """Each image is then a positive of its own, and close to one of another class."""
        embeds = torch.tensor([[1.0, 0.0], [0.995, 0.0998749]], dtype=torch.float64)
        labels = torch.tensor([0, 1])
        own = References(embeds.clone(), labels)
        loss, _ = self.check(embeds.requires_grad_(), labels, own, within=self.at_one_place)
        assert loss > self.loss()(embeds, labels).item() + 0.1
        embeds, labels = self.batch(LABELS[0])
        own = References(embeds.detach(), labels)
        self.check(embeds, labels, own, within=self.at_one_place)

    def test_batch_order_does_not_matter(self):
        embeds, labels = self.batch(LABELS[0])
        order, criterion = shuffle(len(labels)), self.loss()
        assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))

    @pytest.mark.parametrize("labels", [[8], [0, 1], [0, 0], [3, 3, 3], [0, 1, 2], [0, 0, 1, 1]])
    @pytest.mark.parametrize("collapsed", [False, True])
    def test_few_images_or_classes_at_one_place_or_apart(self, labels, collapsed):
        """The equation's sums may be empty."""
        embeds, labels = self.batch(labels)
        if collapsed:
            embeds = embeds[:1].detach().repeat(len(labels), 1).requires_grad_()
        self.check(embeds, labels, within=self.at_one_place if collapsed else 1e-10)

    def test_anchors_without_any_positive_or_negative_among_the_references(self):
        embeds, labels = self.batch([0, 1, 2])
        for others in ([9], [0]):
            self.check(embeds, labels, References(embeds.detach()[:1], torch.tensor(others)))

    def test_extremes_do_not_overflow(self):
        setting, length = self.extreme
        embeds, labels = batch(LABELS[0], length=length)
        embeds = embeds.detach().float().requires_grad_()
        loss = self.loss(**setting)(embeds, labels)
        (gradient,) = torch.autograd.grad(loss, embeds)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
