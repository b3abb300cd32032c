"""The search over flags: what it draws, stores, resumes, refuses and prints."""

import fcntl
import json
import os
import re
import shlex
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy.exc
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

import parameters
from tests.runs import tiny_run
from utilities.search import __main__ as search
from utilities.search import space, trials

ROOT = Path(__file__).parents[2]
LINE = search.main_py()

# Stands for main.py: the score of fold f in epoch e is lr + f / 10 + (e == 2) / 100; that of the
# untrained network is higher, and nothing is evaluated in epoch 3.
FAKE = """
import json, os, pathlib, signal, sys, time

args = {"lr": "0.1"}
for word in sys.argv[1:]:
    if word.startswith("--"):
        args[name := word[2:]] = ""
    else:
        args[name] = word
here = pathlib.Path(__file__).parent
folder = pathlib.Path(args["save_path"], args["dataset"], args["savename"])
with (here / "ran.txt").open("a") as ran:
    ran.write(json.dumps({**args, "threads": os.environ["OMP_NUM_THREADS"]}) + "\\n")
if float(args["lr"]) > 1:
    print("reading", file=sys.stderr)
    print("error: --lr is too high", file=sys.stderr)
    print("at 0%\\rat 1%", file=sys.stderr)
    sys.exit(1)
folder.mkdir(parents=True, exist_ok=True)
if (folder / "last.pt").is_file() or not (folder / "metrics.jsonl").is_file():
    (folder / "config.json").write_text(json.dumps({"flags": {"n_epochs": 3}}))
    (folder / "last.pt").touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # saved
    (here / f"begun_{args['savename']}").touch()
    waited_for = here / f"wait_{args['savename']}"
    while waited_for.is_file() and len(list(here.glob("begun_*"))) < int(waited_for.read_text()):
        time.sleep(0.02)
    score = float(args["lr"]) + int(args["cv_fold"]) / 10
    scores = [9.0, score, score + 0.01, None]
    rows = [{"epoch": e, "val/embeds/e_recall@1": s} for e, s in enumerate(scores)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with a program that stands for main.py."""
    monkeypatch.setattr(trials, "POLL", 0.02)
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


def command(lab, *more, space=("lr=0.1..0.5",), fixed=()):
    """The words of a search of 2 folds, and the program that it runs."""
    words = ["--study", "s", "--cv_folds", "2", *more, "--space", *space]
    words += ["--", "--dataset", "animals", "--save_path", str(lab / "out"), *fixed]
    return words, [sys.executable, str(lab / "fake.py")]


def refused(capsys, command):
    """Return the message of a search that is refused."""
    with pytest.raises(SystemExit) as end:
        search.main(*command)
    assert end.value.code == 2
    return capsys.readouterr().err


def study_of(lab, storage="out/search/s/trials.db"):
    return optuna.load_study(study_name="s", storage=f"sqlite:///{lab / storage}")


def ran(lab):
    """The flags of every start of the program."""
    return [json.loads(line) for line in (lab / "ran.txt").read_text().splitlines()]


# --------------------------------------------------------------------------------------------------
# The space
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-6..1e-3:log", FloatDistribution(1e-6, 1e-3, log=True)),
        ("--language_distill_w=0..20", FloatDistribution(0.0, 20.0)),
        ("fc_lr=-1e-1..-1e-3", FloatDistribution(-0.1, -0.001)),
        ("samples_per_class=2..8:log", IntDistribution(2, 8, log=True)),
        ("batch_mining=distance,semihard", CategoricalDistribution(["distance", "semihard"])),
        ("tau=30 50,60", CategoricalDistribution(["30 50", "60"])),
        ("no_norm_decay=on,off", CategoricalDistribution(["on", "off"])),
        ("language_prompt={},'a {}' 'b {}'", CategoricalDistribution(["{}", "'a {}' 'b {}'"])),
    ],
)
def test_a_space_is_read_as_the_parser_reads_its_ends(text, expected):
    [(name, found)] = space.read_space([text], ["--bs", "840"], LINE).items()
    assert found == expected and text.removeprefix("--").startswith(f"{name}=")
    drawn = found.choices[0] if isinstance(found, CategoricalDistribution) else found.high
    args = LINE.parse(LINE.words({name: drawn}))
    values = {"30 50": [30, 50], "on": True, "{}": ["{}"]}
    assert args[name] == values.get(drawn, drawn)


@pytest.mark.parametrize(
    ("texts", "fixed", "message"),
    [
        (["lrr=1..2"], [], "main.py has no --lrr; the nearest are --lr,"),
        (["lr"], [], "--space lr: give lr=low..high"),
        (["lr=1..2", "lr=2..3"], [], "--lr is there twice"),
        (["lr=1..2"], ["--lr", "1"], "--lr is given after -- as well"),
        (["seed=0..9"], [], "--seed is the same for all trials"),
        (["lr=2..1"], [], "--space lr: 2 is not below 1"),
        (["lr=0..1"], [], "--lr/--learning_rate: 0 is out of range; it must be above 0"),
        (["decay=0..1:log"], [], "--space decay: 0 has no logarithm"),
        (["loss=margin..triplet"], [], "--space loss: --loss does not take a number"),
        (["batch_mining=distance,semihrd"], [], "semihrd is unknown; known, closest"),
        (["no_norm_decay=yes,no"], [], "give no_norm_decay=on,off"),
        (["bs=110,112", "samples_per_class=2,4"], [], "--samples_per_class 4 does not divide"),
        (["loss=margin,simclr"], ["--data_sampler", "random"], "simclr compares two views"),
        (["lr=1..2"], ["--group", "mine"], "--group is set by the search itself"),
        (["lr=1..2"], ["--patience", "2"], "--patience is set by the search itself"),
        (["patience=1..2"], [], "--patience is the same for all trials"),
        (["lr=1..2"], ["--lrr", "2"], "--lrr is not a flag"),
        (["lr=1..2", "--study", "a/b"], [], "--study 'a/b' cannot name a folder"),
        (["lr=1..2", "--objective", "test/embeds/nmi"], [], "must be a validation score"),
        (["lr=1..2", "--objective", "val/embeds/word_mAP"], [], "use val/words/word_mAP"),
        (["lr=1..2", "--objective", "val/words/nmi"], [], "use val/embeds/nmi"),
        (["lr=1..2", "--cv_folds", "1"], [], "--cv_folds: 1 is out of range"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_anything_runs(
    lab, capsys, texts, fixed, message
):
    assert message in refused(capsys, command(lab, space=texts, fixed=fixed))
    assert not (lab / "out").exists()


# --------------------------------------------------------------------------------------------------
# Trials
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("objective", "evaltypes"),
    [
        ("val/words/word_mAP", ["features"]),
        ("val/features/nmi", ["features"]),
        ("val/embeds/nmi", ["embeds", "features"]),
    ],
)
def test_words_search_the_output_that_the_run_evaluates(objective, evaltypes):
    flags = trials.trial_flags(LINE, ["--evaltypes", "features"], objective, Path("out"), 0, 2)
    assert flags["evaltypes"] == evaltypes
    assert flags["storage_metrics"] == [objective.rpartition("/")[2]]


def test_a_trial_is_the_mean_over_folds_of_the_best_epoch(lab, capsys):
    """lr + 0.05 + 0.01 by FAKE: neither epoch 0 nor one without an evaluation counts."""
    fixed = ("--lr_base_bs", "64", "--seed", "3", "--evaltypes", "features")
    search.main(*command(lab, "--trials", "6", fixed=fixed))
    study = study_of(lab)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    for trial in study.trials:
        assert trial.value == pytest.approx(trial.params["lr"] + 0.06, abs=1e-6)
        assert [epoch for _, epoch in trial.user_attrs["folds"]] == [2, 2]
    assert len({trial.params["lr"] for trial in study.trials}) == 6

    runs = ran(lab)
    assert [(run["savename"], run["cv_fold"]) for run in runs] == [
        (f"trial000{trial}_fold{fold}", str(fold)) for trial in range(6) for fold in range(2)
    ]
    for run in runs:
        assert {"resume", "no_test_metrics", "no_report"} <= run.keys()
        assert run["cv_folds"] == "2" and run["seed"] == "3" and run["lr_base_bs"] == "64"
    assert not list(lab.rglob("*.pt"))

    best = max(study.trials, key=lambda trial: trial.value)
    printed = capsys.readouterr().out
    [row] = re.findall(rf"^\| {best.number} \| {best.value:.4f} \|.*", printed, re.M)
    assert printed.index(row) == min(m.start() for m in re.finditer(r"^\| \d", printed, re.M))
    assert "best epochs of its folds: 2, 2 of 3; --n_epochs is their median" in printed
    assert "before training: val/embeds/e_recall@1 9.0000\nno trial scores above: before" in printed

    # The final run: the flags given and drawn, all training classes, evaluated on the test classes.
    [final] = re.findall(r"^  python main.py (.*)", printed, re.M)
    assert "for seed in 0 1 2 3 4; do" in printed
    file = str(lab / "out/search/s/best.json")
    for words in (shlex.split(final.replace("$seed", "5")), ["--config", file, "--seed", "5"]):
        args = parameters.parse(words)
        assert args.lr == pytest.approx(best.params["lr"], rel=1e-5)
        assert (args.n_epochs, args.seed, args.lr_base_bs, args.group) == (2, 5, 64, "s_best")
        assert args.cv_folds == 0 and not args.no_test_metrics
        assert args.evaltypes == ["features"] and args.save_path == str(lab / "out")


def test_the_flag_that_moves_the_score_is_the_important_one(lab, capsys):
    """FAKE reads no decay."""
    search.main(*command(lab, "--trials", "8", space=("decay=0..1", "lr=0.1..0.5")))
    said = capsys.readouterr().out
    [(trials, lr, decay)] = re.findall(r"from (\d) trials: lr (0\.\d+), decay (0\.\d+)", said)
    assert trials == "8" and float(lr) > 3 * float(decay)
    assert float(lr) + float(decay) == pytest.approx(1, abs=0.011)


def test_less_can_be_better_and_checkpoints_be_kept(lab):
    search.main(*command(lab, "--trials", "3", "--minimize", "--keep_checkpoints"))
    for trial in study_of(lab).trials:
        assert trial.value == pytest.approx(trial.params["lr"] + 0.05, abs=1e-6)
    assert study_of(lab).best_value == min(trial.value for trial in study_of(lab).trials)
    assert len(list(lab.rglob("last.pt"))) == 6


def test_trials_of_the_study_are_counted_and_not_drawn_again(lab, capsys):
    search.main(*command(lab, "--trials", "2"))
    search.main(*command(lab, "--trials", "5"))
    search.main(*command(lab, "--trials", "4", "--jobs", "2"))
    study = study_of(lab)
    assert len({trial.params["lr"] for trial in study.trials}) == len(study.trials) == 5
    assert len(ran(lab)) == 10
    capsys.readouterr()
    message = refused(capsys, command(lab, "--trials", "6", space=("lr=0.1..0.6",)))
    assert "started with --space lr=0.1..0.5 (now lr=0.1..0.6)" in message


def test_the_same_flags_are_not_run_twice(lab, capsys):
    search.main(*command(lab, "--trials", "8", space=("lr=0.1,0.2",)))
    values = {(trial.params["lr"], round(trial.value, 6)) for trial in study_of(lab).trials}
    assert values == {("0.1", 0.16), ("0.2", 0.26)}
    assert len(re.findall(r"^\| \d", capsys.readouterr().out, re.M)) == 2
    assert len(study_of(lab).trials) == 8 and len(ran(lab)) == 4


def test_studies_can_share_a_file(lab, capsys):
    storage = ("--storage", str(lab / "all.db"), "--trials", "1")
    for name in ("s", "t"):
        search.main(*command(lab, *storage, "--study", name))
    assert len(study_of(lab, "all.db").trials) == 1
    (lab / "broken.db").write_text("no database" * 100)
    message = refused(capsys, command(lab, "--storage", str(lab / "broken.db")))
    assert "broken.db cannot be used" in message


def test_a_run_that_fails_is_recorded_and_the_search_goes_on(lab, capsys):
    """Those with lr above 1 fail; three of them in a row end the search."""
    with pytest.raises(SystemExit) as end:
        search.main(*command(lab, "--trials", "30", space=("lr=0.1..4",)))
    printed = capsys.readouterr()
    trials = study_of(lab).trials
    states = ["failed" if trial.params["lr"] > 1 else "complete" for trial in trials]
    assert end.value.code == 1 and "3 failures in a row" in printed.err
    assert states[-3:] == ["failed"] * 3 and len(trials) < 30
    for trial, state in zip(trials, states, strict=True):
        assert trial.state == (TrialState.FAIL if state == "failed" else TrialState.COMPLETE)
        if state == "failed":
            assert trial.user_attrs["error"].startswith("error: --lr is too high (")
    runs = ran(lab)
    assert len(runs) == sum({"failed": 1, "complete": 2}[state] for state in states)


def test_a_score_that_no_run_has_is_a_failure_that_names_others(lab, capsys):
    with pytest.raises(SystemExit):
        search.main(*command(lab, "--objective", "val/embeds/e_recall@2"))
    printed = capsys.readouterr().out
    assert "has no val/embeds/e_recall@2; known, closest first: val/embeds/e_recall@1" in printed
    assert "none has a score" in printed


def test_trials_below_the_median_are_pruned_between_folds(lab):
    search.main(*command(lab, "--trials", "12", "--prune"))
    firsts = []
    pruned = 0
    for trial in study_of(lab).trials:
        first = trial.params["lr"] + 0.01
        worse = len(firsts) >= 5 and first < statistics.median(firsts)
        assert trial.state == (TrialState.PRUNED if worse else TrialState.COMPLETE)
        assert len(trial.user_attrs["folds"]) == (1 if worse else 2)
        pruned += worse
        firsts.append(first)
    assert pruned and len(ran(lab)) == 24 - pruned


def test_jobs_run_at_once_and_share_the_cores(lab, monkeypatch):
    """The first two trials wait for each other; alone, either would wait for ever."""
    for trial in range(2):
        (lab / f"wait_trial000{trial}_fold0").write_text("2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    search.main(*command(lab, "--trials", "3", "--jobs", "2", "--gpus", "4", "5"))
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    runs = ran(lab)
    assert {(run["threads"], run["kernels"]) for run in runs} == {(str(share), str(min(6, share)))}
    assert {run["gpu"] for run in runs if run["savename"] < "trial0002"} == {"4", "5"}
    assert [trial.state for trial in study_of(lab).trials] == [TrialState.COMPLETE] * 3


# --------------------------------------------------------------------------------------------------
# Interruption
# --------------------------------------------------------------------------------------------------
def begin(lab, *more):
    """A search in another process, once the second fold of its second trial is running."""
    (lab / "wait_trial0001_fold1").write_text("99")
    words, program = command(lab, *more)
    code = f"from utilities.search.__main__ import main; main({words!r}, {program!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    while not (lab / "begun_trial0001_fold1").is_file():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    return process


def assert_resumed(lab, before):
    """Trial 1 is there once, with the flags and folders that it had, and three trials in all."""
    there = trials.distinct_trials(study_of(lab))
    assert [trials.run_number(trial) for trial in there] == [0, 1, 3]  # 1 was resumed as the third
    assert all(trial.state == TrialState.COMPLETE for trial in there)
    assert there[1].params == before.params and there[1].number > before.number
    folders = sorted(path.parent.name for path in lab.rglob("metrics.jsonl"))
    assert folders == [f"trial000{trial}_fold{fold}" for trial in (0, 1, 3) for fold in range(2)]
    started = [run["savename"] for run in ran(lab)]
    assert started.count("trial0000_fold0") == 1  # that trial was complete
    assert started.count("trial0001_fold1") == 2  # this run was resumed


@pytest.mark.slow
def test_sigterm_lets_the_run_save_and_the_same_command_resumes(lab):
    process = begin(lab, "--trials", "3")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped by SIGTERM; repeat the command to resume" in said
    before = study_of(lab).trials[1]
    assert before.state == TrialState.RUNNING
    (lab / "wait_trial0001_fold1").unlink()
    search.main(*command(lab, "--trials", "3"))
    assert_resumed(lab, before)


def test_a_killed_search_resumes_once_its_run_has_ended(lab, capsys):
    process = begin(lab, "--trials", "3")
    process.kill()
    process.communicate()
    message = refused(capsys, command(lab, "--trials", "3"))  # the run is still writing
    assert "runs that outlived one" in message
    before = study_of(lab).trials[1]
    (lab / "wait_trial0001_fold1").unlink()
    with (lab / "out/search/s/.trials.db.s.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the run has ended
    search.main(*command(lab, "--trials", "3"))
    assert_resumed(lab, before)


# --------------------------------------------------------------------------------------------------
# main.py
# --------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("error", [StorageInternalError, sqlalchemy.exc.OperationalError])
def test_a_full_disk_ends_a_search_in_one_line(lab, capsys, monkeypatch, error):
    search.main(*command(lab, "--trials", "1"))
    full = sqlite3.OperationalError("database or disk is full")

    def fail(*_, **__):
        if error is StorageInternalError:
            raise StorageInternalError("in the commit") from full
        raise error("INSERT", {}, full) from full

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", fail)
        told = refused(capsys, command(lab, "--trials", "2"))
    assert "--storage" in told and "trials.db cannot be used (database or disk is full)" in told
    search.main(*command(lab, "--trials", "2"))
    assert "2 complete" in capsys.readouterr().out


def test_main_py_is_searched(animals, tmp_path, capsys):
    """Two folds of four training classes; the score is one that no flag asks for."""
    fixed = tiny_run(animals, tmp_path, "--n_epochs", "1", "--bs", "4", report=True)
    del fixed[fixed.index("--lr") : fixed.index("--lr") + 2]
    score = "val/embeds/intra_distance"
    words = ["--study", "s", "--trials", "1", "--cv_folds", "2", "--objective", score, "--minimize"]
    words += ["--space", "lr=1e-5..1e-3:log", "samples_per_class=2,4"]
    search.main([*words, "--", *fixed])
    [trial] = study_of(tmp_path, "search/s/trials.db").trials
    scores = []
    for fold in range(2):
        folder = tmp_path / f"search/s/animals/trial0000_fold{fold}"
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert not [name for row in rows for name in row if name.startswith("test/")]
        assert not list(folder.glob("*.html")) and not list(folder.glob("*.pt"))
        scores.append(rows[1][score])
        flags = json.loads((folder / "config.json").read_text())["flags"]
        assert flags["lr"] == pytest.approx(trial.params["lr"], rel=1e-5)
        assert str(flags["samples_per_class"]) == trial.params["samples_per_class"]
    assert scores[0] != scores[1] and trial.value == pytest.approx(statistics.fmean(scores))
    assert '--seed "$seed" --resume' in capsys.readouterr().out
