"""main.py under torchrun: two processes end within rounding of one, and one of them writes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
from tests.test_main import flags, own_cache, source  # noqa: F401 - fixtures
from utilities import checkpoint

ROOT = Path(__file__).parents[1]
# BatchNorm that trains would normalise over a share: torch has no SyncBatchNorm for CPUs.
FROZEN = ("--arch", "test_resnet_frozen_normalize")
NAME = Path("animals") / "default_s0"


def torchrun(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "main.py", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more",
    [
        ("--language_distill_w", "2", "--language_delay", "2", "--evaluations", "retrieval", "knn"),
        ("--loss", "supcon", "--cache_images", "--kernels", "2", "--optim", "sgd"),
        ("--loss", "margin", "--data_sampler", "fid_batchmatch", "--data_batchmatch_bigbs", "16"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_two_processes_train_as_one(source, tmp_path, more):  # noqa: F811
    more = (*FROZEN, *more)
    main.main(flags(source, tmp_path / "one", *more))
    done = torchrun(*flags(source, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "two" / "animals").iterdir()] == ["default_s0"]
    assert done.stderr.count("run folder") == 2  # as it begins and as it ends, by one process
    one, two = (rows_of(tmp_path / which / NAME) for which in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"train/images_per_second", "train/waiting_for_data"}:
            assert other[name] == pytest.approx(row[name], rel=1e-3, abs=1e-5), name
    first, second = (
        checkpoint.load(tmp_path / which / NAME / "last.pt")["embedder"] for which in ("one", "two")
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


def test_processes_that_are_told_to_stop_save_once_and_go_on(source, tmp_path):  # noqa: F811
    """SIGTERM to torchrun reaches them all; resumed, they end where one process ends."""
    more = (*FROZEN, "--n_epochs", "400", "--evaluate_every", "400")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.Popen(
        [*command, "main.py", *flags(source, tmp_path, *more)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    folder = tmp_path / NAME
    while not (folder / "last.pt").is_file():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    run.terminate()
    said = run.communicate(timeout=120)[1]
    assert said.count("stopped by SIGTERM; saved in") == 1, said
    saved = checkpoint.load(folder / "last.pt")
    assert 3 <= saved["iteration"] < 1200
    assert not any(path.name.startswith(".last") for path in folder.iterdir())
