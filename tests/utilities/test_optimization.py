"""Optimisers and schedules by name."""

import pytest
import torch

from utilities.optimization import build_optimizer, build_scheduler


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_groups_keep_their_own_rates(name, kind):
    one, two = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [one]}, {"params": [two], "lr": 0.5, "weight_decay": 0.0}]
    optimizer = build_optimizer(name, groups, lr=0.1, decay=0.01)
    assert type(optimizer) is kind
    settings = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert settings == [(0.1, 0.01), (0.5, 0.0)]  # a decay of 0 is not "none given"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step", [1.0, 1.0, 0.5, 0.5, 0.25]),
        ("none", [1.0] * 5),
        ("cosine", [1.0, 0.8536, 0.5, 0.1464, 0.0]),
    ],
)
def test_rates_epoch_by_epoch(name, expected):
    optimizer = build_optimizer("sgd", [{"params": [torch.ones(1)]}], lr=1.0, decay=0.0)
    scheduler = build_scheduler(name, optimizer, n_epochs=4, tau=[2, 4], gamma=0.5)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-4)
