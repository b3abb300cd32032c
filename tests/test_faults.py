"""Runs of main.py on a machine that fails them: one clear line, nothing lost, and they go on."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import main
from metrics import Gallery
from tests.test_main import flags, own_cache, source  # noqa: F401 - fixtures
from tests.test_resume import assert_same_run, start
from utilities import checkpoint
from utilities.trainer import Trainer

RUN = Path("animals") / "default_s0"
MORE = ("--n_epochs", "20", "--evaluate_every", "20", "--no_report", "--no_train_metrics")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def after_an_epoch(run, folder):
    """Wait until the run has finished one."""
    while not (folder / "last.pt").is_file():
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.02)


def failed(run):
    """The one line in which a run ends that fails."""
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 1, said
    assert "Traceback" not in said
    [line] = re.findall(r"^error: .*", said, re.MULTILINE)
    return line


def test_a_full_disk_costs_no_finished_epoch(source, small_disk, tmp_path):  # noqa: F811
    whole = start(source, tmp_path / "whole", *MORE)
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said

    run = start(source, small_disk, *MORE)
    after_an_epoch(run, small_disk / RUN)
    with pytest.raises(OSError) as full, (small_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    assert full.value.errno == errno.ENOSPC
    line = failed(run)
    assert "No space left on device" in line and str(small_disk / RUN) in line
    assert checkpoint.load(small_disk / RUN / "last.pt")["iteration"] >= 3

    (small_disk / "ballast").unlink()
    again = start(source, small_disk, *MORE)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert_same_run(small_disk / RUN, tmp_path / "whole" / RUN)


def test_a_disk_that_can_only_be_read_is_said_before_training(source, small_disk):  # noqa: F811
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = failed(start(source, small_disk / "runs", *MORE))
    assert f"--save_path {small_disk / 'runs'} cannot be written" in line


def test_a_disk_that_goes_away_is_not_replaced_by_a_folder(source, small_disk):  # noqa: F811
    """As a network share does: its mount point is then an empty folder of the local disk."""
    run = start(source, small_disk, *MORE)
    after_an_epoch(run, small_disk / RUN)
    subprocess.run(["umount", "--lazy", str(small_disk)], check=True)
    line = failed(run)
    assert str(small_disk / RUN) in line
    assert not list(small_disk.iterdir())


def test_images_that_go_away_end_the_run(source, tmp_path):  # noqa: F811
    shutil.copytree(source, tmp_path / "source")
    run = start(tmp_path / "source", tmp_path, *MORE)
    after_an_epoch(run, tmp_path / RUN)
    (tmp_path / "source" / "animals").rename(tmp_path / "elsewhere")
    line = failed(run)
    assert "images of a batch can be read any more" in line and "--resume" in line
    (tmp_path / "elsewhere").rename(tmp_path / "source" / "animals")
    again = start(tmp_path / "source", tmp_path, *MORE)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "goes on after step" in said, said


def test_a_loading_process_that_is_killed(source, tmp_path):  # noqa: F811
    run = start(source, tmp_path, *MORE, "--kernels", "2")
    after_an_epoch(run, tmp_path / RUN)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    line = failed(run)
    assert "a loading process was lost" in line and "--resume" in line
    assert checkpoint.load(tmp_path / RUN / "last.pt")["iteration"] >= 3


@pytest.mark.parametrize("where", [(Trainer, "step"), (Gallery, "search")], ids=["step", "ranks"])
def test_a_gpu_whose_memory_is_full_costs_no_finished_epoch(
    source,  # noqa: F811
    tmp_path,
    monkeypatch,
    where,
):
    """In a step of the second epoch, and in the evaluation after it, then resumed."""
    owner, name = where
    plain, full_at = getattr(owner, name), {"step": 5, "search": 5}[name]
    calls = iter(range(1, 100))

    def filling(*inputs, **named):
        if next(calls) == full_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0")
        return plain(*inputs, **named)

    monkeypatch.setattr(owner, name, filling)
    words = flags(source, tmp_path / "parts", "--evaluation_metrics", "e_recall@1")
    with pytest.raises(OSError, match=r"GPU is full \(.*2.00 GiB\).*--bs.*--resume") as full:
        main.main(words)
    assert "\n" not in str(full.value)
    kept = checkpoint.load(tmp_path / "parts" / RUN / "last.pt")
    assert kept["epoch"] == 1 and kept["iteration"] == {"step": 3, "search": 6}[name]

    monkeypatch.setattr(owner, name, plain)
    main.main([*words, "--resume", *(("--evaluate_on_cpu",) if name == "search" else ())])
    main.main(flags(source, tmp_path / "whole", "--evaluation_metrics", "e_recall@1"))
    assert_same_run(tmp_path / "parts" / RUN, tmp_path / "whole" / RUN)
