"""Gradients in the layout of an embedder are right. A process that computes wrong ones may die."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from architectures.layout import lay_out, unsafe
from tests.runs import ROOT

# The images are large enough for the memory that is overwritten to be in use.
TWO_STEPS = """
import copy, sys
import timm, torch
from architectures.layout import lay_out

name, side = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
if name.isdigit():
    model, channels = torch.nn.Conv2d(int(name), 48, 1, stride=2), int(name)
else:
    model, channels = timm.create_model(name, num_classes=0), 3
plain = copy.deepcopy(model)
lay_out(model)
for _ in range(2):
    images = torch.randn(8, channels, side, side)
    for module, layout in ((plain, torch.contiguous_format), (model, torch.channels_last)):
        module.zero_grad()
        module(images.contiguous(memory_format=layout)).square().mean().backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert mine.grad.isfinite().all()
        if name.isdigit():  # in a whole network, rounding grows with its depth
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3)
"""


@pytest.mark.parametrize(
    ("name", "side", "isa"),
    [
        *(("3", 224, "ALL"), ("4", 112, "AVX2")),
        pytest.param("3", 224, "AVX2", marks=pytest.mark.slow),
        pytest.param("12", 112, "ALL", marks=pytest.mark.slow),
        pytest.param("repvgg_a0", 96, "ALL", marks=pytest.mark.slow),
        pytest.param("mobileone_s0", 96, "AVX2", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_the_plain_layout(name, side, isa):
    done = subprocess.run(
        [sys.executable, "-c", TWO_STEPS, name, str(side)],
        cwd=ROOT, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        (nn.Conv2d(3, 48, 1, stride=2), True),
        (nn.Conv2d(8, 16, 1, stride=(1, 2)), True),  # safe with AVX2, not with AVX-512
        (nn.Conv2d(24, 48, 1, stride=3), True),
        (nn.Conv2d(32, 64, 1, stride=2, groups=4), True),
        (nn.Conv2d(256, 512, 1, stride=2), False),  # in the residual path of a ResNet
        (nn.Conv2d(3, 48, 1), False),
        (nn.Conv2d(3, 64, 7, stride=2), False),
    ],
)
def test_convolutions_that_are_unsafe(conv, expected):
    assert unsafe(conv) == expected


def test_other_convolutions_are_in_channels_last():
    model = timm.create_model("resnet18")
    lay_out(model)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert any(conv.kernel_size == (1, 1) and conv.stride == (2, 2) for conv in convs)
    for conv in convs:
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert not conv._forward_pre_hooks
