"""--dry_run: all of a run in small, of every kind of run, and nothing left behind."""

import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest

import main
from tests import test_main_captions as with_captions
from tests.runs import ANIMALS, ROOT, tiny_run

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")
captioned = with_captions.source

ALL_METRICS = [
    "recall@1", "c_recall@3", "precision@2", "R_precision", "mAP", "mAP@R", "mAP_1000", "mAP_c",
    "mAP_lim", "MRR", "nmi", "ami", "f1", "group_recall@1", "wrong_word_similarity@2",
    "wrong_group_share@2", "intra_distance", "inter_distance", "intra_over_inter", "alignment",
    "uniformity", "rho_spectrum@1",
]  # fmt: skip


def test_a_dry_run_tries_everything_and_leaves_nothing(animals, tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words = tiny_run(
        animals,
        tmp_path / "runs",
        *("--dry_run", "--resume", "--wandb_mode", "online", "--tensorboard", "--n_epochs", "9"),
        *("--language_distill_w", "2", "--language_delay", "1000", "--no_train_metrics"),
        *("--bs", "4", "--evaluate_every", "5"),
        *("--evaluation_language_model", str(animals / "words.txt")),
        *("--evaluations", "retrieval", "linear_probe", "fewshot", "knn"),
        *("--evaluation_metrics", *ALL_METRICS),
        report=True,
    )
    scores = main.main(words)
    assert sum(name.startswith("test/embeds/") for name in scores) == len(ALL_METRICS) + 1
    assert all(np.isfinite(value) for value in scores.values())
    assert scores["train/loss_match"] > 0 and scores["animals/linear_probe"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not (tmp_path / "cache" / "language_guided_similarity" / "features").exists()
    assert caplog.messages[-1].startswith("dry run: ok, ")
    assert "length: 9 epochs, 54 steps in total" in caplog.text
    assert "run folder: none, a dry run" in caplog.text and str(tmp_path) not in caplog.text


def test_a_dry_run_meets_what_a_run_would_meet_at_its_end(animals, tmp_path):
    """Few-shot of five ways, of a set that has four classes."""
    for name in ANIMALS[:4]:
        shutil.copytree(animals / "animals" / "images" / name, tmp_path / "few" / "images" / name)
    more = ("--dry_run", "--dataset", "few", "--source_path", str(tmp_path), "--bs", "4")
    with pytest.raises(ValueError, match=r"5 ways .* need 5 classes of 6 images"):
        main.main(tiny_run(animals, tmp_path / "runs", *more, "--evaluations", "fewshot"))
    assert not (tmp_path / "runs").exists()


def test_an_evaluation_can_be_dry_too(animals, tmp_path, caplog):
    main.main(tiny_run(animals, tmp_path, "--n_epochs", "0"))
    only = ["--evaluate_only", "--checkpoint", str(tmp_path / "animals" / "default_s0")]
    (tmp_path / "animals" / "default_s0" / "last.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no last\.pt"):
        main.main([*only, "--dry_run"])
    main.main(tiny_run(animals, tmp_path, "--n_epochs", "1", "--group", "one"))
    only[-1] = str(tmp_path / "animals" / "one_s0")
    scores = main.main([*only, "--dry_run", "--evaluation_metrics", "mAP@R"])
    assert set(scores) == {"test/embeds/mAP@R", "train/embeds/mAP@R"}
    assert {path.name for path in (tmp_path / "animals").iterdir()} == {"default_s0", "one_s0"}
    assert caplog.messages[-1].startswith("dry run: ok, ")


@pytest.mark.parametrize(
    "more",
    [
        "--evaluations retrieval fewshot knn linear_probe",
        "--evaluations retrieval --data_sampler language_pairs",
        "--evaluations retrieval --loss swav",
    ],
)
def test_a_run_without_labels_can_be_dry(captioned, tmp_path, caplog, more):
    """Its labelled sets are cut, and so are those of the classifiers; its views are drawn."""
    words = with_captions.flags(
        captioned, tmp_path / "runs", "--dry_run", *more.split(), length=("--n_epochs", "5")
    )
    words.remove("--no_report")
    scores = main.main(words)
    judged = {"shades/fewshot_5w5s", "shades/linear_probe"}
    assert judged & {*scores} == (judged if "fewshot" in more else set())
    assert 0 <= scores["shades/features/e_recall@1"] <= 1 and np.isfinite(scores["train/loss"])
    assert "length: 5 epochs, 15 steps in total" in caplog.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [("main.py",), ("-m", "utilities.search")], ids=" ".join)
def test_help_writes_nothing(tmp_path, command):
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(tmp_path))
    environment = os.environ | places | {"PYTHONPATH": str(ROOT)}
    words = [str(ROOT / "main.py") if word == "main.py" else word for word in command]
    subprocess.run(
        [sys.executable, *words, "--help"],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    assert not list(tmp_path.iterdir())
