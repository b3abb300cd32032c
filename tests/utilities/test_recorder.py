"""Which checkpoints a run keeps."""

import math
import time

import pytest
import torch

from utilities import checkpoint
from utilities.recorder import Every, Recorder
from utilities.run_folder import RunFolder
from utilities.trackers import Trackers


class Spy(Trackers):
    """Notes what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def _tell(self, what, *told):
        self.told.append((what, *told))


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path, "emoji", "run")


def train(recorder, recalls):
    for epoch, recall in enumerate(recalls, start=1):
        scores = {} if recall is None else {"test/recall": recall}
        recorder.record(epoch, {"train/loss": 1 / epoch, **scores})
        recorder.save(epoch, {"embedder": {"weight": torch.tensor([epoch])}}, scores)


def test_best_is_of_the_best_epoch_and_last_of_the_last(run):
    recorder = Recorder(run, Trackers(), best_of=["test/recall"])
    train(recorder, [0.5, 0.7, None, 0.6])
    best = checkpoint.load(run.path / "best_test_recall.pt")
    last = checkpoint.load(recorder.last)
    assert (best["epoch"], best["embedder"]["weight"].item()) == (2, 2)
    assert (last["epoch"], last["best"]) == (4, {"test/recall": 0.7})


def test_every_improvement_is_kept_on_request(run):
    train(Recorder(run, Trackers(), best_of=["test/recall"], keep_all=True), [0.5, 0.4, 0.7])
    names = {path.name for path in run.path.glob("best_*")}
    assert names == {"best_test_recall_epoch1.pt", "best_test_recall_epoch3.pt"}


def test_scores_go_to_files_curves_and_trackers(run):
    spy = Spy()
    recorder = Recorder(run, spy, best_of=[])
    train(recorder, [0.5, 0.6])
    table = run.path / "classes_test.csv"
    table.write_text("class,recall@1\n")
    recorder.finish([run.path / "views.png", table])  # the first is not there
    assert spy.told[1:] == [
        ("log", {"train/loss": 0.5, "test/recall": 0.6}, 2),
        ("images", [recorder.curves]),
        ("tables", [table]),
        ("finish",),
    ]
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 2
    assert recorder.curves.stat().st_size > 1000


def test_a_checkpoint_within_an_epoch_is_no_best_one(run):
    recorder = Recorder(run, Trackers(), best_of=["test/recall"])
    train(recorder, [0.5])
    recorder.save(1, {"iteration": 17})
    assert checkpoint.load(recorder.last)["iteration"] == 17
    assert checkpoint.load(run.path / "best_test_recall.pt")["epoch"] == 1


def test_what_was_before_training_is_kept_until_the_end(run):
    recorder = Recorder(run, Trackers(), best_of=[])
    before = torch.rand(4, 2), torch.tensor([0, 1, 3, 4])
    recorder.record_untrained({"test/recall": 0.25, "test/rare": math.nan}, before)
    train(recorder, [0.5])
    again = Recorder(RunFolder(run.path), Trackers(), best_of=[])
    again.run.rows = run.rows
    scores, kept = again.untrained()
    assert scores["test/recall"] == 0.25 and math.isnan(scores["test/rare"])
    assert all(map(torch.equal, kept, before))
    recorder.pause()
    assert (run.path / "before.pt").is_file()
    recorder.finish()
    assert not (run.path / "before.pt").is_file()
    assert recorder.untrained()[1] is None


def test_a_process_that_does_not_write_writes_nothing(run):
    there = sorted(run.path.iterdir())
    spy = Spy()
    recorder = Recorder(run, spy, best_of=["test/recall"], writes=False)
    recorder.record_untrained({"test/recall": 0.25}, None)
    train(recorder, [0.5])
    recorder.finish()
    assert sorted(run.path.iterdir()) == there and spy.told == []


def test_every_so_many_steps_or_minutes(monkeypatch):
    steps = Every("3")
    assert [step for step in range(1, 10) if steps.due(step)] == [3, 6, 9]
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    minutes, never = Every("1.5m"), Every("0")
    due = []
    for step in range(1, 10):
        now[0] += 40
        due += [step] * minutes.due(step)
        assert not never.due(step)
    assert due == [3, 6, 9]
