"""Steps are plain optimizer steps, those that are not finite change nothing."""

import copy
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from utilities.optimization import build_optimizer, fit_state
from utilities.trainer import Trainer

CPU = torch.device("cpu")


class Outcome(NamedTuple):
    loss: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seen = []

    def forward(self, x, factor=1.0):
        self.seen.append(torch.is_autocast_enabled("cpu"))
        return Outcome((self.net(x) - x.sum(dim=1, keepdim=True)).square().mean() * factor)


def trainer(precision="fp32", seed=0, optim="adamw", **options):
    torch.manual_seed(seed)
    objective = Regression()
    groups = [{"params": list(objective.parameters())}]
    optimizer = build_optimizer(optim, groups, lr=0.05, decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    return Trainer(objective, optimizer, scheduler, device=CPU, precision=precision, **options)


def data(n):
    return torch.randn(n, 16, 3, generator=torch.Generator().manual_seed(1))


def weights(of):
    return torch.cat([p.detach().flatten() for p in of.objective.parameters()])


def test_a_step_is_a_plain_step():
    ours, plain = trainer(), trainer()
    for x in data(5):
        outcome = ours.step(x)
        plain.optimizer.zero_grad()
        loss = plain.objective(x).loss
        loss.backward()
        plain.optimizer.step()
        plain.scheduler.step()
        assert torch.equal(outcome.loss, loss)
    assert torch.equal(weights(ours), weights(plain))
    assert (ours.iteration, ours.skipped) == (5, 0)
    assert ours.scheduler.get_last_lr() == plain.scheduler.get_last_lr()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_precision_is_that_of_the_forward_pass_and_the_loss_falls(precision):
    ours = trainer(precision)
    losses = [ours.step(x).loss.item() for x in data(40)]
    assert set(ours.objective.seen) == {precision != "fp32"}
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    assert ours.scaler.is_enabled() == (precision == "fp16")
    assert {p.dtype for p in ours.objective.parameters()} == {torch.float32}


def test_an_optimizer_that_cannot_leave_a_step_out_is_refused():
    ours = trainer()
    with pytest.raises(ValueError, match="Adam must be built with fused=True"):
        Trainer(ours.objective, torch.optim.Adam(ours.objective.parameters()), None, device=CPU)


@pytest.mark.parametrize("optim", ["adam", "adamw", "sgd"])
def test_a_first_step_that_is_left_out_leaves_no_trace(optim):
    ours, plain = trainer(optim=optim), trainer(optim=optim)
    x, *rest = data(4)
    ours.step(x, float("nan"))
    plain.optimizer.step(), plain.scheduler.step()  # without a gradient
    for x in rest:
        ours.step(x), plain.step(x)
    assert torch.equal(weights(ours), weights(plain))


def test_a_loss_that_is_not_finite_counts_where_its_gradient_is():
    ours = trainer()
    before = weights(ours)
    forward = ours.objective.forward
    ours.objective.forward = lambda x: Outcome(forward(x).loss + float("inf"))
    ours.step(data(1)[0])
    assert ours.skipped == 1 and torch.equal(weights(ours), before)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count(precision, factor, caplog):
    ours = trainer(precision)
    for x in data(9):  # the scale of fp16 begins too high
        ours.step(x)
    early = ours.skipped
    before, moments = weights(ours), copy.deepcopy(ours.optimizer.state_dict()["state"])
    ours.step(data(1)[0], factor)
    assert torch.equal(weights(ours), before)
    for number, state in ours.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[name], moments[number][name]) for name in state)
    assert (ours.iteration, ours.skipped - early) == (10, 1)
    told = "skipped 1 step(s) up to step 10" in caplog.text
    assert told == (precision == "fp32")  # fp16: as it should be
    ours.step(data(1)[0])
    assert not torch.equal(weights(ours), before)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_short_run_without_any_finite_step_is_an_error(factor, steps):
    ours = trainer()
    for x in data(steps):
        ours.step(x, factor)
    with pytest.raises(FloatingPointError, match=rf"in {steps} steps in a row, up to step {steps}"):
        ours.check()


def test_a_run_with_a_finite_step_goes_through_the_check(caplog):
    ours = trainer()
    for x, factor in zip(data(4), (float("nan"), 1.0, float("nan"), float("nan")), strict=True):
        ours.step(x, factor)
    ours.check()
    assert ours.skipped == 3


def test_the_search_of_fp16_for_its_scale_goes_through_the_check():
    ours = trainer("fp16")
    for x in data(3):
        ours.step(x, float("inf"))
    ours.check()


def test_too_many_in_a_row_end_training():
    ours = trainer(most_skipped=3)
    x = data(1)[0]
    for factor in (float("nan"), float("nan"), 1.0, float("nan"), float("nan")):
        ours.step(x, factor)
    with pytest.raises(FloatingPointError, match=r"not finite in 3 steps.*step 6"):
        ours.step(x, float("nan"))


def test_the_scale_of_fp16_falls_until_the_gradient_fits():
    ours = trainer("fp16")
    for _ in range(60):  # the first steps overflow: 2^16 times the loss times a thousand
        ours.step(data(1)[0], 1e3)
    assert 0 < ours.skipped < 30
    assert ours.scaler.get_scale() < 2**16


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("limit", [0.5, 1e4])
def test_the_gradient_is_clipped_after_the_loss_scale_is_taken_back(precision, limit):
    """As by torch.nn.utils.clip_grad_norm_; the norm before that is a term of the outcome."""
    ours, plain = trainer(precision, clip_grad=limit, optim="sgd"), trainer(optim="sgd")
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=precision == "fp16")
    clipped = []
    for x in data(3):
        outcome = ours.step(x, 10.0)
        plain.optimizer.zero_grad()
        plain.objective(x, 10.0).loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.objective.parameters(), limit)
        plain.optimizer.step(), plain.scheduler.step()
        close = {"rtol": 1e-6, "atol": 0} if precision == "fp32" else {"rtol": 0.02, "atol": 1e-3}
        torch.testing.assert_close(outcome.terms["grad_norm"], norm, **close)
        torch.testing.assert_close(weights(ours), weights(plain), **close)
        clipped.append(bool(norm > limit))
    assert any(clipped) == (limit < 1)


def test_the_norm_of_a_skipped_step_is_not_told():
    ours = trainer(clip_grad=1.0)
    before = weights(ours)
    assert ours.step(data(1)[0], float("inf")).terms["grad_norm"].isnan()
    assert ours.skipped == 1 and torch.equal(weights(ours), before)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_goes_on_from_a_state_as_if_it_had_not_stopped(precision):
    whole, first = trainer(precision), trainer(precision)
    batches = data(8)
    for x in batches:
        whole.step(x, 1e2)
    for x in batches[:5]:
        first.step(x, 1e2)
    second = trainer(precision, seed=9)
    second.objective.load_state_dict(first.objective.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for x in batches[5:]:
        second.step(x, 1e2)
    assert torch.equal(weights(second), weights(whole))
    assert (second.iteration, second.skipped) == (whole.iteration, whole.skipped)
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_what_has_no_gradient_yet_is_resumed_with_a_momentum():
    """As a backbone under --warmup, in a checkpoint of before: nothing is kept of it."""
    ours = trainer(optim="sgd")
    first, last = ours.objective.net[0].weight, ours.objective.net[2].weight
    first.requires_grad_(False)
    ours.step(data(1)[0])
    state = copy.deepcopy(ours.state_dict())
    for number, parameter in enumerate(ours.objective.parameters()):
        if parameter is not last:
            state["optimizer"]["state"].pop(number)
    ours.load_state_dict(state)
    first.requires_grad_(True)
    before = weights(ours)
    ours.step(data(1)[0], float("nan"))
    assert torch.equal(weights(ours), before)
    ours.step(data(1)[0])
    momentum = ours.optimizer.state[first]["momentum_buffer"]
    torch.testing.assert_close(momentum, first.grad + 0.01 * before[: first.numel()].view(8, 3))


def test_a_state_of_another_layout_is_laid_out_as_its_parameter():
    """torch's fused steps go through memory, whatever the strides say."""
    weight = nn.Parameter(torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last))
    optimizer = build_optimizer("sgd", [{"params": [weight]}], lr=0.1, decay=0.0)
    buffer = torch.randn(4, 3, 5, 5)
    optimizer.state[weight]["momentum_buffer"] = buffer
    fit_state(optimizer)
    kept = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(kept, buffer) and kept.stride() == weight.stride()


@pytest.mark.parametrize(
    ("optim", "plain"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", partial(torch.optim.SGD, momentum=0.9)),
    ],
)
def test_training_goes_on_from_the_state_of_an_optimizer_that_was_not_fused(optim, plain):
    """As checkpoints of before have it."""
    whole, objective = trainer(optim=optim), trainer(optim=optim).objective
    old = plain(objective.parameters(), lr=0.05, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(old, lambda step: 0.9**step)
    batches = data(6)
    for x in batches[:3]:
        whole.step(x)
        old.zero_grad()
        objective(x).loss.backward()
        old.step(), scheduler.step()
    ours = trainer(seed=9, optim=optim)
    ours.objective.load_state_dict(objective.state_dict())
    ours.load_state_dict(
        {
            **ours.state_dict(),
            "optimizer": copy.deepcopy(old.state_dict()),
            "scheduler": scheduler.state_dict(),
        }
    )
    for x in batches[3:]:
        whole.step(x), ours.step(x)
    ours.step(batches[0], float("nan"))
    assert ours.skipped == 1
    torch.testing.assert_close(weights(ours), weights(whole), atol=1e-5, rtol=0)
