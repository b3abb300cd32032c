"""A run that is stopped anywhere ends as the run that was not, bit for bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tests.kills import MOMENTS, whole
from tests.test_main import flags, own_cache, source  # noqa: F401 - fixtures
from utilities import checkpoint
from utilities.trainer import Trainer

ROOT = Path(__file__).parents[1]
TIMED = ("train/images_per_second", "train/waiting_for_data")
HARD = [  # what a next step may depend on beside the weights
    ("--loss", "margin", "--batch_mining", "distance", "--xbm_size", "16", "--xbm_start", "2"),
    ("--language_distill_w", "2", "--language_delay", "4", "--store_improvements"),
    ("--data_sampler", "fid_batchmatch", "--data_batchmatch_bigbs", "16", "--kernels", "2"),
    ("--loss", "s2sd", "--loss_s2sd_target_dims", "12", "--scheduler", "cosine", "--optim", "sgd"),
    ("--loss", "margin", "--batch_mining", "parametric", "--use_tv_split", "--tv_split_perc",
     "0.5", "--bs", "4"),
    ("--loss", "byol", "--loss_byol_hidden_dim", "8", "--loss_byol_proj_dim", "6"),
    ("--loss", "nnclr", "--loss_nnclr_hidden_dim", "8", "--loss_nnclr_proj_dim", "6",
     "--loss_nnclr_pred_dim", "8", "--loss_nnclr_queue_size", "20"),
    ("--precision", "bf16", "--scheduler", "warmup_cosine",
     "--evaluations", "retrieval", "fewshot"),
]  # fmt: skip


class Killed(BaseException):
    """Stands for what no handler sees."""


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in TIMED} for row in rows]


def same(one, other):
    """Whether two nested parts of checkpoints are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) or bool((one.isnan() == other.isnan()).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def assert_same_run(folder, whole):
    assert rows_of(folder) == rows_of(whole)
    last, expected = (checkpoint.load(path / "last.pt") for path in (folder, whole))
    for part in expected:
        if part != "flags":
            assert same(last[part], expected[part]), part
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("more", HARD, ids=" ".join)
def test_what_a_run_depends_on_is_kept(source, tmp_path, monkeypatch, more):  # noqa: F811
    """Killed after its fourth step, in the middle of the second epoch, and after its last."""
    more = ("--checkpoint_every", "1", *more)
    main.main(flags(source, tmp_path / "whole", *more))
    step = Trainer.step

    def killed_at(number):
        def stepping(self, *inputs):
            if self.iteration == number:
                raise Killed
            return step(self, *inputs)

        monkeypatch.setattr(Trainer, "step", stepping)
        with pytest.raises(Killed):
            main.main(flags(source, tmp_path / "parts", *more, "--resume"))

    killed_at(1)
    killed_at(4)
    monkeypatch.setattr(Trainer, "step", step)
    main.main(flags(source, tmp_path / "parts", *more, "--resume"))
    name = Path("animals") / "default_s0"
    assert_same_run(tmp_path / "parts" / name, tmp_path / "whole" / name)


def start(source, save_path, *more):  # noqa: F811
    command = [sys.executable, "main.py", *flags(source, save_path, "--resume", *more, report=True)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_killed_at_any_of_these_moments_a_run_goes_on(source, tmp_path):  # noqa: F811
    """While data are prepared, in training and evaluation, in the midst of every file it writes."""
    more = ("--resume", "--cache_images", "--checkpoint_every", "2", "--language_distill_w", "3")
    words = [*flags(source, tmp_path, *more, report=True)]
    for place in ("--source_path", "--save_path"):
        at = words.index(place)
        del words[at : at + 2]
    command = [sys.executable, "-m", "tests.kills", str(source), str(tmp_path), *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr[-6000:]
    run = Path("animals") / "default_s0"
    for moment in MOMENTS:
        assert_same_run(tmp_path / moment / run, tmp_path / whole(moment) / run)


LONG = ("--n_epochs", "12", "--evaluate_every", "3", "--checkpoint_every", "2",
        "--language_distill_w", "3")  # fmt: skip


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(source, tmp_path):  # noqa: F811
    """In start-up, training, evaluation, writing, wherever the moment falls."""
    rng = np.random.default_rng(0)
    begin = time.monotonic()
    whole = start(source, tmp_path / "whole", *LONG)
    said, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, said
    length = time.monotonic() - begin
    for _ in range(10):
        killed = start(source, tmp_path / "parts", *LONG)
        try:
            killed.wait(length * rng.uniform(0.5, 1.0))
        except subprocess.TimeoutExpired:
            os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    last = start(source, tmp_path / "parts", *LONG)
    said, _ = last.communicate(timeout=600)
    assert last.returncode == 0, said
    name = Path("animals") / "default_s0"
    assert_same_run(tmp_path / "parts" / name, tmp_path / "whole" / name)


def test_sigterm_saves_says_how_to_go_on_and_ends_well(source, tmp_path):  # noqa: F811
    more = ("--n_epochs", "2000", "--evaluate_every", "2000", "--checkpoint_every", "0")
    run = start(source, tmp_path, *more)
    folder = tmp_path / "animals" / "default_s0"
    while not (folder / "last.pt").is_file():  # the end of the first epoch
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert "Traceback" not in said
    [command] = re.findall(r"stopped by SIGTERM; saved in .*last.pt. Go on with: (.*)", said)
    assert command.startswith("python main.py ") and "--resume" in command
    saved = checkpoint.load(folder / "last.pt")
    assert saved["iteration"] >= 3
    assert len(rows_of(folder)) == saved["epoch"] + 1


def test_a_run_goes_on_only_under_its_own_flags(source, tmp_path, monkeypatch):  # noqa: F811
    main.main(flags(source, tmp_path, "--n_epochs", "1"))
    (tmp_path / "animals" / "default_s0" / "before.pt").touch()  # as if its report were missing
    with pytest.raises(ValueError, match=r"--resume: .* --lr 0.001 \(now 0.5\)"):
        main.main(flags(source, tmp_path, "--n_epochs", "1", "--resume", "--lr", "0.5"))


def test_a_finished_run_has_nothing_left_to_do(source, tmp_path, capsys):  # noqa: F811
    main.main(flags(source, tmp_path, "--n_epochs", "1"))
    with pytest.raises(SystemExit) as end:
        main.main(flags(source, tmp_path, "--n_epochs", "1", "--resume"))
    assert not end.value.code and "is finished" in capsys.readouterr().out
