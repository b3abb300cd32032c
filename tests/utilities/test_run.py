"""A run's checkpoints and scores, and how it is resumed."""

import math
import os
import time

import pytest
import torch

from utilities import checkpoint
from utilities.run import Period, Run, State, evaluations_since_best, open_folder, to_resume
from utilities.run_files import finished_flags, read_config
from utilities.run_folder import RunFolder
from utilities.trackers import Trackers

FLAGS = {"lr": 0.1, "loss": "margin", "tau": [3], "kernels": 2, "n_epochs": 4, "seed": None}


class Spy(Trackers):
    """Notes what it is sent."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def _call(self, what, *values):
        self.sent.append((what, *values))


class Part:
    """A part of a state: one number."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": torch.tensor(self.value)}

    def load_state_dict(self, state):
        self.value = int(state["value"])


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "emoji", "run")


def make(folder, part=None, **options):
    state = State(torch.device("cpu"), embedder=part or Part())
    options = {"flags": FLAGS, "n_epochs": 4, "trackers": Trackers(), **options}
    return Run(folder, state, **options)


def train(run, recalls):
    for epoch, recall in zip(run.epochs(), recalls, strict=False):
        run.state.parts["embedder"].value = epoch
        scores = {} if recall is None else {"test/recall": recall}
        scores["train/loss"] = 1 / epoch
        run.ends_after(epoch, scores)
        run.record(epoch, scores)


@pytest.mark.parametrize("other", [(3, 5), (4, 4), (4,)])
def test_a_checkpoint_of_other_heads_is_refused_in_one_line(other):
    def state(dims):
        head = torch.nn.Sequential(*(torch.nn.Linear(4, dim) for dim in dims))
        return State(torch.device("cpu"), criterion=head)

    kept, wanted = state((4, 5)), state(other)
    with pytest.raises(ValueError, match="the checkpoint's criterion does not fit") as error:
        wanted.load_state_dict(kept.state_dict())
    assert "\n" not in str(error.value) and "--savename" in str(error.value)


def test_best_is_of_the_best_epoch_and_last_of_the_last(folder):
    run = make(folder, best_of=["test/recall"])
    train(run, [0.5, 0.7, None, 0.6])
    best = checkpoint.load(folder.path / "best_test_recall.pt")
    last = checkpoint.load(run.last)
    assert (best["epoch"], int(best["embedder"]["value"])) == (2, 2)
    assert (last["epoch"], last["best"], last["flags"]) == (4, {"test/recall": 0.7}, FLAGS)
    assert run.best_checkpoint("test/recall", 2) == folder.path / "best_test_recall.pt"
    assert run.best_checkpoint("test/loss", 2) is None


def test_every_improvement_is_kept_on_request(folder):
    train(make(folder, best_of=["test/recall"], keep_all=True), [0.5, 0.4, math.nan, 0.7])
    names = {path.name for path in folder.path.glob("best_*")}
    assert names == {"best_test_recall_epoch1.pt", "best_test_recall_epoch4.pt"}


def test_scores_go_to_files_curves_and_trackers(folder):
    spy = Spy()
    run = make(folder, trackers=spy)
    train(run, [0.5, 0.6])
    table = folder.path / "classes_test.csv"
    table.write_text("class,recall@1\n")
    run.finish([folder.path / "views.png", table])  # the first is missing
    assert spy.sent[1:] == [
        ("log", {"train/loss": 0.5, "test/recall": 0.6}, 2),
        ("images", [run.curves]),
        ("tables", [table]),
        ("finish",),
    ]
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 2
    assert run.curves.stat().st_size > 1000


def test_an_epoch_is_told_in_one_line(folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = make(folder, best_of=["test/embeds/e_recall@1"])
    scored = {"test/embeds/e_recall@1": 0.5, "test/embeds/mAP@R": 0.25, "test/embeds/nmi": 0.9}
    now[0] = 1000.0  # evaluated before training
    run.record_untrained(scored, {})
    for epoch in run.epochs():
        now[0] += 1800
        scores = {"train/loss": 0.5, "train/images_per_second": 81.2}
        run.record(epoch, scores | (scored if epoch == 4 else {}))
    told = "test/embeds/e_recall@1 50.00, test/embeds/mAP@R 25.00"
    assert caplog.messages == [
        f"untrained: {told}",
        "epoch 1/4: loss 0.5000, 81 images/s, 1:30:00 left",
        "epoch 2/4: loss 0.5000, 81 images/s, 1:00:00 left",
        "epoch 3/4: loss 0.5000, 81 images/s, 0:30:00 left",
        f"epoch 4/4: loss 0.5000, {told}, 81 images/s",
    ]


def test_a_checkpoint_within_an_epoch_is_not_a_best_one(folder):
    run = make(folder, best_of=["test/recall"])
    train(run, [0.5])
    run.state.parts["embedder"].value = 17
    run.save()
    assert int(checkpoint.load(run.last)["embedder"]["value"]) == 17
    assert checkpoint.load(folder.path / "best_test_recall.pt")["epoch"] == 1


def test_the_scores_before_training_are_kept_until_the_end(folder):
    run = make(folder)
    before = {"embeds": torch.rand(4, 2), "by_class": {"test/recall": torch.rand(3)}}
    run.record_untrained({"test/recall": 0.25, "test/rare": math.nan}, before)
    train(run, [0.5])
    scores, kept = make(RunFolder.reopen(folder.path, 1)).untrained()
    assert scores["test/recall"] == 0.25 and math.isnan(scores["test/rare"])
    assert torch.equal(kept["embeds"], before["embeds"])
    assert torch.equal(kept["by_class"]["test/recall"], before["by_class"]["test/recall"])
    run.finish()
    assert not (folder.path / "before.pt").is_file()
    assert run.untrained()[1] == {}


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_damaged_embeddings_before_training_are_not_compared_with(folder, place):
    run = make(folder)
    run.record_untrained({}, {"embeds": torch.rand(40, 20), "rows": torch.arange(40)})
    before = folder.path / "before.pt"
    content = bytearray(before.read_bytes())
    content[int(place * len(content))] ^= 1
    before.write_bytes(content)
    try:
        _, kept = run.untrained()  # where the byte only fills a gap
    except ValueError as error:
        assert "before.pt is damaged; delete it to resume without" in str(error)
    else:
        assert place == 0.9 and kept["embeds"].shape == (40, 20) and len(kept["rows"]) == 40
    before.unlink()
    assert run.untrained()[1] == {}


class Grown(Part):
    def load_state_dict(self, state):
        raise RuntimeError("size mismatch for proxies:\n\tcopying (8, 4)")


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(folder, tmp_path):
    train(make(folder), [0.5])
    saved = to_resume(tmp_path, "emoji", "run", FLAGS)
    with pytest.raises(
        ValueError, match=r"--resume: the checkpoint's embedder does not fit"
    ) as why:
        make(RunFolder.reopen(saved.folder, 1), Grown(), saved=saved)
    assert "\n" not in str(why.value) and "size mismatch for proxies" in str(why.value)


def test_a_run_is_finished_once_its_last_file_is_written(folder):
    folder.write_config(FLAGS)
    run = make(folder)
    train(run, [0.5, 0.6, 0.7, 0.8])
    assert finished_flags(folder.path) is None  # the report and curves are missing
    run.finish()
    assert finished_flags(folder.path)["n_epochs"] == 4


# --------------------------------------------------------------------------------------------------
# Patience
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("recalls", "passed"),
    [
        ([0.1], 0),
        ([0.5, 0.5, 0.4], 2),  # equal is not higher
        ([0.5, 0.4, 0.6], 0),
        ([0.6, 0.5, 0.55, 0.6], 3),  # higher than the one before is not enough
        ([0.5, None, 0.4, None], 1),  # epochs without an evaluation do not count
        ([None, 0.5, 0.7, 0.6], 1),
        ([math.nan, math.nan, 0.1], 0),
        ([0.3, math.nan], 1),
        ([math.nan, math.inf], 2),
        ([0.3, math.inf, 0.4], 0),
        ([], 0),
    ],
)
def test_evaluations_without_a_higher_score_are_counted(recalls, passed):
    rows = [
        {"epoch": epoch} | ({} if recall is None else {"val/recall": recall})
        for epoch, recall in enumerate([0.9, *recalls])  # before training, which does not count
    ]
    assert evaluations_since_best(rows, ["val/recall"]) == passed
    assert evaluations_since_best(rows, ["val/other"]) == 0
    for row in rows:  # as they are read from metrics.jsonl
        if not math.isfinite(row.get("val/recall", 0.0)):
            row["val/recall"] = None
    assert evaluations_since_best(rows, ["val/recall"]) == passed


def test_one_of_several_scores_is_enough():
    rows = [{"a": 0.5, "b": 0.1}, {"a": 0.4, "b": 0.2}, {"a": 0.3, "b": 0.2}]
    rows = [{"epoch": epoch, **row} for epoch, row in enumerate(rows, 1)]
    assert [evaluations_since_best(rows, names) for names in ("a", "b", "ab")] == [2, 1, 1]


PATIENT = {"best_of": ["test/recall"], "patience": 2}


@pytest.mark.parametrize(
    ("recalls", "last"),
    [
        ([0.5, 0.4, 0.3, 0.9], 3),
        ([0.1, 0.2, 0.1, 0.3], 4),
        ([0.1, 0.2, 0.1, 0.1], 4),
        ([0.5, None, 0.4, None], 4),
    ],
)
def test_patience_ends_a_run(folder, recalls, last):
    run = make(folder, **PATIENT)
    train(run, recalls)
    assert [row["epoch"] for row in folder.rows] == list(range(1, last + 1))
    assert (run.final, run.n_epochs) == (last, 4)


def test_the_end_of_patience_is_told(folder, caplog):
    """A run that falls below what it began with may still rise; its best checkpoints do."""
    caplog.set_level("INFO")
    run = make(folder, **PATIENT | {"patience": 1})
    run.record_untrained({"test/recall": 0.9}, {})
    train(run, [0.5, 0.4])
    assert run.epoch == 2
    assert [line.partition(", ")[0] for line in caplog.messages[-2:]] == [
        "epoch 2/4: loss 0.5000",
        "stopped by --patience 1: no new best test/recall",
    ]


def test_a_run_that_patience_ended_is_finished_and_a_damaged_one_is_not(folder):
    folder.write_config(FLAGS)
    run = make(folder, **PATIENT)
    train(run, [0.5, 0.4, 0.3])
    run.finish()
    assert finished_flags(folder.path) == FLAGS
    assert read_config(folder.path)["stopped_after"] == 3
    rows = folder.path / "metrics.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    assert finished_flags(folder.path) is None


def test_the_last_epoch_of_a_patient_run_is_repeated_if_its_report_is_missing(folder, tmp_path):
    train(make(folder, **PATIENT), [0.5, 0.4, 0.3, 0.9])
    saved = to_resume(tmp_path, "emoji", "run", FLAGS)
    assert (saved["epoch"], saved.epoch) == (3, 2)
    run = make(RunFolder.reopen(saved.folder, saved.epoch), saved=saved, **PATIENT)
    train(run, [0.3, 0.9])
    assert [row["epoch"] for row in run.folder.rows] == [1, 2, 3]


def test_a_process_that_does_not_write_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr("utilities.distributed.is_first", lambda: False)
    files, spy = sorted(folder.path.iterdir()), Spy()
    run = make(folder, best_of=["test/recall"], trackers=spy)
    run.record_untrained({"test/recall": 0.25}, {"embeds": torch.ones(1, 1)})
    train(run, [0.5])
    run.finish()
    assert sorted(folder.path.iterdir()) == files and spy.sent == []


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_run_is_resumed_after_its_last_epoch_and_a_finished_one_repeats_it(
    folder, tmp_path, epoch
):
    train(make(folder, best_of=["test/recall"]), [0.5, 0.7, 0.1, 0.2][:epoch])
    drawn = torch.rand(1)
    saved = to_resume(tmp_path, "emoji", "run", FLAGS)
    part = Part()
    run = make(RunFolder.reopen(saved.folder, saved.epoch), part, saved=saved)
    assert part.value == epoch and torch.equal(torch.rand(1), drawn)
    assert list(run.epochs()) == list(range(min(epoch, 3) + 1, 5))
    assert run.best == {"test/recall": 0.7}


# --------------------------------------------------------------------------------------------------
# The checkpoint to resume from
# --------------------------------------------------------------------------------------------------
def save(folder, name, iteration, age=0):
    parts = {"iteration": iteration, "flags": FLAGS, "epoch": 1}
    checkpoint.save(folder.path / name, parts)
    os.utime(folder.path / name, (1e9 - age, 1e9 - age))


@pytest.mark.parametrize("spoil", [b"", b"no checkpoint", None])
def test_a_spoiled_checkpoint_is_replaced_by_the_newest_of_the_best(
    tmp_path, folder, caplog, spoil
):
    def iteration():
        saved = to_resume(tmp_path, "emoji", "run", FLAGS)
        return saved and saved["iteration"]

    assert to_resume(tmp_path, "emoji", "other", FLAGS) is None
    assert iteration() is None  # no checkpoint yet
    save(folder, "best_a.pt", 2, age=20)
    save(folder, "best_b.pt", 3, age=10)
    save(folder, "last.pt", 5, age=30)
    assert iteration() == 5
    last = folder.path / "last.pt"
    last.write_bytes(last.read_bytes()[:-200] if spoil is None else spoil)
    assert iteration() == 3
    assert str(last) in caplog.text
    (folder.path / "best_b.pt").write_bytes(b"")
    assert iteration() == 2
    (folder.path / "best_a.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"--resume: no checkpoint in .* can be read; delete"):
        iteration()


def test_averaged_weights_are_the_embedder_of_files_of_their_own(tmp_path, folder):
    """The best of their score among them; a damaged last.pt is not replaced by these."""
    state = State(torch.device("cpu"), embedder=Part(1), ema=Part(10), proxies=None)
    assert list(state.parts) == ["embedder", "ema"]
    best_of = ("test/embeds/nmi", "test/ema_embeds/nmi")
    run = Run(folder, state, flags=FLAGS, n_epochs=4, trackers=Trackers(), best_of=best_of)
    run.record(1, {"test/embeds/nmi": 0.5, "test/ema_embeds/nmi": 0.6})
    state.parts["embedder"].value, state.parts["ema"].value = 2, 20
    run.record(2, {"test/embeds/nmi": 0.4, "test/ema_embeds/nmi": 0.7})
    kept = {path.name: checkpoint.load(path) for path in folder.path.glob("*.pt")}
    assert {name: int(parts["embedder"]["value"]) for name, parts in kept.items()} == {
        "last.pt": 2, "ema.pt": 20,
        "best_test_embeds_nmi.pt": 1, "best_test_ema_embeds_nmi.pt": 20,
    }  # fmt: skip
    assert int(kept["last.pt"]["ema"]["value"]) == 20
    assert kept["ema.pt"]["flags"] == FLAGS and kept["ema.pt"]["epoch"] == 2
    folder.checkpoint("last").write_bytes(b"")
    assert int(to_resume(tmp_path, "emoji", "run", FLAGS)["embedder"]["value"]) == 1


def test_other_flags_are_refused_by_name(tmp_path, folder):
    save(folder, "last.pt", 5)
    assert to_resume(tmp_path, "emoji", "run", {**FLAGS, "kernels": 8, "n_epochs": None})
    with pytest.raises(ValueError, match=r"--lr 0.1 \(now 0.2\), --tau \[3\] \(now \[4\]\)"):
        to_resume(tmp_path, "emoji", "run", {**FLAGS, "lr": 0.2, "tau": [4]})


def test_checkpoints_of_older_versions_are_read_as_newer_ones(tmp_path, folder):
    older = {
        "optimizer": {"lr": 1}, "iteration": 9, "passes": {"epoch": 2}, "epoch": 1,
        "progress": {"loss": torch.ones(2)}, "adapted": {"reward": 1.0}, "flags": FLAGS,
    }  # fmt: skip
    checkpoint.save(folder.path / "last.pt", older)
    saved = to_resume(tmp_path, "emoji", "run", FLAGS)
    assert saved["trainer"]["optimizer"] == {"lr": 1} and saved["batches"] == {"epoch": 2}
    assert saved["progress"]["latest"] == {"miner/reward": 1.0}
    assert torch.equal(saved["progress"]["terms"]["loss"], torch.ones(2))


def test_periods_of_steps_and_minutes(monkeypatch):
    steps = Period("3")
    assert [step for step in range(1, 10) if steps.is_over(step)] == [3, 6, 9]
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    minutes, never = Period("1.5m"), Period("0")
    over = []
    for step in range(1, 10):
        now[0] += 40
        over += [step] * minutes.is_over(step)
        assert not never.is_over(step)
    assert over == [3, 6, 9]


def test_a_run_without_a_checkpoint_is_resumed_in_its_folder(tmp_path, folder):
    options = {"flags": FLAGS, "device": "cpu"}
    again = open_folder(tmp_path, "emoji", "run", **options, resume=True)
    assert again.path == folder.path
    assert open_folder(tmp_path, "emoji", "run", **options).path != folder.path


def test_a_run_of_steps_is_resumed_whatever_epochs_the_recipe_says(tmp_path, folder):
    save(folder, "last.pt", 5)
    asked = {**FLAGS, "max_steps": 9, "n_epochs": 6}
    assert to_resume(tmp_path, "emoji", "run", asked)["iteration"] == 5


def test_a_run_with_nothing_to_evaluate_draws_no_curves(folder):
    run = make(folder)
    run.write(0, {})
    run.finish()
    assert not run.curves.exists()
