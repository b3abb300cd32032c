"""Which checkpoints a run keeps."""

import pytest
import torch

from utilities import checkpoint
from utilities.log import WandbLog
from utilities.recorder import Recorder
from utilities.run_folder import RunFolder


class Spy(WandbLog):
    """Notes what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def log(self, scores, step):
        self.told.append((step, dict(scores)))

    def image(self, path):
        self.told.append(path.name)

    def finish(self):
        self.told.append("finish")


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path, "emoji", "run")


def train(recorder, recalls):
    for epoch, recall in enumerate(recalls, start=1):
        scores = {} if recall is None else {"test/recall": recall}
        recorder.record(epoch, {"train/loss": 1 / epoch, **scores})
        recorder.save(epoch, scores, {"embedder": {"weight": torch.tensor([epoch])}})


def test_best_is_of_the_best_epoch_and_last_of_the_last(run):
    recorder = Recorder(run, WandbLog(), best_of=["test/recall"])
    train(recorder, [0.5, 0.7, None, 0.6])
    best = checkpoint.load(run.path / "best_test_recall.pt")
    last = checkpoint.load(recorder.last)
    assert (best["epoch"], best["embedder"]["weight"].item()) == (2, 2)
    assert (last["epoch"], last["best"]) == (4, {"test/recall": 0.7})


def test_every_improvement_is_kept_on_request(run):
    train(Recorder(run, WandbLog(), best_of=["test/recall"], keep_all=True), [0.5, 0.4, 0.7])
    names = {path.name for path in run.path.glob("best_*")}
    assert names == {"best_test_recall_epoch1.pt", "best_test_recall_epoch3.pt"}


def test_scores_go_to_files_curves_and_wandb(run):
    spy = Spy()
    recorder = Recorder(run, spy, best_of=[])
    train(recorder, [0.5, 0.6])
    recorder.finish()
    assert spy.told[1] == (2, {"train/loss": 0.5, "test/recall": 0.6})
    assert spy.told[-2:] == ["curves.png", "finish"]
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 2
    assert recorder.curves.stat().st_size > 1000
