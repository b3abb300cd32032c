"""main.py end to end on a miniature dataset, and what it says when something is wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
import parameters
from utilities import checkpoint

ROOT = Path(__file__).parents[1]
CLASSES = (
    "red fox",
    "gray wolf",
    "kit fox",
    "barn owl",
    "snowy owl",
    "house cat",
    "tabby",
    "eagle",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight classes of six pictures, each class a colour with noise."""
    source = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        folder = source / "animals" / "images" / name
        folder.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for image in range(6):
            noise = rng.integers(-40, 40, (40, 48, 3))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}_{image}.jpg")
    groups = {name: {"name": name, "group": name.split()[-1]} for name in CLASSES}
    (source / "animals" / "classes.json").write_text(json.dumps(groups))
    vectors = source / "words.txt"
    words = sorted({word for name in CLASSES for word in name.split()})
    vectors.write_text(
        "".join(f"{word} {' '.join(map(str, rng.normal(size=8)))}\n" for word in words)
    )
    return source


def flags(source, save_path, *more, report=False):
    """A run of seconds: timm's test network from scratch at 32 px."""
    if not report:
        more += ("--no_report",)
    return [
        *("--dataset", "animals", "--source_path", str(source), "--save_path", str(save_path)),
        *("--arch", "test_resnet_normalize", "--not_pretrained", "--image_size", "32"),
        *("--embed_dim", "16", "--bs", "8", "--kernels", "0", "--n_epochs", "2", "--lr", "1e-3"),
        *("--language_model", str(source / "words.txt"), "--language_prompt", "{}"),
        *("--loss", "multisimilarity", *more),
    ]


def last_row(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Texts are embedded anew for each test, into its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_run_leaves_all_that_it_promises(source, tmp_path, caplog):
    scores = main.main(flags(source, tmp_path, "--language_distill_w", "7.5", "--group", "guided"))
    folder = tmp_path / "animals" / "guided_s0"
    names = {path.name for path in folder.iterdir()}
    best = "best_test_embeds_e_recall@1.pt"
    assert {"config.json", "metrics.jsonl", "metrics.csv", "log.txt", "curves.png"} <= names
    assert {"last.pt", best} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["language_distill_w"] == 7.5
    assert config["packages"]["torch"] == torch.__version__.partition("+")[0]

    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [0, 1, 2]
    row = last_row(folder)
    assert row["test/embeds/e_recall@1"] == scores["test/embeds/e_recall@1"]
    assert row["train/loss"] == pytest.approx(
        row["train/loss_dml"] + 7.5 * row["train/loss_match"], rel=1e-5
    )
    kept = checkpoint.load(folder / "last.pt")
    assert kept["epoch"] == 2 and kept["iteration"] == 6
    best_epoch = checkpoint.load(folder / best)["epoch"]
    recalls = [json.loads(row)["test/embeds/e_recall@1"] for row in rows]
    assert recalls[best_epoch] == max(recalls[1:])
    assert f"run folder: {folder}" in caplog.text
    assert "0 images" not in caplog.text and "24 images of 4 classes" in caplog.text


def test_a_checkpoint_scores_as_it_did_in_training(source, tmp_path):
    """To the last digit, on the sets it was scored on; under other flags where these are given."""
    more = ("--embed_dim", "8", "--evaluation_metrics", "e_recall@1", "mAP", "nmi", "--seed", "3")
    trained = main.main(flags(source, tmp_path, *more, report=True))
    folder = tmp_path / "animals" / "default_s3"
    only = ["--evaluate_only", "--checkpoint", str(folder), "--save_path", str(tmp_path)]
    again = main.main(only)
    measured = {name: value for name, value in trained.items() if not name.startswith("train/l")}
    measured = {name: value for name, value in measured.items() if "/embeds/" in name}
    assert len(measured) == 6 and again == measured
    evaluated = tmp_path / "animals" / "default_s3_evaluation"
    assert last_row(evaluated)["epoch"] == 2
    assert {"classes_test.csv", "classes_train.csv", "config.json", "report.html"} <= {
        path.name for path in evaluated.iterdir()
    }
    assert not (evaluated / "last.pt").exists()

    other = main.main([*only, "--no_train_metrics", "--evaluation_metrics", "MRR", "--no_report"])
    assert set(other) == {"test/embeds/MRR"}
    with pytest.raises(ValueError, match=r"--embed_dim must be 8, as .* was trained; got 16"):
        main.main([*only, "--embed_dim", "16"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        main.main(["--evaluate_only", "--checkpoint", "nowhere"])


def test_a_run_ends_with_a_report(source, tmp_path):
    main.main(flags(source, tmp_path, "--n_epochs", "1", report=True))
    folder = tmp_path / "animals" / "default_s0"
    assert {"report.html", "retrieval.png", "similarities.png", "map.png"} <= {
        path.name for path in folder.iterdir()
    }
    page = (folder / "report.html").read_text()
    assert "snowy owl" in page and "http://" not in page and "https://" not in page


def short(source, save_path, *more):
    """One epoch of three batches."""
    measured = ("--no_train_metrics", "--evaluation_metrics", "e_recall@1")
    return flags(source, save_path, "--n_epochs", "1", *measured, *more)


@pytest.mark.parametrize("loss", parameters.LABEL_LOSSES)
def test_every_objective_trains_under_guidance(source, tmp_path, loss):
    scores = main.main(short(source, tmp_path, "--loss", loss, "--language_distill_w", "7.5"))
    assert np.isfinite(scores["train/loss_dml"])
    assert scores["train/loss_match"] > 0


@pytest.mark.parametrize("sampler", (*parameters.CLASS_SAMPLERS, "random"))
def test_every_sampler_feeds_a_guided_run(source, tmp_path, sampler):
    more = ("--data_sampler", sampler, "--data_batchmatch_bigbs", "16", "--n_epochs", "2")
    scores = main.main(short(source, tmp_path, *more, "--language_distill_w", "7.5"))
    assert np.isfinite(scores["train/loss_dml"])
    assert scores["train/loss_match"] > 0


@pytest.mark.parametrize("miner", parameters.MINERS)
def test_every_miner_mines(source, tmp_path, miner):
    more = ("--loss", "margin", "--batch_mining", miner)
    if miner == "parametric":
        more += ("--use_tv_split", "--tv_split_perc", "0.5", "--bs", "4")
        more += ("--miner_parametric_every", "2")
    scores = main.main(short(source, tmp_path, *more))
    assert np.isfinite(scores["train/loss_dml"])


def test_a_memory_of_earlier_batches(source, tmp_path):
    more = ("--loss", "supcon", "--xbm_size", "16", "--xbm_start", "1")
    scores = main.main(short(source, tmp_path, *more))
    assert np.isfinite(scores["train/loss_dml"])
    kept = checkpoint.load(tmp_path / "animals" / "default_s0" / "last.pt")
    assert any(part.shape == (16, 16) for part in kept["criterion"].values() if part is not None)


def test_the_same_flags_give_the_same_numbers(source, tmp_path):
    more = ("--language_distill_w", "3", "--loss", "margin", "--seed", "4")
    one = main.main(flags(source, tmp_path / "one", *more))
    two = main.main(flags(source, tmp_path / "two", *more, "--kernels", "2"))
    timed = {"train/images_per_second", "train/waiting_for_data"}
    assert {k: v for k, v in one.items() if k not in timed} == {
        k: v for k, v in two.items() if k not in timed
    }


def test_a_second_run_of_one_name_takes_another_folder(source, tmp_path):
    for _ in range(2):
        main.main(flags(source, tmp_path, "--n_epochs", "0", "--savename", "mine"))
    assert {path.name for path in (tmp_path / "animals").iterdir()} == {"mine", "mine_2"}


def test_language_delay_counts_iterations(source, tmp_path):
    """Three iterations an epoch: with a delay of 4 guidance starts within epoch 2."""
    more = ("--language_distill_w", "5", "--language_delay", "4", "--group", "late")
    main.main(flags(source, tmp_path, *more))
    rows = (tmp_path / "animals" / "late_s0" / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(row) for row in rows[1:])
    assert "train/loss_match" not in first and second["train/loss_match"] > 0


@pytest.mark.parametrize(
    "more",
    [
        ("--loss", "triplet", "--batch_mining", "semihard", "--evaltypes", "embeds", "features"),
        ("--loss", "margin", "--loss_margin_nu", "0.1", "--optim", "sgd", "--scheduler", "cosine"),
        ("--data_sampler", "class_related", "--data_related_classes", "2", "--warmup", "1"),
        ("--data_sampler", "random", "--use_float16", "--augmentation", "adv"),
        ("--language_control", "permuted", "--language_distill_dir", "forward"),
        ("--language_control", "uniform", "--augmentation", "big", "--tau", "1", "--gamma", "0.1"),
        ("--use_tv_split", "--tv_split_perc", "0.5", "--bs", "4", "--store_improvements"),
        ("--use_tv_split", "--tv_split_by_samples", "--no_test_metrics", "--no_train_metrics"),
        ("--evaluation_metrics", "mAP", "c_recall@3", "R_precision", "f1", "--optim", "adamw"),
    ],
    ids=" ".join,
)
def test_flags_that_change_the_run(source, tmp_path, more):
    scores = main.main(flags(source, tmp_path, "--language_distill_w", "2", *more))
    assert np.isfinite(scores["train/loss"])
    assert any(name.endswith("e_recall@1") for name in scores)


def test_semantic_scores_read_words_and_groups(source, tmp_path):
    names = ["wrong_word_similarity@2", "wrong_group_share@2"]
    more = ("--evaluation_metrics", *names, "--evaluation_language_model")
    scores = main.main(flags(source, tmp_path, *more, str(source / "words.txt")))
    assert -1 <= scores[f"test/embeds/{names[0]}"] <= 1
    assert 0 <= scores[f"test/embeds/{names[1]}"] <= 1


@pytest.mark.packages
def test_pseudolabels_are_kept(source, tmp_path, monkeypatch):
    more = ("--language_distill_w", "2", "--language_pseudoclass", "--n_epochs", "1")
    more = (*more, "--language_model", "minilm")
    more = (*more, "--language_pseudoclass_model", "efficientnet_lite0")
    one = main.main(flags(source, tmp_path, *more))
    monkeypatch.setattr(main.architectures, "classifier", None)  # would fail if it were called
    two = main.main(flags(source, tmp_path, *more))
    assert one["train/loss"] == two["train/loss"]


def test_losses_that_stay_infinite_stop_the_run(source, tmp_path, monkeypatch):
    """From the third batch of epoch 2 on: what is left is what was learned before."""
    calls = []
    compute = main.criteria.MultiSimilarity.compute

    def overflow(self, views, batch):
        calls.append(batch.rows.tolist())
        loss = compute(self, views, batch)
        return loss * float("nan") if len(calls) >= 6 else loss

    monkeypatch.setattr(main.criteria.MultiSimilarity, "compute", overflow)
    with pytest.raises(FloatingPointError, match=r"in 10 steps.*step 15, in epoch 5") as stop:
        main.main(flags(source, tmp_path, "--n_epochs", "6"))
    folder = tmp_path / "animals" / "default_s0"
    assert str(calls[-1]) in str(stop.value) and str(folder / "last.pt") in str(stop.value)
    kept = checkpoint.load(folder / "last.pt")
    assert (kept["epoch"], kept["iteration"], kept["skipped"]) == (4, 12, 7)
    assert all(value.isfinite().all() for value in kept["embedder"].values())
    assert last_row(folder)["epoch"] == 4


def run_alone(*words, env=None):
    """main.py in a process of its own, as a user starts it; W&B keeps state in its process."""
    done = subprocess.run(
        [sys.executable, "main.py", *words],
        cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


KEY = "0123456789" * 4  # as long as W&B's


def test_wandb_offline_writes_into_the_run_folder(source, tmp_path):
    words = flags(source, tmp_path, "--wandb_mode", "offline", "--n_epochs", "1")
    run_alone(*words, env={"WANDB_API_KEY": KEY})
    folder = tmp_path / "animals" / "default_s0"
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert "left out" not in (folder / "log.txt").read_text()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert KEY.encode() not in path.read_bytes(), path


class Told:
    """Stands for the run of ``wandb.init``, and notes what it is told."""

    id = "abc"

    def __init__(self):
        self.rows = []

    def log(self, row, step=None, commit=None):
        self.rows.append((step, set(row)))

    def finish(self):
        pass


def test_a_resumed_run_goes_on_in_its_wandb_run(source, tmp_path, monkeypatch):
    """Killed in its second epoch: no step is told twice, pictures and tables are at the end."""
    wandb = pytest.importorskip("wandb")
    run, asked = Told(), []
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options) or run)
    words = flags(source, tmp_path, "--wandb_mode", "online", "--resume", "--group", "seeds")
    step = main.Trainer.step

    def killed(self, *inputs):
        if self.iteration == 4:
            raise KeyboardInterrupt
        return step(self, *inputs)

    monkeypatch.setattr(main.Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        main.main(words)
    monkeypatch.setattr(main.Trainer, "step", step)
    main.main(words)
    assert [first for first, _ in run.rows] == [0, 1, 2, None, None]
    assert run.rows[3][1] == {"curves"} and run.rows[4][1] == {"classes_test", "classes_train"}
    assert [options.get("id") for options in asked] == [None, "abc"]
    assert {(options["group"], options["name"]) for options in asked} == {("seeds", "seeds_s0")}


def test_a_tracker_that_fails_stops_no_run(source, tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    run = Told()
    run.log = None  # a call of which raises
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    main.main(flags(source, tmp_path, "--wandb_mode", "offline", "--tensorboard"))
    assert (
        caplog.text.count("W&B failed (TypeError") == 1 and "TensorBoard failed" not in caplog.text
    )
    folder = tmp_path / "animals" / "default_s0"
    assert last_row(folder)["epoch"] == 2 and list((folder / "tensorboard").glob("events*"))

    main.main(["--evaluate_only", "--checkpoint", str(folder), "--save_path", str(tmp_path),
               "--tensorboard"])  # fmt: skip
    assert list((tmp_path / "animals").glob("default_s0_evaluation/tensorboard/events*"))


def test_a_runs_config_runs_it_again(source, tmp_path, monkeypatch):
    """To the last digit, elsewhere; and it goes on, or is scored, as by its flags."""
    more = ("--loss", "margin", "--language_distill_w", "3", "--n_epochs", "1")
    first = main.main(flags(source, tmp_path / "one", *more))
    folder = tmp_path / "one" / "animals" / "default_s0"
    again = main.main(["--config", str(folder), "--save_path", str(tmp_path / "two")])
    timed = {"train/images_per_second", "train/waiting_for_data"}
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in again.items() if k not in timed
    }
    for skipping in ("--resume", "--skip_finished"):
        with pytest.raises(SystemExit) as end:
            main.main(["--config", str(folder), skipping])
        assert not end.value.code
    only = ["--evaluate_only", "--checkpoint", str(folder), "--config", str(folder)]
    scores = main.main([*only, "--save_path", str(tmp_path / "three")])
    assert scores["test/embeds/e_recall@1"] == first["test/embeds/e_recall@1"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--bs", "16"), "--bs 16"),
        (("--samples_per_class", "1", "--loss", "softmax"), "--bs 8"),
        (("--dataset", "nowhere"), "nowhere"),
        (("--arch", "resnt50_frozen_normalize"), "resnet50"),
        (("--evaluation_metrics", "e_recal@1"), "recall@k"),
        (("--evaluation_metrics", "wrong_word_similarity@1"), "language_model"),
        (("--language_distill_w", "1", "--language_words", "captions"), "captions"),
        (("--weights", "missing.pth"), "exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_come_before_a_run_folder(source, tmp_path, capsys, more, says):
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        main.main(flags(source, tmp_path / "runs", *more))
    assert says in f"{caught.value} {capsys.readouterr().err}"
    assert not (tmp_path / "runs").exists()


def test_an_error_is_one_line_for_who_runs_the_program(source, tmp_path):
    done = subprocess.run(
        [sys.executable, "main.py", *flags(source, tmp_path / "runs", "--bs", "16")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: --bs 16 ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_unreadable_images_are_left_out_and_named(source, tmp_path, caplog):
    broken = tmp_path / "source"
    shutil.copytree(source, broken)
    images = broken / "animals" / "images"
    (images / "red fox" / "empty.jpg").touch()
    whole = (images / "tabby" / "6_0.jpg").read_bytes()
    (images / "tabby" / "6_0.jpg").write_bytes(whole[: len(whole) // 2])
    main.main(flags(broken, tmp_path / "runs", "--n_epochs", "1"))
    log = (tmp_path / "runs" / "animals" / "default_s0" / "log.txt").read_text()
    for text in (caplog.text, log):
        assert text.count("2 of 49 images cannot be read") == 1
        assert "empty.jpg" in text and "6_0.jpg" in text


def test_the_report_of_a_guided_run_shows_its_words(source, tmp_path):
    """Though no metric of this dataset reads any."""
    for weight in ("0", "3"):
        main.main(flags(source, tmp_path, "--language_distill_w", weight, "--group", f"w{weight}",
                        "--n_epochs", "1", report=True))  # fmt: skip
    pages = [(tmp_path / "animals" / f"w{w}_s0" / "report.html").read_text() for w in "03"]
    assert ["rank correlation" in page.lower() for page in pages] == [False, True]
