"""main.py under torchrun: two processes end within rounding of one, and one of them writes."""

import re
import shlex

import pytest
import torch

import main
from tests.runs import RUN, output, rows_of, start, tiny_run, wait_for_an_epoch
from utilities import checkpoint

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")

# BatchNorm that trains would normalise over a share: torch has no SyncBatchNorm for CPUs.
FROZEN = ("--arch", "test_resnet_frozen_normalize")


SOME = "--language_distill_w 2 --language_delay 2 --evaluations retrieval knn"
OTHERS = (
    "--language_proxy_w 0.3 --language_delay 2",
    "--loss supcon --cache_images --kernels 2 --optim sgd",
    "--loss margin --data_sampler fid_batchmatch --data_batchmatch_bigbs 16",
    "--loss supcon --forward_bs 3 --grad_checkpointing --clip_grad 0.5 --ema 0.5",
)


@pytest.mark.parametrize(
    "more", [SOME, *(pytest.param(flags, marks=pytest.mark.slow) for flags in OTHERS)]
)
def test_two_processes_train_as_one(animals, tmp_path, more):
    more = (*FROZEN, *more.split())
    two = start(tiny_run(animals, tmp_path / "two", *more), n_processes=2)
    main.main(tiny_run(animals, tmp_path / "one", *more))
    printed = output(two)
    assert [path.name for path in (tmp_path / "two" / "animals").iterdir()] == ["default_s0"]
    assert printed.count("run folder") == 2  # at the beginning and at the end, by one process
    one, two = tmp_path / "one" / RUN, tmp_path / "two" / RUN
    for row, other in zip(rows_of(one), rows_of(two), strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-5)
    first, second = (checkpoint.load(folder / "last.pt")["embedder"] for folder in (one, two))
    torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-4)


def test_stopped_processes_save_once(animals, tmp_path):
    """SIGTERM to torchrun reaches them all."""
    more = (*FROZEN, "--n_epochs", "400", "--evaluate_every", "400")
    run = start(tiny_run(animals, tmp_path, *more), n_processes=2)
    folder = tmp_path / RUN
    wait_for_an_epoch(run, folder)
    run.terminate()
    printed, _ = run.communicate(timeout=120)  # torchrun's own exit status is not 0
    [command] = re.findall(r"stopped by SIGTERM; saved in .* Resume with: (.*)", printed)
    assert command == shlex.join([*run.args, "--resume"])  # torchrun's with its arguments
    saved = checkpoint.load(folder / "last.pt")
    assert 3 <= saved["trainer"]["iteration"] < 1200
    assert not any(path.name.startswith(".last") for path in folder.iterdir())


@pytest.mark.slow
def test_evaluation_makes_one_folder(animals, tmp_path):
    main.main(tiny_run(animals, tmp_path, *FROZEN, "--n_epochs", "1"))
    words = (
        "--evaluate_only",
        "--checkpoint",
        str(tmp_path / RUN),
        "--kernels",
        "0",
        "--no_report",
    )
    run = start([*words, "--save_path", str(tmp_path / "evaluated")], n_processes=3)
    assert output(run).count("run folder") == 1
    folders = [path.name for path in (tmp_path / "evaluated" / "animals").iterdir()]
    assert folders == ["default_s0_evaluation"]
