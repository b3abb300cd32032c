"""Optimizers, their groups, and schedules by name."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from utilities.optimization import (
    build_optimizer,
    build_scheduler,
    decay_groups,
    scaled_lr,
    split_decay,
    warmup_cosine,
)

NUMBERS = {"max_steps": 40, "warmup_steps": 8, "warmup_lr": 0.01, "final_lr": 0.002}


def optimizer_of(*rates):
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    return build_optimizer("adamw", groups, lr=rates[0], decay=0.01)


def rates_of(optimizer, scheduler, n_steps):
    seen = []
    for _ in range(n_steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_groups_keep_their_own_rates(name, kind):
    one, two = (nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [one]}, {"params": [two], "lr": 0.5, "weight_decay": 0.0}]
    optimizer = build_optimizer(name, groups, lr=0.1, decay=0.01)
    assert type(optimizer) is kind
    settings = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert settings == [(0.1, 0.01), (0.5, 0.0)]  # a decay of 0 is not "none given"


# --------------------------------------------------------------------------------------------------
# Weight decay
# --------------------------------------------------------------------------------------------------
class Tower(nn.Module):
    """One of each kind of parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False))
        self.positions = nn.Parameter(torch.zeros(7, 5))
        self.scale = nn.Parameter(torch.zeros(()))


def names(module, parameters):
    known = {id(p): name for name, p in module.named_parameters()}
    return [known[id(p)] for p in parameters]


def test_matrices_decay_and_vectors_do_not():
    tower = Tower()
    decayed, rest = (names(tower, part) for part in split_decay(tower))
    assert decayed == ["positions", "conv.weight", "head.0.weight", "head.2.weight"]
    assert rest == [
        "scale", "conv.bias", "norm.weight", "norm.bias", "head.0.bias", "head.1.weight",
        "head.1.bias",
    ]  # fmt: skip
    tower.head.requires_grad_(False)  # frozen parameters are in neither
    for part in split_decay(tower):
        assert not any(name.startswith("head") for name in names(tower, part))


def test_names_without_decay():
    outer = nn.Module()
    outer.tower = Tower()
    for module in (outer, outer.tower):
        decayed, rest = split_decay(module, undecayed=["positions", "ead.0.weight"])
        assert "positions" not in {n.split(".")[-1] for n in names(module, decayed)}
        assert names(module, rest)[0].endswith("positions")
        assert len(decayed) == 3  # half a name matches nothing


def test_modules_may_share_parameters_and_be_an_iterator():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    matrices, vectors = decay_groups(iter([first, second]), lr=0.25)
    assert [id(p) for p in matrices["params"]] == [id(first.weight)]
    assert [id(p) for p in vectors["params"]] == [id(first.bias), id(second.bias)]


def test_an_optimizer_shrinks_only_matrices():
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(decay_groups(layer, lr=0.5), lr=9.0, weight_decay=0.1)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, weight * (1 - 0.5 * 0.1))
    assert torch.equal(layer.bias, bias)


def test_empty_groups_are_left_out():
    (group,) = decay_groups(nn.Linear(2, 3, bias=False), lr=1.0)
    assert "weight_decay" not in group
    (group,) = decay_groups(nn.LayerNorm(2), lr=1.0)
    assert group["weight_decay"] == 0.0
    assert decay_groups(nn.ReLU(), lr=1.0) == []


# --------------------------------------------------------------------------------------------------
# Schedules
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step", [1.0, 1.0, 0.5, 0.5, 0.25]),
        ("none", [1.0] * 5),
        ("cosine", [1.0, 0.8536, 0.5, 0.1464, 0.0]),
    ],
)
def test_rates_epoch_by_epoch(name, expected):
    optimizer = optimizer_of(1.0, 0.1)
    scheduler = build_scheduler(
        name, optimizer, n_steps=11, steps_per_epoch=3, tau=[2, 4], gamma=0.5, lr=1.0
    )  # the last epoch is cut short
    seen = rates_of(optimizer, scheduler, 15)
    assert [fast for fast, _ in seen] == pytest.approx(np.repeat(expected, 3), abs=1e-4)
    assert all(slow == pytest.approx(fast / 10) for fast, slow in seen)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_rates_are_those_of_torch_s_own_schedules(name):
    ours, theirs = optimizer_of(0.3), optimizer_of(0.3)
    scheduler = build_scheduler(
        name, ours, n_steps=12, steps_per_epoch=2, tau=[1, 3, 4], gamma=0.3, lr=0.3
    )
    reference = (
        torch.optim.lr_scheduler.MultiStepLR(theirs, [1, 3, 4], gamma=0.3)
        if name == "step"
        else torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=6)
    )
    by_epoch = rates_of(theirs, reference, 6)
    assert np.allclose(rates_of(ours, scheduler, 12), np.repeat(by_epoch, 2, axis=0))


@pytest.mark.parametrize("name", ["step", "cosine", "none", "warmup_cosine"])
def test_without_a_step_rates_stay(name):
    optimizer = optimizer_of(0.3)
    build_scheduler(name, optimizer, n_steps=0, steps_per_epoch=5, tau=[1], gamma=0.3, lr=0.3)
    assert optimizer.param_groups[0]["lr"] == 0.3


def rate(step, *, max_steps, warmup_steps, warmup_lr, final_lr, lr=0.1):
    """The published schedule for one step, in words of the field: ramp, half a cosine, floor."""
    if step < warmup_steps:
        return warmup_lr * (1 - step / warmup_steps) + lr * step / warmup_steps
    if step >= max_steps:
        return final_lr
    angle = math.pi * (step - warmup_steps) / (max_steps - warmup_steps)
    return final_lr + (lr - final_lr) * math.cos(angle / 2) ** 2


@pytest.mark.parametrize("warmup_steps", [0, 1, 8, 39])
def test_warm_up_and_cosine_at_every_step_and_for_every_group(warmup_steps):
    numbers = NUMBERS | {"warmup_steps": warmup_steps}
    optimizer = optimizer_of(0.1, 0.025, 3.0)
    seen = rates_of(optimizer, warmup_cosine(optimizer, 0.1, **numbers), 45)
    for step, (run, slow, fast) in enumerate(seen):
        assert run == pytest.approx(rate(step, **numbers))
        assert slow == pytest.approx(run / 4) and fast == pytest.approx(30 * run)
    assert seen[warmup_steps][0] == pytest.approx(0.1)
    assert seen[40][0] == seen[44][0] == pytest.approx(0.002)


def test_the_published_schedule():
    (factor,) = warmup_cosine(optimizer_of(1e-3), 1e-3, max_steps=250_000).lr_lambdas
    rates = [1e-3 * factor(step) for step in (0, 2500, 5000, 127_500, 250_000)]
    assert rates == pytest.approx([1e-5, 5.05e-4, 1e-3, 5.005e-4, 1e-6])


@pytest.mark.parametrize("stop", [3, 8, 20, 41])
def test_the_schedule_resumes_exactly(stop):
    def start():
        optimizer = optimizer_of(0.1, 0.3)
        return optimizer, warmup_cosine(optimizer, 0.1, **NUMBERS)

    one, two = start(), start()
    rates_of(*one, stop)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in one], file)
    file.seek(0)
    for part, state in zip(two, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert rates_of(*two, 10) == rates_of(*one, 10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"max_steps": 4000, "warmup_steps": 5000},
            "--max_steps 4000 ends in the warm-up of --warmup_steps 5000; use --max_steps 5001 or "
            "more, or --warmup_steps 80, the share of the published schedule",
        ),
        (
            {"max_steps": 8},
            "--max_steps 8 ends in the warm-up of --warmup_steps 8; use --max_steps 9 or more, or "
            "--warmup_steps 0, the share of the published schedule",
        ),
        (
            {"warmup_lr": 0.2},
            "--warmup_lr must be at most the learning rate of 0.1 (--lr, scaled by --lr_base_bs); "
            "got 0.2; use 0.001, or a higher --lr",
        ),
        (
            {"final_lr": 0.5, "warmup_steps": 0},
            "--final_lr must be at most the learning rate of 0.1 (--lr, scaled by --lr_base_bs); "
            "got 0.5; use 0.001, or a higher --lr",
        ),
    ],
)
def test_impossible_schedules_are_refused_with_a_remedy(changed, message):
    with pytest.raises(ValueError) as error:
        warmup_cosine(optimizer_of(0.1), 0.1, **(NUMBERS | changed))
    assert str(error.value) == message


def test_without_warm_up_its_rate_does_not_matter():
    optimizer = optimizer_of(0.1)
    warmup_cosine(optimizer, 0.1, **(NUMBERS | {"warmup_steps": 0, "warmup_lr": 7.0}))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_the_rate_grows_with_the_batch():
    assert scaled_lr(1e-3, 512) == 1e-3
    assert scaled_lr(1e-3, 128) == pytest.approx(2.5e-4)
    assert scaled_lr(1e-3, 96, base_bs=32) == pytest.approx(3e-3)
    assert scaled_lr(1e-3, 128, base_bs=0) == 1e-3
