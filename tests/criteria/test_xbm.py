import io

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import CrossBatchMemory as TheirMemory
from pytorch_metric_learning.losses import SupConLoss

from batchminer import Distance
from criteria import CrossBatchMemory, Histogram, Margin, PairCriterion, SmoothAP
from tests.criteria.scalars import assert_same
from tests.rounding import rounding
from utilities.pairs import pair_masks
from utilities.structures import References

DIM = 4
CLOSE = rounding(DIM, 1 / 0.1)  # cosines over a temperature of 0.1


class Supervised(PairCriterion):
    """A supervised contrastive loss in plain autograd, which keeps its references for backward."""

    def forward(self, embeds, labels, references=None):
        others = embeds if references is None else references.embeds
        positive, negative = pair_masks(labels, references and references.labels)
        sims = (embeds @ others.T / 0.1).masked_fill(~(positive | negative), -torch.inf)
        log_p = sims.log_softmax(dim=1).masked_fill(~positive, 0)
        losses = -log_p.sum(dim=1) / positive.sum(dim=1).clamp(min=1)
        return losses.sum() / positive.any(dim=1).sum().clamp(min=1)


def mined():
    """A loss with a miner that draws and a parameter with a learning rate of its own."""
    return Margin(40, Distance(seed=0), beta_lr=7e-3)


PAIR_LOSSES = [Supervised, mined, Histogram, SmoothAP]


def batches(n, sizes=(6,), seed=0):
    """``n`` batches of the given sizes in turn, their labels from four classes."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        size = sizes[i % len(sizes)]
        embeds = F.normalize(torch.randn(size, DIM, generator=generator), dim=1)
        yield embeds.requires_grad_(), torch.randint(4, (size,), generator=generator) * 10


def step(criterion, embeds, labels):
    """The loss and its gradient."""
    loss = criterion(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    return loss.item(), grad


@pytest.mark.parametrize("make", PAIR_LOSSES)
@pytest.mark.parametrize("size", [1, 4, 6, 13, 100])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_equals_a_list_of_old_batches(make, size, start):
    """Batches of uneven sizes, some above the memory's; from empty over partly filled to full."""
    memory, plain = CrossBatchMemory(make(), DIM, size=size, start=start, weight=0.7), make()
    old = []
    for i, (embeds, labels) in enumerate(batches(8, sizes=(6, 3, 7))):
        expected = plain(embeds, labels)
        if old and i >= start:
            stored = References(*(torch.cat(x)[-size:] for x in zip(*old, strict=True)))
            expected = expected + 0.7 * plain(embeds, labels, stored)
        (expected_grad,) = torch.autograd.grad(expected, embeds)
        loss, grad = step(memory, embeds, labels)
        assert loss == pytest.approx(expected.item(), abs=1e-6)
        assert torch.allclose(grad, expected_grad, atol=1e-6)
        if i < max(start, 1):
            assert loss == expected.item()  # the loss alone, to the last bit
        if i + 1 >= start:
            old.append((embeds.detach(), labels))


@pytest.mark.parametrize("make", PAIR_LOSSES)
@pytest.mark.parametrize("done", [1, 3, 6])
def test_a_run_resumes_exactly(make, done):
    """Before the start, with a partly filled and with a full memory."""

    def new():
        return CrossBatchMemory(make(), DIM, size=15, start=2)

    interrupted = new()
    for b in list(batches(8))[:done]:
        step(interrupted, *b)
    file = io.BytesIO()
    torch.save(interrupted.state_dict(), file)
    file.seek(0)
    resumed = new()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for b in list(batches(8))[done:]:
        (loss, grad), (expected, expected_grad) = step(resumed, *b), step(interrupted, *b)
        assert loss == expected
        assert torch.equal(grad, expected_grad)


def test_equals_pytorch_metric_learning():
    """Coincides where theirs stores one batch and compares the next with it, by its mask."""
    theirs = TheirMemory(SupConLoss(temperature=0.1), DIM, memory_size=13)
    memory, plain = CrossBatchMemory(Supervised(), DIM, size=13, start=0), Supervised()
    earlier = None
    for embeds, labels in batches(6, seed=1):
        if earlier is not None:
            stored = torch.arange(12) < 6
            both = (torch.cat(x) for x in zip(earlier, (embeds, labels), strict=True))
            expected = theirs(*both, enqueue_mask=stored) + plain(embeds, labels)
            assert_same(memory(embeds, labels), expected, [embeds], close=CLOSE, sphere=True)
        else:
            memory(embeds, labels)
        earlier = embeds.detach(), labels


def test_several_losses_may_go_backward_together():
    """As when gradients accumulate: storing a batch changes no earlier graph or state dict."""
    memory = CrossBatchMemory(Supervised(), DIM, size=10, start=0)
    state = memory.state_dict()
    assert not state["embeds"].any()
    alone = CrossBatchMemory(Supervised(), DIM, size=10, start=0)
    embeds, labels = zip(*batches(4), strict=True)
    together = torch.autograd.grad(sum(map(memory, embeds, labels)), embeds)
    for x, y, grad in zip(embeds, labels, together, strict=True):
        assert torch.allclose(step(alone, x, y)[1], grad)
    assert not state["embeds"].any()
    assert memory.embeds.any()


def test_duplicates_in_the_memory_count():
    """An image that comes again is compared with its old embedding, of similarity 1."""
    memory = CrossBatchMemory(Supervised(), DIM, size=6, start=0)
    ((embeds, labels),) = batches(1)
    alone, _ = step(memory, embeds, labels)
    again, _ = step(memory, embeds, labels)
    expected = Supervised()(embeds, labels, References(embeds.detach(), labels))
    assert again - alone == pytest.approx(expected.item(), abs=CLOSE)


def test_evaluation_reads_the_memory_and_leaves_it():
    memory = CrossBatchMemory(Supervised(), DIM, size=10, start=0)
    first, second, third = batches(3)
    step(memory, *first)
    memory.eval()
    evaluated = [step(memory, *second)[0] for _ in range(2)]
    memory.train()
    assert evaluated == [step(memory, *second)[0]] * 2
    assert step(memory, *third)[0] != step(Supervised(), *third)[0]


def test_the_memory_has_no_gradient_and_is_float32():
    memory = CrossBatchMemory(Supervised(), DIM, size=10, start=0)
    for embeds, labels in batches(3):
        step(memory, embeds.detach().double().requires_grad_(), labels)
    assert memory.embeds.dtype == torch.float32
    assert not memory.embeds.requires_grad
    assert memory.embeds.shape == (10, DIM)
    assert set(memory.state_dict()) >= {"embeds", "labels", "_extra_state"}


def test_parameters_are_those_of_the_loss():
    memory = CrossBatchMemory(mined(), DIM, size=10)
    (group,) = memory.param_groups(lr=1e-3)
    assert group["lr"] == 7e-3
    assert group["params"] == [memory.criterion.beta]
    assert CrossBatchMemory(SmoothAP(), DIM, size=10).param_groups(lr=1e-3) == []


@pytest.mark.parametrize("size", [0, -5])
def test_a_memory_of_nothing_is_named(size):
    with pytest.raises(ValueError, match=f"size.*{size}"):
        CrossBatchMemory(SmoothAP(), DIM, size=size)
