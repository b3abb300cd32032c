import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import NPairsLoss

from criteria.npair import NPair
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


def oracle(embeds, labels, references=None, l2=0.005):
    """The paper's equation, one triplet at a time, over all ordered positive pairs."""
    losses = []
    for x, positives, negatives in pairs_of(embeds, labels, references):
        for p in positives:
            total = sum(math.exp(dot(x, n) - dot(x, p)) for n in negatives)
            losses.append(math.log(1 + total))
    squares = [dot(x, x) for x in embeds.tolist()]
    return sum(losses) / max(len(losses), 1) + l2 * sum(squares) / len(squares)


@pytest.mark.parametrize("labels", LABELS)
def test_equals_the_equation(labels):
    embeds, labels = batch(labels, length=1.5)
    assert NPair()(embeds, labels).item() == pytest.approx(oracle(embeds, labels), abs=1e-10)


@pytest.mark.parametrize("labels", LABELS)
def test_against_references_equals_the_equation(labels):
    embeds, labels = batch(labels, length=1.5)
    loss = NPair()(embeds, labels, memory())
    assert loss.item() == pytest.approx(oracle(embeds, labels, memory()), abs=1e-10)


def test_as_its_own_references_a_batch_has_the_self_pairs_too():
    """Each image is then a positive of its own."""
    embeds, labels = batch(LABELS[0], length=1.5)
    own = References(embeds.detach(), labels)
    loss = NPair()(embeds, labels, own)
    assert loss.item() == pytest.approx(oracle(embeds, labels, own), abs=1e-10)
    assert abs(loss.item() - NPair()(embeds, labels).item()) > 1e-4


def test_length_is_regularised_by_its_weight():
    embeds, labels = batch(LABELS[0], length=3.0)
    loss = NPair(l2=0.5)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, l2=0.5), abs=1e-10)
    assert loss.item() - NPair(l2=0.0)(embeds, labels).item() == pytest.approx(0.5 * 9)


@pytest.mark.parametrize("references", [None, memory()])
@pytest.mark.parametrize("labels", LABELS)
def test_gradient(labels, references):
    embeds, labels = batch(labels, length=1.5)
    criterion = NPair()
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels, references), (embeds,))


def test_batch_order_does_not_matter():
    embeds, labels = batch(LABELS[0])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    criterion = NPair()
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


@pytest.mark.parametrize("labels", [[8], [0, 1], [0, 0], [3, 3, 3], [0, 1, 2]])
@pytest.mark.parametrize("collapsed", [False, True])
def test_few_images_or_classes_at_one_place_or_apart(labels, collapsed):
    """Equals the equation, whose sums may be empty, with a finite gradient."""
    embeds, labels = batch(labels)
    if collapsed:
        embeds = embeds[:1].detach().repeat(len(labels), 1).requires_grad_()
    loss = NPair()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels), abs=1e-10)
    assert grad.isfinite().all()


def test_an_anchor_without_any_pair_among_the_references_is_no_trouble():
    embeds, labels = batch([0, 1, 2])
    references = References(embeds.detach()[:1], torch.tensor([9]))
    loss = NPair()(embeds, labels, references)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(oracle(embeds, labels, references), abs=1e-10)
    assert grad.isfinite().all()


def test_equals_pytorch_metric_learning():
    """Coincides for two images per class where the anchors' negatives are the second images alone:
    the batch is the first images, the references are the second ones."""
    first, labels = batch([4, 0, 9, 2], length=3.0)
    second, _ = batch([4, 0, 9, 2], seed=1, length=3.0)
    distance = DotProductSimilarity(normalize_embeddings=False)
    loss = NPairsLoss(distance=distance)
    theirs = loss(torch.cat([first, second]), labels.repeat(2), pairs_to(first))
    ours = NPair(l2=0.0)(first, labels, References(second.detach(), labels))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    (their_grad,) = torch.autograd.grad(theirs, first)
    (our_grad,) = torch.autograd.grad(ours, first)
    assert torch.allclose(our_grad, their_grad, atol=1e-9)


def pairs_to(first):
    """The pairs (i, i + n) in their notation, with any negative, which that loss does not read."""
    rows = torch.arange(len(first))
    return rows, rows + len(first), rows, rows.flip(0)


def test_long_embeddings_do_not_overflow():
    embeds, labels = batch(LABELS[0], length=40.0)
    embeds = embeds.detach().float().requires_grad_()
    loss = NPair()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_a_negative_weight_of_the_length_is_refused():
    with pytest.raises(ValueError, match=r"--loss_npair_l2 -1 .* use 0 or a positive"):
        NPair(l2=-1)
