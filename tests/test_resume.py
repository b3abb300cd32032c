"""A run that is stopped anywhere ends as the run that was not, bit for bit."""

import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch

import main
from evaluation.session import EvaluationSession
from tests.crash_resume import MOMENTS, whole
from tests.runs import (
    MANY,
    ROOT,
    RUN,
    Killed,
    assert_same_run,
    killed_at,
    output,
    rows_of,
    same,
    start,
    tiny_run,
    wait_for_an_epoch,
    without_times,
    write_animals,
)
from utilities import checkpoint

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")

HARD = [  # what a next step may depend on beside the weights
    ("--loss", "margin", "--batch_mining", "distance", "--xbm_size", "16", "--xbm_start", "2"),
    ("--language_distill_w", "2", "--language_delay", "4", "--store_improvements"),
    ("--language_proxy_w", "0.03", "--language_proxy_vectors", "free", "--loss", "contrastive"),
    pytest.param(
        ("--data_sampler", "fid_batchmatch", "--data_batchmatch_bigbs", "16", "--kernels", "2"),
        marks=pytest.mark.slow,
    ),
    ("--loss", "s2sd", "--loss_s2sd_target_dims", "12", "--scheduler", "cosine", "--optim", "sgd"),
    ("--loss", "margin", "--batch_mining", "parametric", "--use_tv_split", "--tv_split_perc",
     "0.5", "--bs", "4"),
    ("--loss", "byol", "--loss_byol_hidden_dim", "8", "--loss_byol_proj_dim", "6"),
    ("--loss", "nnclr", "--loss_nnclr_hidden_dim", "8", "--loss_nnclr_proj_dim", "6",
     "--loss_nnclr_pred_dim", "8", "--loss_nnclr_queue_size", "20"),
    ("--ema", "0.9", "--clip_grad", "0.5", "--grad_checkpointing", "--loss", "supcon"),
    ("--loss", "byol", "--loss_byol_hidden_dim", "8", "--loss_byol_proj_dim", "6",
     "--forward_bs", "3", "--arch", "test_resnet_frozen_normalize"),
    ("--patience", "2", "--n_epochs", "6", "--use_tv_split", "--tv_split_perc", "0.5", "--bs", "4",
     "--evaluations", "retrieval", "fewshot"),
    ("--precision", "bf16", "--scheduler", "warmup_cosine",
     "--evaluations", "retrieval", "fewshot"),
]  # fmt: skip


@pytest.mark.parametrize("more", HARD, ids=" ".join)
def test_what_a_run_depends_on_is_kept(animals, tmp_path, more):
    """Killed after its first step, and after its fourth, in the middle of the second epoch."""
    assert_kept(animals, tmp_path, *more)


def test_a_resumed_run_searches_by_words_with_the_same_map(tmp_path):
    """Of class vectors read from words, whose guidance starts between the two kills."""
    source = write_animals(tmp_path / "source", MANY)
    assert_kept(source, tmp_path, "--language_proxy_w", "0.3", "--language_delay", "3")
    assert (tmp_path / "parts" / RUN / "last.words.safetensors").is_file()
    assert "test/words/word_mAP" in rows_of(tmp_path / "whole" / RUN)[-1]


def assert_kept(animals, tmp_path, *more):
    more = ("--checkpoint_every", "1", *more)
    main.main(tiny_run(animals, tmp_path / "whole", *more))
    for step in (1, 4):
        with killed_at(step):
            main.main(tiny_run(animals, tmp_path / "parts", *more, "--resume"))
    main.main(tiny_run(animals, tmp_path / "parts", *more, "--resume"))
    assert_same_run(tmp_path / "parts" / RUN, tmp_path / "whole" / RUN)


def test_a_difference_of_one_bit_is_seen():
    one = {"a": [torch.tensor([1.0, torch.nan]), 2, torch.nan], "b": None}
    assert same(one, {"a": [torch.tensor([1.0, torch.nan]), 2, torch.nan], "b": None})
    for tensor in ([1 + 1e-7, torch.nan], [1.0, 0.0], [torch.nan, torch.nan], [1.0], [[1.0]]):
        assert not same(one, {"a": [torch.tensor(tensor), 2, torch.nan], "b": None})


def test_a_run_killed_at_any_of_these_moments_is_resumed(animals, tmp_path):
    """While data are prepared, in training and evaluation, and during every write."""
    more = ("--resume", "--cache_images", "--checkpoint_every", "2", "--language_distill_w", "3")
    words = tiny_run(animals, tmp_path, *more, report=True)
    for place in ("--source_path", "--save_path"):
        at = words.index(place)
        del words[at : at + 2]
    command = [sys.executable, "-m", "tests.crash_resume", str(animals), str(tmp_path), *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr[-6000:]
    for moment in MOMENTS:
        assert_same_run(tmp_path / moment / RUN, tmp_path / whole(moment) / RUN)


def test_a_patient_run_killed_before_its_report_ends_at_the_same_epoch(
    animals, tmp_path, monkeypatch, caplog
):
    """Nothing rises above a perfect score, so that it stops after three of its six epochs."""
    more = ("--patience", "2", "--n_epochs", "6", "--use_tv_split", "--tv_split_perc", "0.5")
    more += ("--bs", "4", "--resume", "--evaluations", "retrieval", "fewshot")
    whole, parts = (tiny_run(animals, tmp_path / name, *more) for name in ("whole", "parts"))
    scores = main.main(whole)
    assert "stopped by --patience 2: no new best val/embeds/e_recall@1" in caplog.text
    with monkeypatch.context() as patched:
        patched.setattr(EvaluationSession, "report", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main.main(parts)
    assert without_times(main.main(parts)) == without_times(scores)
    assert any("fewshot" in name for name in scores)
    assert_same_run(tmp_path / "parts" / RUN, tmp_path / "whole" / RUN)
    assert [row["epoch"] for row in rows_of(tmp_path / "whole" / RUN)] == [0, 1, 2, 3]
    with pytest.raises(SystemExit) as end:
        main.main(whole)
    assert not end.value.code


def test_a_run_of_no_epochs_that_was_killed_is_evaluated_again(animals, tmp_path, monkeypatch):
    """Its checkpoint is what it began with, so nothing is lost."""
    more = ("--n_epochs", "0", "--resume", "--evaluations", "retrieval", "fewshot")
    whole, parts = (
        tiny_run(animals, tmp_path / name, *more, report=True) for name in ("whole", "parts")
    )
    main.main(whole)
    with monkeypatch.context() as patched:
        patched.setattr(EvaluationSession, "report", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main.main(parts)
    assert (tmp_path / "parts" / RUN / "last.pt").is_file()
    main.main(parts)
    assert_same_run(tmp_path / "parts" / RUN, tmp_path / "whole" / RUN)
    assert [row["epoch"] for row in rows_of(tmp_path / "parts" / RUN)] == [0]


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(tmp_path):
    """Twenty-two configurations, killed four times each, wherever the moment falls."""
    command = [sys.executable, "-m", "tests.random_kills", str(tmp_path), "--kills", "4"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-6000:]
    assert "88 kills resumed, 0 configurations failed" in ended.stdout


def test_sigterm_saves_names_the_command_that_resumes_and_exits_with_0(animals, tmp_path):
    more = ("--n_epochs", "2000", "--evaluate_every", "2000", "--checkpoint_every", "0")
    run = start(tiny_run(animals, tmp_path, *more, "--resume"))
    wait_for_an_epoch(run, tmp_path / RUN)
    run.send_signal(signal.SIGTERM)
    printed = output(run)
    assert "Traceback" not in printed
    [command] = re.findall(r"stopped by SIGTERM; saved in .*last.pt. Resume with: (.*)", printed)
    assert command == shlex.join(run.args)  # which has --resume
    saved = checkpoint.load(tmp_path / RUN / "last.pt")
    assert saved["trainer"]["iteration"] >= 3
    assert len(rows_of(tmp_path / RUN)) == saved["epoch"] + 1


def test_only_an_unfinished_run_of_the_same_flags_is_resumed(animals, tmp_path, capsys):
    words = tiny_run(animals, tmp_path, "--n_epochs", "1")
    main.main(words)
    with pytest.raises(SystemExit) as end:
        main.main([*words, "--resume"])
    assert not end.value.code and "is finished" in capsys.readouterr().out
    config = tmp_path / RUN / "config.json"
    config.write_text(re.sub('"finished": ".*"', '"finished": null', config.read_text()))
    with pytest.raises(ValueError, match=r"--resume: .* --lr 0.001 \(now 0.5\)"):
        main.main([*words, "--resume", "--lr", "0.5"])
