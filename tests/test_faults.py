"""Runs of main.py on a machine that fails: one clear line, nothing lost, and they are resumed."""

import errno
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import main
import metrics
from tests import runs
from tests.runs import RUN, assert_same_run, output, tiny_run, wait_for_an_epoch
from utilities import checkpoint
from utilities.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")


def start(source, save_path, *more):
    length = ("--n_epochs", "20", "--evaluate_every", "20", "--no_train_metrics", "--resume")
    return runs.start(tiny_run(source, save_path, *length, *more))


def error_of(run):
    """Return the one line in which a failing run ends."""
    printed = output(run, status=1)
    assert "Traceback" not in printed
    [line] = re.findall(r"^error: .*", printed, re.MULTILINE)
    return line


def test_a_full_disk_costs_no_finished_epoch(animals, small_disk, tmp_path):
    output(start(animals, tmp_path / "whole"))
    run = start(animals, small_disk)
    wait_for_an_epoch(run, small_disk / RUN)
    with pytest.raises(OSError) as full, (small_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    assert full.value.errno == errno.ENOSPC
    line = error_of(run)
    assert "No space left on device" in line and str(small_disk / RUN) in line
    assert checkpoint.load(small_disk / RUN / "last.pt")["trainer"]["iteration"] >= 3

    (small_disk / "ballast").unlink()
    output(start(animals, small_disk))
    assert_same_run(small_disk / RUN, tmp_path / "whole" / RUN)


def test_a_disk_that_can_only_be_read_is_reported_before_training(animals, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = error_of(start(animals, small_disk / "runs"))
    assert f"--save_path {small_disk / 'runs'} cannot be written" in line


def test_a_disk_that_goes_away_is_not_replaced_by_a_folder(animals, small_disk):
    """As a network share does: its mount point is then an empty folder of the local disk."""
    run = start(animals, small_disk)
    wait_for_an_epoch(run, small_disk / RUN)
    subprocess.run(["umount", "--lazy", str(small_disk)], check=True)
    assert str(small_disk / RUN) in error_of(run)
    assert not list(small_disk.iterdir())


def test_images_that_go_away_end_the_run(animals, tmp_path):
    shutil.copytree(animals, tmp_path / "source")
    run = start(tmp_path / "source", tmp_path)
    wait_for_an_epoch(run, tmp_path / RUN)
    (tmp_path / "source" / "animals").rename(tmp_path / "elsewhere")
    line = error_of(run)
    assert "images of a batch can be read any more" in line and "--resume" in line
    (tmp_path / "elsewhere").rename(tmp_path / "source" / "animals")
    assert "resuming after epoch" in output(start(tmp_path / "source", tmp_path))


def test_a_loading_process_that_is_killed_ends_the_run(animals, tmp_path):
    run = start(animals, tmp_path, "--kernels", "2")
    wait_for_an_epoch(run, tmp_path / RUN)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    line = error_of(run)
    assert "a loading process was lost" in line and "--resume" in line
    assert checkpoint.load(tmp_path / RUN / "last.pt")["trainer"]["iteration"] >= 3


@pytest.mark.parametrize(
    ("owner", "name", "iteration"),
    [(Trainer, "step", 3), (metrics, "rank", 6)],
    ids=["step", "ranks"],
)
def test_a_gpu_whose_memory_is_full_costs_no_finished_epoch(
    animals, tmp_path, monkeypatch, owner, name, iteration
):
    """In a step of the second epoch, and in the evaluation after it, then resumed."""
    plain, calls = getattr(owner, name), iter(range(1, 100))

    def filling(*inputs, **named):
        if next(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0")
        return plain(*inputs, **named)

    monkeypatch.setattr(owner, name, filling)
    words = tiny_run(animals, tmp_path / "parts", "--evaluation_metrics", "e_recall@1")
    with pytest.raises(OSError, match=r"GPU is full \(.*2.00 GiB\).*--bs.*--resume") as full:
        main.main(words)
    assert "\n" not in str(full.value)
    kept = checkpoint.load(tmp_path / "parts" / RUN / "last.pt")
    assert kept["epoch"] == 1 and kept["trainer"]["iteration"] == iteration

    monkeypatch.setattr(owner, name, plain)
    main.main([*words, "--resume", *(("--evaluate_on_cpu",) if name == "rank" else ())])
    main.main(tiny_run(animals, tmp_path / "whole", "--evaluation_metrics", "e_recall@1"))
    assert_same_run(tmp_path / "parts" / RUN, tmp_path / "whole" / RUN)
