import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

from criteria.multisimilarity import MultiSimilarity
from utilities.structures import References


def batch(n_classes=5, per_class=3, dim=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(n_classes * per_class, dim, generator=generator, dtype=dtype)
    labels = torch.arange(n_classes).repeat_interleave(per_class) * 7 + 3  # not contiguous
    return F.normalize(embeds, dim=1).requires_grad_(), labels


def oracle(
    embeds,
    labels,
    references=None,
    alpha=2.0,
    beta=40.0,
    eps=0.1,
    lam_p=0.5,
    lam_n=0.5,
    released=False,
):
    """The paper's equations, one pair at a time."""
    itself = references is None
    others, other_labels = (embeds, labels) if itself else references
    n, rows = len(others), others.tolist()
    pulls, pushes = [], []
    for i, anchor in enumerate(embeds.tolist()):
        sims = [sum(x * y for x, y in zip(anchor, row, strict=True)) for row in rows]
        same = [k for k in range(n) if other_labels[k] == labels[i]]
        pos = [sims[k] for k in same if not (itself and k == i)]
        neg = [sims[k] for k in range(n) if k not in same]
        hard_pos = [s for s in pos if neg and s < max(neg) + eps]
        hard_neg = [s for s in neg if pos and s > min(pos) - eps]
        pulls.append(math.log(1 + sum(math.exp(-alpha * (s - lam_p)) for s in hard_pos)))
        pushes.append(math.log(1 + sum(math.exp(beta * (s - lam_n)) for s in hard_neg)))
    pull, push = sum(pulls) / len(embeds), sum(pushes) / len(embeds)
    if released:
        pull, push = math.log(1 + math.exp(pull)), math.log(1 + math.exp(push))
    return pull / alpha + push / beta


UNEVEN = [7, 3, 7, 50, 3, 7, 11, 3]  # singletons, unordered, not contiguous


def uneven(seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(UNEVEN), 4, generator=generator, dtype=torch.float64)
    return F.normalize(embeds, dim=1).requires_grad_(), torch.tensor(UNEVEN)


def memory():
    embeds = F.normalize(uneven(seed=5)[0].detach(), dim=1)
    return References(embeds, torch.tensor([3, 50, 7, 7, 2, 3, 2, 11]))


@pytest.mark.parametrize("released", [False, True])
def test_uneven_classes_and_references_equal_the_equation(released):
    embeds, labels = uneven()
    criterion = MultiSimilarity(released=released)
    for references in (None, memory(), References(embeds.detach(), labels)):
        expected = oracle(embeds, labels, references, released=released)
        assert criterion(embeds, labels, references).item() == pytest.approx(expected, abs=1e-10)


def test_as_its_own_references_a_batch_has_the_self_pairs_too():
    """Two near images of two classes: a positive, the image itself, makes their negative count."""
    embeds = torch.tensor([[1.0, 0.0], [0.995, 0.0998749]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    own = References(embeds, labels)
    loss = MultiSimilarity()(embeds, labels, own)
    assert loss.item() == pytest.approx(oracle(embeds, labels, own), abs=1e-10)
    assert loss.item() > 0.4
    assert MultiSimilarity()(embeds, labels).item() == 0


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_equals_the_equation_along_either_axis(dim, released, per_class):
    embeds, labels = batch(per_class=per_class)
    loss = MultiSimilarity(dim=dim, released=released)(embeds, labels)
    assert loss.item() == pytest.approx(oracle(embeds, labels, released=released), abs=1e-10)


def test_hyperparameters_enter_where_the_equation_has_them():
    embeds, labels = batch(seed=1)
    loss = MultiSimilarity(
        pos_weight=3.0, neg_weight=20.0, margin=0.3, pos_thresh=0.6, neg_thresh=0.2
    )(embeds, labels)
    expected = oracle(embeds, labels, alpha=3.0, beta=20.0, eps=0.3, lam_p=0.6, lam_n=0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning(seed):
    """Coincides with alpha, beta = the weights, base = both thresholds, epsilon = the margin."""
    embeds, labels = batch(8, 2, 16, seed)
    pairs = MultiSimilarityMiner(epsilon=0.1)(embeds.detach(), labels)
    theirs = MultiSimilarityLoss(alpha=2, beta=40, base=0.5)(embeds, labels, pairs)
    ours = MultiSimilarity()(embeds, labels)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    (their_grad,) = torch.autograd.grad(theirs, embeds)
    (our_grad,) = torch.autograd.grad(ours, embeds)
    # Theirs goes through a normalisation, ours does not: compare along the sphere.
    along = our_grad - (our_grad * embeds).sum(dim=1, keepdim=True) * embeds
    assert torch.allclose(along, their_grad, atol=1e-9)


def test_batch_order_does_not_matter():
    embeds, labels = batch()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    criterion = MultiSimilarity()
    assert torch.allclose(criterion(embeds, labels), criterion(embeds[order], labels[order]))


def test_no_active_pair_gives_a_differentiable_zero_and_the_released_floor():
    embeds = torch.eye(3).repeat_interleave(2, dim=0).requires_grad_()  # classes at right angles
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    loss = MultiSimilarity()(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))
    floor = MultiSimilarity(released=True)(embeds, labels)
    assert floor.item() == pytest.approx(math.log(2) / 2 + math.log(2) / 40, abs=1e-6)
    assert floor.item() == pytest.approx(0.364, abs=1e-3)


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [4, 4, 4, 4]])
def test_one_class_or_no_pair_gives_zero(labels):
    embeds = F.normalize(torch.randn(len(labels), 4), dim=1).requires_grad_()
    loss = MultiSimilarity()(embeds, torch.tensor(labels))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert grad.isfinite().all()


def test_a_duplicate_is_a_positive_and_the_image_itself_is_none():
    """Two equal images of one class and a near negative: each has one positive, the other."""
    embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.995, 0.0998749]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert MultiSimilarity()(embeds, labels).item() == pytest.approx(
        oracle(embeds, labels), abs=1e-10
    )


def test_large_weights_do_not_overflow():
    embeds, labels = batch(dtype=torch.float32)
    loss = MultiSimilarity(pos_weight=1e4, neg_weight=1e4)(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("references", [None, memory()])
def test_gradient(released, references):
    criterion = MultiSimilarity(released=released)
    for embeds, labels in (uneven(), uneven(seed=1)):
        assert torch.autograd.gradcheck(lambda x, y=labels: criterion(x, y, references), (embeds,))


def test_an_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="dim must be 0 or 1; got 2"):
        MultiSimilarity(dim=2)
