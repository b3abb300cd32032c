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

from tests.test_main import own_cache, source  # noqa: F401 - fixtures
from tests.test_resume import assert_same_run, start
from utilities import checkpoint

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
