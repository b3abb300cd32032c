"""Weights & Biases and TensorBoard: what they log, and what happens when they fail."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utilities import trackers

ROOT = Path(__file__).parents[2]
KEY = "0123456789" * 4  # as long as W&B's

OFFLINE = """
from pathlib import Path
from PIL import Image
from utilities import trackers
folder = Path("run")
folder.mkdir(exist_ok=True)
Image.new("RGB", (4, 4)).save(folder / "curves.png")
(folder / "classes_test.csv").write_text("class,group,images,recall@1\\n7,,2,0.5\\nfox,dogs,3,\\n")
run = trackers.start_wandb("offline", project="p", group="g", name="n", config={}, folder=folder)
for epoch in (1, 2):
    run.log({"loss": 1.0 / epoch}, epoch)
run.images([folder / "curves.png"])
run.tables([folder / "classes_test.csv"])
run.finish()
"""


def alone(program, folder):
    """In a process of its own: W&B keeps state in its process, and a run has one to itself."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_API_KEY": KEY},
        check=True,
        timeout=240,
    )


def test_an_offline_run_stays_in_its_folder_and_resumes_there(tmp_path):
    pytest.importorskip("wandb")
    for _ in range(2):
        alone(OFFLINE, tmp_path)
        assert json.loads((tmp_path / "run" / "wandb.json").read_text())["last"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    first, again = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert first.name == again.name  # named after the id
    assert not any(KEY.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


class FakeRun:
    """Stands in for ``wandb.init``'s run."""

    id = "abc"

    def __init__(self):
        self.rows = []

    def log(self, row, step=None, commit=None):
        self.rows.append((step, row))

    def finish(self):
        self.rows.append("finish")


def test_an_epoch_is_logged_once_also_by_a_resumed_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    asked = []
    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options) or run)
    for epochs in ((1, 2), (2, 3)):
        tracker = start("online", tmp_path)
        for epoch in epochs:
            tracker.log({"loss": 0.5}, epoch)
    assert [step for step, _ in run.rows] == [1, 2, 3]
    assert "id" not in asked[0] and (asked[1]["id"], asked[1]["resume"]) == ("abc", "allow")


def test_tables_keep_names_as_text_and_scores_as_numbers(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    path = tmp_path / "classes_test.csv"
    path.write_text("class,group,images,recall@1\n7,,2,0.5\nfox,dogs,3,\n")
    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    start("online", tmp_path).tables([path])
    [(_, logged)] = run.rows
    assert logged["classes_test"].columns == ["class", "group", "images", "recall@1"]
    assert logged["classes_test"].data == [["7", None, 2.0, 0.5], ["fox", "dogs", 3.0, None]]


def start(mode, folder):
    return trackers.start_wandb(
        mode, project="p", group="g", name="n", config={"loss": "margin"}, folder=folder
    )


@pytest.mark.parametrize(
    ("kind", "remedies"),
    [
        ("UsageError", ["wandb login", "WANDB_API_KEY", "--wandb_mode offline"]),
        ("CommError", ["network", "--wandb_mode offline", "wandb sync"]),
    ],
)
def test_online_failures_name_the_remedies(tmp_path, monkeypatch, kind, remedies):
    wandb = pytest.importorskip("wandb")

    def fail(**_):
        raise getattr(wandb.errors, kind)("no\nmore")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ValueError) as caught:
        start("online", tmp_path)
    assert all(remedy in str(caught.value) for remedy in remedies)
    assert "\n" not in str(caught.value)


def test_missing_packages_are_named(monkeypatch):
    for module in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)  # an import would raise
    trackers.refuse_missing("disabled", tensorboard=False)
    with pytest.raises(ValueError, match="--wandb_mode online needs wandb; pip install wandb"):
        trackers.refuse_missing("online", tensorboard=True)
    with pytest.raises(ValueError, match="--tensorboard needs tensorboard; pip install tensorb"):
        trackers.refuse_missing("disabled", tensorboard=True)


def test_what_fails_is_dropped_with_one_warning(caplog):
    class Spy:
        def __init__(self, name, fails=()):
            self.name, self.fails, self.told = name, fails, []

        def __getattr__(self, what):
            def tell(*_):
                self.told.append(what)
                if what in self.fails:
                    raise LookupError("a context is gone\nand more")

            return tell

    good, bad = Spy("good"), Spy("bad", ["images"])
    both = trackers.Trackers([bad, good])
    with caplog.at_level(logging.WARNING):
        both.log({}, 1)
        both.show([])
        both.finish()
    assert good.told == ["log", "images", "tables", "finish"] and bad.told == ["log", "images"]
    [record] = caplog.records
    assert "bad failed (LookupError: a context is gone) and is dropped" in record.getMessage()


def test_tensorboard_has_scores_and_pictures_once(tmp_path):
    """A run is stopped after its third epoch and resumes after its second."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "curves.png")
    for first, epochs in ((None, (0, 1, 2, 3)), (3, (3, 4))):
        board = trackers.TensorBoard(tmp_path / "tensorboard", first)
        for epoch in epochs:
            board.log({"train/loss": 10.0 * epoch + (first or 0), "test/mAP": float("nan")}, epoch)
        board.images([tmp_path / "curves.png"] if first else [])
        board.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert told == [(0, 0.0), (1, 10.0), (2, 20.0), (3, 33.0), (4, 43.0)]
    [image] = events.Images("curves")
    assert (image.step, image.height, image.width) == (4, 5, 7)
