"""Runs of main.py on a machine that fails: one clear line, nothing lost, and they are resumed."""

import errno
import fcntl
import importlib
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch

import main
import metrics
from evaluation import image_index, index_files, retrieve
from tests import runs
from tests.runs import RUN, assert_same_run, killed_at, output, rows_of, tiny_run, wait_for_an_epoch
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


def children(run):
    """Return the process ids of a run's loading processes."""
    found = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return [int(child) for child in found]


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


@pytest.mark.parametrize("kernels", [pytest.param("0", marks=pytest.mark.slow), "2"])
def test_images_that_go_away_end_the_run(animals, tmp_path, kernels):
    shutil.copytree(animals, tmp_path / "source")
    run = start(tmp_path / "source", tmp_path, "--kernels", kernels)
    wait_for_an_epoch(run, tmp_path / RUN)
    (tmp_path / "source" / "animals").rename(tmp_path / "elsewhere")
    line = error_of(run)
    assert "images of a batch can be read any more" in line and "--resume" in line
    (tmp_path / "elsewhere").rename(tmp_path / "source" / "animals")
    assert "resuming after epoch" in output(start(tmp_path / "source", tmp_path))


def test_a_loading_process_that_is_killed_ends_the_run(animals, tmp_path):
    run = start(animals, tmp_path, "--kernels", "2")
    wait_for_an_epoch(run, tmp_path / RUN)
    os.kill(children(run)[-1], signal.SIGKILL)
    line = error_of(run)
    assert "a loading process was lost" in line and "--resume" in line
    assert checkpoint.load(tmp_path / RUN / "last.pt")["trainer"]["iteration"] >= 3


OTHER_SIGNALS = [pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGUSR1, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGTERM, *OTHER_SIGNALS])
def test_a_signal_to_all_processes_saves_and_stops(animals, tmp_path, number):
    """As job schedulers send it; the loading processes leave it to the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests
    run = start(animals, tmp_path, "--kernels", "2", "--n_epochs", "2000")
    signal.signal(signal.SIGHUP, before)
    wait_for_an_epoch(run, tmp_path / RUN)
    loading = children(run)
    for process in (*loading, run.pid):
        os.kill(process, number)
    printed = output(run)
    assert len(loading) == 2 and f"stopped by {number.name}; saved in" in printed
    assert "Traceback" not in printed and "was lost" not in printed
    assert checkpoint.load(tmp_path / RUN / "last.pt")["trainer"]["iteration"] >= 3


@pytest.mark.slow
def test_nohup_keeps_a_run_going(animals, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does, and children inherit it
    try:
        run = start(animals, tmp_path, "--n_epochs", "10")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_an_epoch(run, tmp_path / RUN)
    run.send_signal(signal.SIGHUP)
    assert f"run folder: {tmp_path / RUN}" in output(run).splitlines()[-1]


@pytest.mark.slow
def test_a_killed_run_is_resumed_at_once(animals, tmp_path):
    """Its loading processes live on for seconds, without the lock of the run folder."""
    words = ("--kernels", "2", "--n_epochs", "12")
    run = start(animals, tmp_path, *words)
    wait_for_an_epoch(run, tmp_path / RUN)
    loading = children(run)
    run.kill()
    run.wait()
    assert all(Path(f"/proc/{process}").exists() for process in loading)
    assert "resuming after epoch" in output(start(animals, tmp_path, *words))
    run.stdout.close()


@pytest.mark.slow
def test_a_run_in_a_thread(animals, tmp_path):
    main.main(tiny_run(animals, tmp_path / "main", "--kernels", "2"))
    words = tiny_run(animals, tmp_path / "thread", "--kernels", "2")
    thread = threading.Thread(target=main.main, args=[words])
    thread.start()
    thread.join()
    assert_same_run(tmp_path / "thread" / RUN, tmp_path / "main" / RUN)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP])
def test_file_systems_without_locks(animals, tmp_path, monkeypatch, caplog, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    words = tiny_run(animals, tmp_path, "--n_epochs", "1", "--cache_images", "--resume")
    with killed_at(1):
        main.main(words)
    main.main(words)
    assert "cannot be locked" in caplog.text and rows_of(tmp_path / RUN)[-1]["epoch"] == 1


@pytest.mark.slow
def test_data_and_home_that_can_only_be_read(animals, small_disk, tmp_path):
    shutil.copytree(animals, small_disk / "source")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    more = ("--n_epochs", "1", "--cache_images", "--language_distill_w", "2")
    words = tiny_run(small_disk / "source", tmp_path, *more)
    printed = output(runs.start(words, HOME=str(small_disk), XDG_CACHE_HOME=""))
    assert "Set XDG_CACHE_HOME" in printed and f"run folder: {tmp_path / RUN}" in printed


@pytest.mark.slow
def test_what_a_run_writes_follows_the_umask(animals, tmp_path, own_cache):
    mask = 0o027
    before = os.umask(mask)
    try:
        more = ("--n_epochs", "1", "--cache_images", "--language_distill_w", "2", "--tensorboard")
        more += ("--evaluations", "retrieval", "knn")
        main.main(tiny_run(animals, tmp_path / "runs", *more, report=True))
        index = str(tmp_path / "runs" / "index")
        run = str(tmp_path / "runs" / RUN)
        retrieve.main(["index", str(animals / "animals"), "--checkpoint", run, "--index", index])
    finally:
        os.umask(before)
    written = [*(tmp_path / "runs").rglob("*"), *own_cache.rglob("*")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in written}
    right = {path: (0o777 if path.is_dir() else 0o666) & ~mask for path in modes}
    assert len(modes) > 30 and {"last.pt", "report.html"} <= {path.name for path in modes}
    # SQLite and locks never have more than these.
    least = {path: mode & 0o644 for path, mode in right.items()}
    assert not {p: oct(m) for p, m in modes.items() if m != right[p] and m != least[p]}


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
    # The evaluation before training searches a third time, by the backbone's features.
    last = 6 if name == "rank" else 5

    def filling(*inputs, **named):
        if next(calls) == last:
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


@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.slow), ("--cache_images",)])
def test_a_temporary_folder_whose_path_is_too_long_is_named(animals, tmp_path, more):
    """Loading processes could not open their sockets, and the run waited forever."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    run = runs.start(tiny_run(animals, tmp_path, "--kernels", "2", *more), TMPDIR=str(folder))
    line = error_of(run)
    assert f"{folder} is too long" in line and "TMPDIR" in line and "--kernels 0" in line


@pytest.fixture(scope="module")
def trained(animals, tmp_path_factory):
    """The folder of a run."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        main.main(tiny_run(animals, place, "--n_epochs", "1", "--no_train_metrics"))
    return place / RUN


def test_a_full_disk_leaves_the_index_as_it_was(animals, small_disk, trained, tmp_path, capsys):
    pictures, where = tmp_path / "pictures", small_disk / "index"
    shutil.copytree(animals / "animals" / "images" / "tabby", pictures)
    words = ["index", str(pictures), "--checkpoint", str(trained), "--index", str(where)]
    retrieve.main(words)
    shutil.copytree(animals / "animals" / "images" / "eagle", pictures / "more")
    with pytest.raises(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        retrieve.main(words)
    told = capsys.readouterr().err
    assert end.value.code == 2 and "error: [Errno 28] No space left on device" in told
    assert "Traceback" not in told and len(image_index.read_index(where).embedded.files) == 6
    (small_disk / "ballast").unlink()
    retrieve.main(words)
    assert {path.name for path in where.iterdir()} == {image_index.INDEX, index_files.QUICK}
    assert len(image_index.read_index(where).embedded.files) == 12


TOOLS = {  # module, what fails in it, and its words
    "evaluation.retrieve": ("run_index", ["index", "x", "--checkpoint", __file__, "--index", "z"]),
    "language.neighbours": ("open_images", ["--dataset", "x"]),
    "datasets.caption_index.__main__": ("build", ["x"]),
    "datasets.openclipart.__main__": ("prepare", []),
    "datasets.check": ("examine", ["x"]),
    "utilities.search.__main__": (
        "open_study",
        ["--study", "s", "--space", "lr=0.1..0.2", "--", "--dataset", "x", "--source_path", "x"],
    ),
}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "the memory of this machine is full"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "memory of the GPU"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "was lost"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
    ],
    ids=["memory", "gpu", "worker", "files", "disk"],
)
@pytest.mark.parametrize("module", TOOLS)
def test_commands_report_the_machine_in_one_line(
    module, error, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    name, words = TOOLS[module]
    command = importlib.import_module(module)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(command, name, fail)
    with pytest.raises(SystemExit) as end:
        command.main(words)
    [line] = re.findall(r"error: .*", capsys.readouterr().err)
    assert end.value.code == 2 and told in line and "--resume" not in line
