"""main.py end to end on a miniature dataset, and its errors.

tests/test_pretend.py trains every objective and miner, tests/test_main_captions.py without labels.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import architectures
import criteria
import main
import parameters
from architectures import from_flags
from evaluation import from_flags as from_evaluation_flags
from tests.runs import RUN, killed_at, output, rows_of, start, tiny_run, without_times
from utilities import checkpoint, hub

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")


def short(source, save_path, *more):
    """Return the flags of one epoch."""
    measured = ("--no_train_metrics", "--evaluation_metrics", "e_recall@1")
    return tiny_run(source, save_path, "--n_epochs", "1", *measured, *more)


# --------------------------------------------------------------------------------------------------
# What a run leaves
# --------------------------------------------------------------------------------------------------
def test_a_run_leaves_all_that_it_promises(animals, tmp_path, caplog):
    words = tiny_run(animals, tmp_path, "--language_distill_w", "7.5", "--group", "guided")
    scores = main.main(words)
    folder = tmp_path / "animals" / "guided_s0"
    names = {path.name for path in folder.iterdir()}
    best = "best_test_embeds_e_recall@1.pt"
    assert {"config.json", "metrics.jsonl", "metrics.csv", "log.txt", "curves.png"} <= names
    assert {"last.pt", best} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["language_distill_w"] == 7.5
    assert config["packages"]["torch"] == torch.__version__.partition("+")[0]

    rows = rows_of(folder)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[2]["test/embeds/e_recall@1"] == scores["test/embeds/e_recall@1"]
    assert rows[2]["train/loss"] == pytest.approx(
        rows[2]["train/loss_dml"] + 7.5 * rows[2]["train/loss_match"], rel=1e-5
    )
    last = checkpoint.load(folder / "last.pt")
    assert last["epoch"] == 2 and last["trainer"]["iteration"] == 6
    recalls = [row["test/embeds/e_recall@1"] for row in rows]
    assert recalls[checkpoint.load(folder / best)["epoch"]] == max(recalls[1:])
    assert f"run folder: {folder}" in caplog.text
    assert ": 0 images" not in caplog.text and "24 images of 4 classes" in caplog.text


def test_a_run_for_deployment_trains_on_all_classes_without_test_scores(animals, tmp_path, caplog):
    """Its checkpoint is evaluated, and another share of the classes can be tested on."""
    words = tiny_run(animals, tmp_path, "--test_classes", "0", "--n_epochs", "1")
    scores = main.main(words)
    assert scores["train/embeds/e_recall@1"] > 0
    assert not [name for name in scores if name.startswith("test/")]
    assert "animals.train: 48 images of 8 classes" in caplog.text
    run = str(tmp_path / RUN)
    again = ("--evaluate_only", "--checkpoint", run, "--no_report", "--save_path", str(tmp_path))
    found = main.main([*again, "--savename", "again"])
    name = "train/embeds/e_recall@1"
    assert found[name] == scores[name] and set(found) <= set(scores)
    with pytest.raises(ValueError, match="was trained on images or classes to evaluate"):
        main.main([*again, "--savename", "tested", "--test_fraction", "0.25"])


def test_defaults_give_way_to_images_and_packages_and_stay_so(animals, tmp_path, monkeypatch):
    """A run that is resumed or evaluated uses what it began with, though a hub answers by then."""
    monkeypatch.setattr(hub, "answers", lambda: False)
    packaged = {"resnet50_frozen_normalize_root": "test_resnet"}
    monkeypatch.setattr("datasets.defaults.PACKAGED", packaged)
    left_out = {"--bs", "--arch"}
    words = tiny_run(animals, tmp_path, "--no_train_metrics", "--samples_per_class", "2")
    pairs = zip(["", *words], words, strict=False)
    words = [word for before, word in pairs if not {before, word} & left_out]
    words.remove("--not_pretrained")
    monkeypatch.setattr(architectures, "at_hand", lambda name: False)
    create = from_flags.create

    def random(name, embed_dim, **options):
        return create(name, embed_dim, **options | {"pretrained": False})

    monkeypatch.setattr(from_flags, "create", random)
    with killed_at(4):
        main.main(words)
    flags = json.loads((tmp_path / RUN / "config.json").read_text())["flags"]
    assert (flags["bs"], flags["arch"]) == (8, "test_resnet")
    monkeypatch.setattr(hub, "answers", lambda: True)
    main.main([*words, "--resume"])
    log = (tmp_path / RUN / "log.txt").read_text()
    assert "batch size: 8, the largest that fits 4 training classes (default: 112)" in log
    assert "from packages: --arch test_resnet (no hub answers)" in log
    assert "as it began: --bs 8 --arch test_resnet" in log
    assert re.search(r"epoch 2/2: loss \d\.\d{4}, test/embeds/e_recall@1 \d+\.\d\d, ", log)
    assert "\r" not in log
    again = ("--evaluate_only", "--checkpoint", str(tmp_path / RUN), "--no_report")
    assert main.main([*again, "--save_path", str(tmp_path)])


@pytest.mark.parametrize("init", ["whiten", "pca"])
def test_own_small_sets_begin_with_the_backbone(animals, tmp_path, monkeypatch, init):
    """In as many dimensions as it has features, killed and resumed, and evaluated again."""
    create = from_flags.create
    monkeypatch.setattr(
        from_flags, "create", lambda *args, **kw: create(*args, **kw | {"pretrained": False})
    )
    measured = ("--no_train_metrics", "--evaluation_metrics", "mAP@R")
    words = tiny_run(animals, tmp_path, "--embed_dim", "0", "--embed_init", init, *measured)
    words.remove("--not_pretrained")
    with killed_at(4):
        main.main(words)
    scores = main.main([*words, "--resume"])
    flags = json.loads((tmp_path / RUN / "config.json").read_text())["flags"]
    small = {"recipe": "small", "embed_init": init, "fc_lr": 3e-5, "samples_per_class": 4}
    assert small.items() <= flags.items()
    before = rows_of(tmp_path / RUN)[0]
    for metric in ("e_recall@1", "mAP@R") if init == "pca" else ():
        assert before[f"test/embeds/{metric}"] == before[f"test/backbone/{metric}"] > 0
    again = ("--evaluate_only", "--checkpoint", str(tmp_path / RUN), "--no_report")
    found = main.main([*again, "--save_path", str(tmp_path)])
    assert found and found.items() <= scores.items()


def test_the_flags_of_a_verdict_leave_a_run_that_searches_with_the_backbone(animals, tmp_path):
    measured = ("--no_train_metrics", "--evaluation_metrics", "e_recall@1", "mAP@R")
    arch = ("--arch", "test_resnet_frozen_root")
    main.main(tiny_run(animals, tmp_path / "trained", *measured, *arch))
    floor = rows_of(tmp_path / "trained" / RUN)[0]
    remedy = from_evaluation_flags.of_the_backbone("test_resnet_frozen_root").split()
    scores = main.main(tiny_run(animals, tmp_path, *measured, *arch, *remedy))
    for metric in ("e_recall@1", "mAP@R"):
        assert scores[f"test/embeds/{metric}"] == floor[f"test/backbone/{metric}"] > 0
    again = ("--evaluate_only", "--checkpoint", str(tmp_path / RUN), "--no_report")
    assert main.main([*again, "--save_path", str(tmp_path)]).items() <= scores.items()


def test_a_checkpoint_scores_as_it_did_in_training(animals, tmp_path):
    """To the last digit, on the sets it was scored on; under other flags where these are given."""
    more = ("--embed_dim", "8", "--evaluation_metrics", "e_recall@1", "mAP", "nmi", "--seed", "3")
    trained = main.main(tiny_run(animals, tmp_path, *more, report=True))
    folder = tmp_path / "animals" / "default_s3"
    only = ["--evaluate_only", "--checkpoint", str(folder), "--save_path", str(tmp_path)]
    again = main.main(only)
    measured = {name: value for name, value in trained.items() if "/embeds/" in name}
    assert len(measured) == 6 and again == measured
    evaluated = tmp_path / "animals" / "default_s3_evaluation"
    assert rows_of(evaluated)[-1]["epoch"] == 2
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


def test_a_run_ends_with_a_report(animals, tmp_path):
    """That of a guided run shows its words, though no metric of this dataset reads any."""
    pages = []
    for weight in ("0", "3"):
        more = ("--language_distill_w", weight, "--group", f"w{weight}", "--n_epochs", "1")
        main.main(tiny_run(animals, tmp_path, *more, report=True))
        folder = tmp_path / "animals" / f"w{weight}_s0"
        pages.append((folder / "report.html").read_text())
        assert {"retrieval.png", "similarities.png", "map.png"} <= {
            path.name for path in folder.iterdir()
        }
        assert "snowy owl" in pages[-1]
        assert "http://" not in pages[-1] and "https://" not in pages[-1]
    assert ["rank correlation" in page.lower() for page in pages] == [False, True]


def test_a_second_run_of_one_name_takes_another_folder(animals, tmp_path):
    for _ in range(2):
        main.main(tiny_run(animals, tmp_path, "--n_epochs", "0", "--savename", "mine"))
    assert {path.name for path in (tmp_path / "animals").iterdir()} == {"mine", "mine_2"}


# --------------------------------------------------------------------------------------------------
# Flags
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", (*parameters.CLASS_SAMPLERS, "random"))
def test_every_sampler_feeds_a_guided_run(animals, tmp_path, sampler):
    more = ("--data_sampler", sampler, "--data_batchmatch_bigbs", "16", "--n_epochs", "2")
    scores = main.main(short(animals, tmp_path, *more, "--language_distill_w", "7.5"))
    assert np.isfinite(scores["train/loss_dml"])
    assert scores["train/loss_match"] > 0


def test_a_memory_of_earlier_batches(animals, tmp_path):
    more = ("--loss", "supcon", "--xbm_size", "16", "--xbm_start", "1")
    scores = main.main(short(animals, tmp_path, *more))
    assert np.isfinite(scores["train/loss_dml"])
    kept = checkpoint.load(tmp_path / RUN / "last.pt")
    assert any(part.shape == (16, 16) for part in kept["criterion"].values() if part is not None)


def test_language_delay_counts_iterations(animals, tmp_path):
    """Three iterations an epoch: with a delay of 4 guidance starts within epoch 2."""
    main.main(tiny_run(animals, tmp_path, "--language_distill_w", "5", "--language_delay", "4"))
    _, first, second = rows_of(tmp_path / RUN)
    assert "train/loss_match" not in first and second["train/loss_match"] > 0


@pytest.mark.parametrize(
    "more",
    [
        ("--loss", "triplet", "--batch_mining", "semihard", "--evaltypes", "embeds", "features"),
        ("--loss", "margin", "--loss_margin_nu", "0.1", "--optim", "sgd", "--scheduler", "cosine"),
        ("--data_sampler", "class_related", "--data_related_classes", "2", "--warmup", "1"),
        ("--data_sampler", "random", "--use_float16", "--augmentation", "adv"),
        ("--data_class_replacement", "--bs", "16", "--loss", "margin", "--no_zero_init_last"),
        ("--language_control", "permuted", "--language_distill_dir", "forward"),
        ("--language_control", "uniform", "--augmentation", "big", "--tau", "1", "--gamma", "0.1"),
        ("--use_tv_split", "--tv_split_perc", "0.5", "--bs", "4", "--store_improvements"),
        ("--use_tv_split", "--tv_split_by_samples", "--no_test_metrics", "--no_train_metrics"),
        ("--evaluation_metrics", "mAP", "c_recall@3", "R_precision", "f1", "--optim", "adamw"),
    ],
    ids=" ".join,
)
def test_flags_that_change_the_run(animals, tmp_path, more):
    scores = main.main(tiny_run(animals, tmp_path, "--language_distill_w", "2", *more))
    assert np.isfinite(scores["train/loss"])
    assert any(name.endswith("e_recall@1") for name in scores)


def test_the_same_flags_give_the_same_numbers(animals, tmp_path):
    """With loading processes too, and whether or not the cache of decoded images was there."""
    more = ("--language_distill_w", "3", "--loss", "softmax", "--seed", "4", "--cache_images")
    one = main.main(tiny_run(animals, tmp_path / "one", *more))
    two = main.main(tiny_run(animals, tmp_path / "two", *more, "--kernels", "2"))
    assert without_times(one) == without_times(two)


def test_a_runs_config_runs_it_again(animals, tmp_path):
    """To the last digit, elsewhere; it is also resumed, or scored, as by its flags."""
    more = ("--loss", "margin", "--language_distill_w", "3", "--n_epochs", "1")
    first = main.main(tiny_run(animals, tmp_path / "one", *more))
    folder = tmp_path / "one" / RUN
    again = main.main(["--config", str(folder), "--save_path", str(tmp_path / "two")])
    assert without_times(first) == without_times(again)
    for skipping in ("--resume", "--skip_finished"):
        with pytest.raises(SystemExit) as end:
            main.main(["--config", str(folder), skipping])
        assert not end.value.code
    only = ["--evaluate_only", "--checkpoint", str(folder), "--config", str(folder)]
    scores = main.main([*only, "--save_path", str(tmp_path / "three")])
    assert scores["test/embeds/e_recall@1"] == first["test/embeds/e_recall@1"]


@pytest.mark.packages
def test_pseudolabels_are_kept(animals, tmp_path, monkeypatch):
    more = ("--language_distill_w", "2", "--language_pseudoclass", "--language_model", "minilm")
    more += ("--language_pseudoclass_model", "efficientnet_lite0")
    one = main.main(short(animals, tmp_path, *more))
    monkeypatch.setattr(from_flags, "classifier", None)  # would fail if it were called
    two = main.main(short(animals, tmp_path, *more))
    assert one["train/loss"] == two["train/loss"]


# --------------------------------------------------------------------------------------------------
# Weights & Biases, TensorBoard
# --------------------------------------------------------------------------------------------------
KEY = "0123456789" * 4  # as long as W&B's


def test_wandb_offline_writes_into_the_run_folder(animals, tmp_path):
    """In a process of its own: W&B keeps state in its process."""
    words = tiny_run(animals, tmp_path, "--wandb_mode", "offline", "--n_epochs", "1")
    output(start(words, WANDB_API_KEY=KEY))
    folder = tmp_path / RUN
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert "left out" not in (folder / "log.txt").read_text()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert KEY.encode() not in path.read_bytes(), path


class FakeRun:
    """Stands for the run of ``wandb.init``, and notes what is logged."""

    id = "abc"

    def __init__(self):
        self.rows = []

    def log(self, row, step=None, commit=None):
        self.rows.append((step, set(row)))

    def finish(self):
        pass


def test_a_resumed_run_continues_its_wandb_run(animals, tmp_path, monkeypatch):
    """Killed in its second epoch: no step is logged twice, pictures and tables are at the end."""
    wandb = pytest.importorskip("wandb")
    run, started = FakeRun(), []
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or run)
    words = tiny_run(animals, tmp_path, "--wandb_mode", "online", "--resume", "--group", "seeds")
    with killed_at(4, KeyboardInterrupt):
        main.main(words)
    main.main(words)
    assert [first for first, _ in run.rows] == [0, 1, 2, None, None]
    assert run.rows[3][1] == {"curves"} and run.rows[4][1] == {"classes_test", "classes_train"}
    assert [options.get("id") for options in started] == [None, "abc"]
    assert {(options["group"], options["name"]) for options in started} == {("seeds", "seeds_s0")}


def test_a_tracker_that_fails_stops_no_run(animals, tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    run = FakeRun()
    run.log = None  # a call of which raises
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    main.main(tiny_run(animals, tmp_path, "--wandb_mode", "offline", "--tensorboard"))
    assert caplog.text.count("W&B failed (TypeError") == 1
    assert "TensorBoard failed" not in caplog.text
    folder = tmp_path / RUN
    assert rows_of(folder)[-1]["epoch"] == 2 and list((folder / "tensorboard").glob("events*"))

    only = ["--evaluate_only", "--checkpoint", str(folder), "--save_path", str(tmp_path)]
    main.main([*only, "--tensorboard"])
    assert list((tmp_path / "animals").glob("default_s0_evaluation/tensorboard/events*"))


# --------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------
def test_losses_that_stay_infinite_stop_the_run(animals, tmp_path, monkeypatch):
    """From the third batch of epoch 2 on; the checkpoint of an earlier epoch is kept."""
    rows = []
    compute = criteria.MultiSimilarity.compute

    def overflow(self, views, batch):
        rows.append(batch.rows.tolist())
        loss = compute(self, views, batch)
        return loss * float("nan") if len(rows) >= 6 else loss

    monkeypatch.setattr(criteria.MultiSimilarity, "compute", overflow)
    with pytest.raises(FloatingPointError, match=r"in 10 steps.*step 15\.") as stop:
        main.main(tiny_run(animals, tmp_path, "--n_epochs", "6"))
    folder = tmp_path / RUN
    assert str(rows[-1]) in str(stop.value) and "the last checkpoint" in str(stop.value)
    kept = checkpoint.load(folder / "last.pt")
    assert (kept["epoch"], kept["trainer"]["iteration"], kept["trainer"]["skipped"]) == (4, 12, 7)
    assert all(value.isfinite().all() for value in kept["embedder"].values())
    assert rows_of(folder)[-1]["epoch"] == 4


@pytest.mark.parametrize("more", [("--n_epochs", "2"), ("--n_epochs", "1"), ("--dry_run",)])
def test_a_run_too_short_to_skip_ten_steps_fails_if_no_loss_is_finite(
    animals, tmp_path, monkeypatch, more
):
    compute = criteria.MultiSimilarity.compute

    def overflow(self, views, batch):
        return compute(self, views, batch) + float("inf")  # its gradient is finite

    monkeypatch.setattr(criteria.MultiSimilarity, "compute", overflow)
    with pytest.raises(FloatingPointError, match=r"in [23] steps in a row"):
        main.main(tiny_run(animals, tmp_path, *more))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--bs 16", "--bs must be at most 8"),
        ("--samples_per_class 1 --loss softmax", "--bs must be at most 4"),
        ("--patience 3", "of which --dataset animals has none; hold some out with --use_tv_split"),
        (
            "--patience 3 --use_tv_split --tv_split_perc 0.5 --storage_metrics nmi uniformity",
            "higher is not better for --storage_metrics uniformity; use others",
        ),
        ("--dataset nowhere", "nowhere"),
        ("--arch resnt50_frozen_normalize", "resnet50"),
        ("--evaluation_metrics e_recal@1", "recall@k"),
        (
            "--evaluation_metrics wrong_word_similarity@1 --evaluation_language_model clip",
            "language_model clip: cannot get",
        ),
        ("--language_distill_w 1 --language_words captions", "captions"),
        ("--weights missing.pth", "exclude each other"),
    ],
)
def test_errors_come_before_a_run_folder(animals, tmp_path, capsys, more, says):
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        main.main(tiny_run(animals, tmp_path / "runs", *more.split()))
    assert says in f"{caught.value} {capsys.readouterr().err}"
    assert not (tmp_path / "runs").exists()


def test_a_program_reports_an_error_in_one_line(animals, tmp_path):
    printed = output(start(tiny_run(animals, tmp_path / "runs", "--bs", "16")), status=1)
    assert printed.splitlines()[-1].startswith("error: --bs must be at most 8")
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()


def test_unreadable_images_are_skipped_and_named(animals, tmp_path, caplog):
    shutil.copytree(animals, tmp_path / "source")
    images = tmp_path / "source" / "animals" / "images"
    (images / "red fox" / "empty.jpg").touch()
    whole = (images / "tabby" / "6_0.jpg").read_bytes()
    (images / "tabby" / "6_0.jpg").write_bytes(whole[: len(whole) // 2])
    main.main(short(tmp_path / "source", tmp_path / "runs"))
    log = (tmp_path / "runs" / RUN / "log.txt").read_text()
    for text in (caplog.text, log):
        assert text.count("2 of 49 images cannot be read") == 1
        assert "empty.jpg" in text and "6_0.jpg" in text
