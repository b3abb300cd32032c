"""Which checkpoint a run goes on from, and what it refuses."""

import os

import pytest
import torch

from utilities import checkpoint
from utilities.resume import check_flags, last_good


def save(folder, name, iteration, age=0):
    checkpoint.save(folder / name, {"iteration": iteration, "weights": torch.ones(3)})
    os.utime(folder / name, (1e9 - age, 1e9 - age))


def test_the_last_checkpoint_is_taken(tmp_path):
    assert last_good(tmp_path) is None
    save(tmp_path, "best_test_recall.pt", 3)
    save(tmp_path, "last.pt", 5, age=10)
    assert last_good(tmp_path)["iteration"] == 5


@pytest.mark.parametrize("spoil", [b"", b"no checkpoint", None])
def test_where_it_is_spoiled_the_newest_of_the_best(tmp_path, caplog, spoil):
    save(tmp_path, "best_a.pt", 2, age=20)
    save(tmp_path, "best_b.pt", 3, age=10)
    save(tmp_path, "last.pt", 5)
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:-200] if spoil is None else spoil)
    assert last_good(tmp_path)["iteration"] == 3
    assert str(last) in caplog.text
    (tmp_path / "best_b.pt").write_bytes(b"")
    assert last_good(tmp_path)["iteration"] == 2
    (tmp_path / "best_a.pt").write_bytes(b"")
    assert last_good(tmp_path) is None


def test_other_flags_are_refused_by_name(tmp_path):
    saved = {"lr": 0.1, "loss": "margin", "tau": [3], "kernels": 2, "new": None}
    check_flags(saved, {"lr": 0.1, "loss": "margin", "tau": [3], "kernels": 8}, tmp_path)
    with pytest.raises(ValueError, match=r"--lr 0.1 \(now 0.2\), --tau \[3\] \(now \[4\]\)"):
        check_flags(saved, {"lr": 0.2, "loss": "margin", "tau": [4], "kernels": 2}, tmp_path)
