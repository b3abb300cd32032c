"""Weights & Biases and TensorBoard: what they log, and what happens when they fail."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

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


@pytest.mark.slow
def test_an_offline_run_stays_in_its_folder_and_resumes_there(tmp_path):
    pytest.importorskip("wandb")
    for _ in range(2):
        alone(OFFLINE, tmp_path)
        assert json.loads((tmp_path / "run" / "wandb.json").read_text())["last"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    first, again = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert first.name == again.name  # named after the id
    assert not any(KEY.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.fixture
def wandb(monkeypatch):
    """W&B with a run that only remembers its calls."""
    module = pytest.importorskip("wandb")
    monkeypatch.setattr(module, "init", Mock(return_value=Mock(id="abc")))
    return module


def start(folder):
    return trackers.start_wandb(
        "online", project="p", group="g", name="n", config={"loss": "margin"}, folder=folder
    )


def test_an_epoch_is_logged_once_also_by_a_resumed_run(tmp_path, wandb):
    for epochs in ((1, 2), (2, 3)):
        tracker = start(tmp_path)
        for epoch in epochs:
            tracker.log({"loss": 0.5}, epoch)
    logged = wandb.init.return_value.log.call_args_list
    assert [call.kwargs["step"] for call in logged] == [1, 2, 3]
    first, again = (call.kwargs for call in wandb.init.call_args_list)
    assert "id" not in first and (again["id"], again["resume"]) == ("abc", "allow")


def test_tables_keep_names_as_text_and_scores_as_numbers(tmp_path, wandb):
    path = tmp_path / "classes_test.csv"
    path.write_text("class,group,images,recall@1\n7,,2,0.5\nfox,dogs,3,\n")
    start(tmp_path).tables([path])
    table = wandb.init.return_value.log.call_args.args[0]["classes_test"]
    assert table.columns == ["class", "group", "images", "recall@1"]
    assert table.data == [["7", None, 2.0, 0.5], ["fox", "dogs", 3.0, None]]


@pytest.mark.parametrize(
    ("kind", "remedies"),
    [
        ("UsageError", ["wandb login", "WANDB_API_KEY", "--wandb_mode offline"]),
        ("CommError", ["network", "--wandb_mode offline", "wandb sync"]),
    ],
)
def test_online_failures_name_the_remedies(tmp_path, wandb, kind, remedies):
    wandb.init.side_effect = getattr(wandb.errors, kind)("no\nmore")
    with pytest.raises(ValueError) as caught:
        start(tmp_path)
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
    good, bad = Mock(), Mock()
    bad.configure_mock(name="bad")
    bad.images.side_effect = LookupError("a context is gone\nand more")
    both = trackers.Trackers([bad, good])
    with caplog.at_level(logging.WARNING):
        both.log({}, 1)
        both.show([])
        both.finish()
    assert [call[0] for call in good.mock_calls] == ["log", "images", "tables", "finish"]
    assert [call[0] for call in bad.mock_calls] == ["log", "images"]
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
