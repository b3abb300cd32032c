"""What a run evaluates and when."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from datasets import Data, ImageSet
from evaluation import EvaluationSession, Scores, from_flags


class Evaluator:
    """Counts its calls; a score is the number of the call."""

    def __init__(self):
        self.sets = {"val": None, "test": None}
        self.options = {"evaltypes": ["features", "embeds"], "metrics": ["e_recall@1"]}
        self.word_search = None
        self.tower_searches = []
        self.calls = 0
        self.caches = []
        self.embeds = {}

    def __call__(self, cache, *, backbone=False):
        self.calls += 1
        self.caches.append(cache)
        self.embeds = {"val": (torch.full((2, 3), float(self.calls)), torch.arange(2))}
        return Scores({"val/features/e_recall@1": float(self.calls)}, {})


def session(every, n_epochs):
    probes = []

    def downstream():
        probes.append(1)
        return Scores({"digits/knn@20": 0.5}, {"digits/knn@20": "digits.downstream"})

    options = {"every": every, "n_epochs": n_epochs, "cache": Path("kept")}
    return EvaluationSession(Evaluator(), downstream, **options), probes


class Run:
    """Keeps what is recorded before training."""

    def __init__(self, scores=None):
        self.resumed, self.recorded = scores is not None, (scores, {})
        self.folder = Namespace(rows=[])
        self.best_checkpoint = lambda score, epoch: None

    def untrained(self):
        return self.recorded

    def record_untrained(self, *recorded):
        self.recorded = recorded


def test_every_few_epochs_and_features_at_the_end():
    evaluated, probes = session(every=2, n_epochs=5)
    evaluated.start(Run())
    found = [dict(evaluated.evaluate_if_due(epoch)) for epoch in range(1, 6)]
    assert [bool(scores) for scores in found] == [False, True, False, True, True]
    assert found[-1] == {"val/features/e_recall@1": 4.0} and not probes
    scores = evaluated.evaluate_features()
    assert scores == {"val/features/e_recall@1": 4.0, "digits/knn@20": 0.5} and len(probes) == 1
    assert "digits.downstream" in evaluated.conclusion()
    # Features change with every step; only those before training are worth keeping.
    assert evaluated.evaluator.caches == [Path("kept"), None, None, None]


def test_a_run_without_epochs_evaluates_all_before_training():
    evaluated, probes = session(every=1, n_epochs=0)
    run = Run()
    scores = evaluated.start(run)
    assert scores["digits/knn@20"] == 0.5 and len(probes) == 1
    assert run.recorded[0] is scores and torch.equal(run.recorded[1]["embeds"], torch.ones(2, 3))


def test_a_resumed_run_compares_with_the_scores_before_training():
    evaluated, _ = session(every=1, n_epochs=2)
    before = {"val/features/e_recall@1": 0.25}
    assert evaluated.start(Run(before)) == before
    evaluated.evaluate_if_due(2)
    assert "+75.00" in evaluated.conclusion()


def test_checkpoints_are_chosen_by_the_first_set_and_output():
    evaluated, _ = session(every=1, n_epochs=2)
    assert evaluated.best_of(["e_recall@1"]) == ["val/features/e_recall@1"]
    with pytest.raises(ValueError, match="word_mAP: no names search the images of val"):
        evaluated.best_of(["e_recall@1", "word_mAP"])
    evaluated.evaluator.tower_searches = [Namespace(kind="text_side")]
    assert evaluated.best_of(["word_mAP"]) == ["val/text_side/word_mAP"]
    evaluated.evaluator.word_search = object()
    assert evaluated.best_of(["word_mAP"]) == ["val/words/word_mAP"]
    assert evaluated.best_of(["word_mAP", "nmi"]) == ["val/words/word_mAP", "val/features/nmi"]


def test_averaged_weights_are_scored_beside_and_choose_checkpoints_of_their_own():
    """Before training they are the others."""
    evaluated, _ = session(every=1, n_epochs=2)
    evaluated.averaged = lambda: Scores(
        {"val/features/e_recall@1": 0.9, "val/words/word_mAP": 0.3},
        {"val/features/e_recall@1": "val n=2"},
        by_class={"val/features/e_recall@1": torch.ones(2)},
    )
    assert evaluated.best_of(["e_recall@1"]) == [
        "val/features/e_recall@1", "val/ema_features/e_recall@1",
    ]  # fmt: skip
    before = {"val/features/e_recall@1": 1.0, "val/ema_features/e_recall@1": 1.0}
    assert evaluated.start(Run()) == before
    scores = evaluated.evaluate_if_due(1)
    assert scores == {"val/features/e_recall@1": 2.0, "val/ema_features/e_recall@1": 0.9}
    assert scores.protocols == {"val/ema_features/e_recall@1": "val n=2"}
    assert torch.equal(scores.by_class["val/ema_features/e_recall@1"], torch.ones(2))


@pytest.mark.parametrize(
    ("changed", "model"),
    [
        ({}, "guide"),
        ({"evaluation_metrics": ["wrong_word_similarity@10"]}, "judge"),
        ({"evaluation_metrics": ["word_mAP"]}, "judge"),
        ({"evaluation_metrics": ["word_mAP"], "test": None, "no_report": True}, None),
        ({"no_report": True}, None),
        ({"evaluate_only": True}, None),
        ({"language_distill_w": 0.0}, None),
    ],
)
def test_class_names_are_read_by_whom_the_scores_or_else_the_report_need(changed, model):
    flags = {
        "evaluation_metrics": ["e_recall@1"], "evaluation_language_model": "judge",
        "language_model": "guide", "language_distill_w": 7.5, "no_report": False,
        "evaluate_only": False,
    }  # fmt: skip
    test = changed.get("test", "images")
    train = object.__new__(ImageSet) if test else "captions"  # which have no test classes
    data = Data(train, None, test)
    assert from_flags._language_model(Namespace(**flags | changed), data) == model
