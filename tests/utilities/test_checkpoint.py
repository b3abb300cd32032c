"""Checkpoints: a round trip, only plain values, and never half a file."""

import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.runs import same
from utilities import checkpoint


def trained():
    """A model, optimizer, scheduler and scaler after one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 5], gamma=0.3)
    scaler = torch.amp.GradScaler("cpu")
    model(torch.randn(5, 3)).pow(2).sum().backward()
    optimizer.step()
    scheduler.step()
    return {"embedder": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}


def test_round_trip_of_a_training_state(tmp_path):
    parts = {name: part.state_dict() for name, part in trained().items()}
    parts |= {"epoch": 3, "best": {"e_recall@1": 0.5}, "queue": (torch.arange(4), None, "x", [1])}
    checkpoint.save(tmp_path / "last.pt", parts)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert set(loaded) == set(parts)
    assert (loaded["epoch"], loaded["best"]) == (3, {"e_recall@1": 0.5})
    assert loaded["queue"][1:] == (None, "x", [1])
    fresh = trained()
    for name, part in fresh.items():
        part.load_state_dict(loaded[name])
    for key, value in parts["embedder"].items():
        torch.testing.assert_close(fresh["embedder"].state_dict()[key], value)
    assert fresh["scheduler"].state_dict() == parts["scheduler"]


def test_torch_reads_it_without_this_project(tmp_path):
    parts = {"embedder": OrderedDict(w=nn.Parameter(torch.ones(2)))}
    checkpoint.save(tmp_path / "last.pt", parts)
    plain = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.testing.assert_close(plain["embedder"]["w"], torch.ones(2))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float64(0.5), "numpy.float64"),  # a subclass of float
        (np.arange(3), "numpy.ndarray"),
        (Path("a"), "Path"),
        (random.Random(0), "random.Random"),
        ({1, 2}, "builtins.set"),
        (nn.Linear(1, 1), "Linear"),
        (len, "builtin_function"),
    ],
)
def test_anything_else_is_refused_by_name_before_writing(tmp_path, value, said):
    path = tmp_path / "last.pt"
    with pytest.raises(TypeError, match=rf"part sampler\.state\.0 is a .*{said}"):
        checkpoint.save(path, {"epoch": 1, "sampler": {"state": [value]}})
    assert list(tmp_path.iterdir()) == []


def test_other_keys_and_the_name_format_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"part best has a key that is a .*Path"):
        checkpoint.save(tmp_path / "last.pt", {"best": {Path("a"): 1}})
    with pytest.raises(ValueError, match="'format'"):
        checkpoint.save(tmp_path / "last.pt", {"format": 2})
    with pytest.raises(FileNotFoundError, match=r"last\.pt does not exist"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("keep", [0, 10, 900])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"w": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"last\.pt cannot be read .*cut short"):
        checkpoint.load(path)


def test_a_flipped_bit_is_refused_or_without_effect(tmp_path):
    """Some bytes are gaps and file times; at all other places a flip is seen."""
    path, rng = tmp_path / "last.pt", np.random.default_rng(0)
    parts = {"weights": torch.rand(60, 50), "epoch": 3, "flags": {"lr": 0.1, "loss": "margin"}}
    checkpoint.save(path, parts)
    whole, refused = path.read_bytes(), 0
    ends = [*range(0, 1500, 4), *range(len(whole) - 1500, len(whole), 4)]
    for place in [*ends, *rng.integers(0, len(whole), 200)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = checkpoint.load(path)
        except ValueError as error:
            assert "it is damaged, cut short" in str(error)
            refused += 1
        else:
            assert same(found, parts), place
    assert refused > 500


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_reading_runs_no_code(tmp_path):
    target = tmp_path / "ran"
    torch.save({"format": 1, "sampler": Bomb(target)}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="not tensors and plain values"):
        checkpoint.load(tmp_path / "last.pt")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "not written by this project; .*--weights"),
        ({"format": checkpoint.FORMAT + 1}, "update the code"),
    ],
)
def test_file_of_another_project_or_a_newer_format(tmp_path, content, message):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "last.pt")


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from utilities import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(Path(sys.argv[1]), {"w": torch.ones(100_000)})
except OSError as error:
    print("OSError:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_no_space_keeps_the_old_checkpoint(tmp_path):
    """A limit on file sizes stands in for a full disk: the write fails midway."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"w": torch.zeros(2)})
    root = Path(checkpoint.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, cwd=root
    )
    assert "File too large while writing" in done.stdout, done.stderr
    assert str(path) in done.stdout
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(checkpoint.load(path)["w"], torch.zeros(2))


def test_rng_state_survives_the_file(tmp_path):
    def draws():
        return random.random(), np.random.randn(), float(torch.rand(()))  # noqa: NPY002

    draws()
    np.random.randn()  # noqa: NPY002 - numpy now holds the second normal of a pair
    checkpoint.save(tmp_path / "last.pt", {"rng": checkpoint.rng_state()})
    expected = [draws() for _ in range(3)]
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "last.pt")["rng"])
    assert [draws() for _ in range(3)] == expected


def test_the_rng_state_of_a_device_that_is_not_used_is_ignored():
    state = checkpoint.rng_state()
    state["device"] = {"cuda": torch.zeros(16, dtype=torch.uint8)}
    checkpoint.set_rng_state(state)
    assert torch.equal(torch.get_rng_state(), state["torch"])
