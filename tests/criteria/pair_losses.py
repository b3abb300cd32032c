"""What each loss over all pairs of a batch is tested for, and the batches to do it with."""

import pytest
import torch
import torch.nn.functional as F

from utilities.structures import References

LABELS = [
    [7, 3, 7, 50, 3, 7, 11, 3],  # uneven, singletons, unordered, not contiguous
    [5, 2, 9, 9, 2, 5],
    [4, 1, 4, 4, 4, 9],
]


def batch(labels, dim=4, seed=0, length=1.0):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    embeds = F.normalize(embeds, dim=1) * length
    return embeds.requires_grad_(), torch.tensor(labels)


def memory(seed=5):
    embeds, labels = batch([3, 50, 7, 7, 2, 3, 4, 4, 9, 11, 5], seed=seed)
    return References(embeds.detach(), labels)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def pairs_of(embeds, labels, references):
    """Per anchor the rows of its positives and of its negatives, as lists of floats."""
    itself = references is None
    others, other_labels = (embeds, labels) if itself else references
    others = others.tolist()
    for i, row in enumerate(embeds.tolist()):
        same = [k for k in range(len(others)) if other_labels[k] == labels[i]]
        positives = [others[k] for k in same if not (itself and k == i)]
        negatives = [others[k] for k in range(len(others)) if other_labels[k] != labels[i]]
        yield row, positives, negatives


def along_the_sphere(gradient, embeds):
    """Without the part along each unit row, which a normalisation inside the loss takes off."""
    return gradient - (gradient * embeds).sum(dim=1, keepdim=True) * embeds


class PairLossTests:
    """The tests of a loss, in whose file a subclass says which.

    Attributes:
        make: the loss, with its default hyperparameters.
        equation: the same in plain numbers, of (embeds, labels, references).
        length: of the rows; one that is not 1 shows what the loss takes as it is.
        at_one_place: how exactly the two agree where images coincide.
    """

    make: type[torch.nn.Module]
    equation: staticmethod
    length = 1.0
    at_one_place = 1e-10

    def batch(self, labels):
        return batch(labels, length=self.length)

    def assert_equals_the_equation(self, embeds, labels, references=None, *, within=1e-10):
        """And has a finite gradient; returns the loss."""
        loss = self.make()(embeds, labels, references)
        (gradient,) = torch.autograd.grad(loss, embeds)
        expected = self.equation(embeds, labels, references)
        assert loss.item() == pytest.approx(expected, abs=within)
        assert gradient.isfinite().all()
        return loss.item()

    @pytest.mark.parametrize("references", [None, memory()])
    @pytest.mark.parametrize("labels", LABELS)
    def test_equals_the_equation(self, labels, references):
        self.assert_equals_the_equation(*self.batch(labels), references)

    @pytest.mark.parametrize("references", [None, memory()])
    @pytest.mark.parametrize("labels", LABELS)
    def test_gradient(self, labels, references):
        embeds, labels = self.batch(labels)
        criterion = self.make()
        assert torch.autograd.gradcheck(lambda x: criterion(x, labels, references), (embeds,))

    def test_as_its_own_references_a_batch_has_the_self_pairs_too(self):
        """Each image is then a positive of its own."""
        embeds, labels = self.batch(LABELS[0])
        own = References(embeds.detach(), labels)
        loss = self.assert_equals_the_equation(embeds, labels, own, within=self.at_one_place)
        assert abs(loss - self.make()(embeds, labels).item()) > 1e-4

    def test_batch_order_does_not_matter(self):
        embeds, labels = self.batch(LABELS[0])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
        criterion = self.make()
        assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))

    @pytest.mark.parametrize("labels", [[8], [0, 1], [0, 0], [3, 3, 3], [0, 1, 2]])
    @pytest.mark.parametrize("collapsed", [False, True])
    def test_few_images_or_classes_at_one_place_or_apart(self, labels, collapsed):
        """The equation's sums may be empty."""
        embeds, labels = self.batch(labels)
        if collapsed:
            embeds = embeds[:1].detach().repeat(len(labels), 1).requires_grad_()
        within = self.at_one_place if collapsed else 1e-10
        self.assert_equals_the_equation(embeds, labels, within=within)

    def test_an_anchor_without_any_pair_among_the_references_is_no_trouble(self):
        embeds, labels = self.batch([0, 1, 2])
        references = References(embeds.detach()[:1], torch.tensor([9]))
        self.assert_equals_the_equation(embeds, labels, references)
