"""Tables, curves and comparisons from run folders, as the command line makes them."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats

from evaluation import scores
from metrics.registry import METRICS
from utilities.results import __main__ as results
from utilities.results import runs as reading
from utilities.results.report import HEADLINES
from utilities.results.tables import COLUMNS

ROOT = Path(__file__).parents[2]
RECALLS = {"baseline": (0.70, 0.72, 0.74), "guided": (0.71, 0.74, 0.74)}


def leave(parent, group, seed, rows, *, suffix="", date="2026-01-01", **flags):
    """Write the folder that a run leaves; its last row is its last epoch."""
    folder = parent / f"{group}_s{seed}{suffix}"
    folder.mkdir()
    known = {"dataset": "emoji", "group": group, "seed": seed, "n_epochs": rows[-1]["epoch"]}
    config = {"flags": {**known, **flags}, "date": date, "git": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("metric", METRICS)
def test_the_table_of_metrics_says_which_are_fractions(metric):
    """Known here without it, since reading runs must not wait for torch."""
    name = f"test/embeds/{metric.replace('@k', '@4')}"
    assert reading.is_fraction(name) == scores.is_fraction(name)


@pytest.fixture
def make(tmp_path):
    return lambda group, seed, *rows, **options: leave(tmp_path, group, seed, rows, **options)


@pytest.fixture
def runs(make):
    """Two groups of three seeds; recalls that a hand can average."""
    return [
        make(
            *(group, seed, {"epoch": 0, "recall": 0.1}),
            {"epoch": 4, "recall": recall, "train/loss": 2.0},
        )
        for group, recalls in RECALLS.items()
        for seed, recall in enumerate(recalls)
    ]


class Cli:
    """Runs the command."""

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, *words):
        """Return what is printed on standard output and standard error."""
        results.main([str(word) for word in words])
        return self.capsys.readouterr()

    def table(self, *words):
        """Return the cells of the Markdown table, and all that is printed."""
        printed = self(*words)
        lines = [line for line in printed.out.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return [cells[0], *cells[2:]], printed

    def csv(self, *words):
        return list(csv.DictReader(io.StringIO(self(*words, "--format", "csv").out)))

    def refused(self, *words):
        """Return the message of a command that is refused."""
        with pytest.raises(SystemExit):
            self(*words)
        return self.capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def cli(capsys):
    return Cli(capsys)


# --------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------
def test_last_epochs_with_paired_gains(runs, cli):
    rows, printed = cli.table(*runs, "--baseline", "baseline")
    assert rows == [
        ["group", "seeds", "recall"],
        ["baseline", "3", "72.00 ± 4.97"],
        # The gains 1, 2 and 0: mean 1, s 1, half 4.3027 / sqrt(3); t is sqrt(3), p 0.225.
        ["guided", "3", "73.00 ± 4.30 (+1.00 ± 2.48)"],
    ]
    assert "emoji: scores after the last epoch, 4" in printed.err
    assert "** p < 0.01: two-sided paired t-test." in printed.out


def test_folds_of_one_seed_are_runs_of_their_own(make, cli):
    folders = [
        make("cv", 0, {"epoch": 1, "recall": recall}, suffix=f"_f{fold}", cv_folds=3, cv_fold=fold)
        for fold, recall in enumerate((0.4, 0.5, 0.9))
    ]
    (_, row), printed = cli.table(*folders)
    assert row[:2] == ["cv", "3"] and row[-1].startswith("60.00 ± ")
    assert "seed 0" not in printed.err
    assert cli.csv(*folders)[0]["seeds"] == "0f0 0f1 0f2"


def test_one_shared_seed_says_nothing(runs, cli):
    rows, printed = cli.table(*runs[:3], runs[4], "--baseline", "baseline")
    assert rows[2] == ["guided", "1", "74.00 (+2.00)"]
    assert "One shared seed says nothing about significance: guided." in printed.out
    assert "p < 0.05" not in printed.out
    _, printed = cli.table(runs[0], runs[5], "--baseline", "baseline")
    assert "significance" not in printed.out  # no seed is shared, nothing is compared


def test_stars_are_after_the_correction(make, cli):
    """Gains of p 0.0371 each: alone a star, among two groups none."""
    assert stats.ttest_1samp([0.01, 0.02, 0.014], 0).pvalue == pytest.approx(0.0371, abs=1e-4)
    folders = [
        make(group, seed, {"epoch": 1, "recall": 0.5 + factor * gain})
        for group, factor in (("base", 0), ("one", 1), ("two", 2))
        for seed, gain in enumerate((0.01, 0.02, 0.014))
    ]
    rows, printed = cli.table(*folders, "--baseline", "base")
    assert "paired t-test, Holm's correction over 2 groups in each score." in printed.out
    gains = ["51.47 ± 1.25 (+1.47 ± 1.25)", "52.93 ± 2.50 (+2.93 ± 2.50)"]
    assert [row[2] for row in rows[2:]] == gains
    rows, _ = cli.table(*folders, "--baseline", "base", "--groups", "base", "one")
    assert rows[2][2] == "51.47 ± 1.25 (+1.47 ± 1.25*)"


def test_groups_beside_their_counterparts(runs, make, tmp_path, cli):
    """The better group first; changes are over the seeds that both have."""
    for group, twin in (("margin", "baseline"), ("margin_guided", "guided")):
        for seed in (0, 1):
            make(group, seed, {"epoch": 4, "recall": RECALLS[twin][seed] + 0.1})
    make("baseline_guided", 2, {"epoch": 4, "recall": 0.8})
    words = (*sorted(tmp_path.iterdir()), "--versus")
    rows, printed = cli.table(*words, "_guided")
    assert rows == [
        ["group", "seeds", "recall", "guided", "change"],
        ["margin", "2", "81.00 ± 12.71", "82.50 ± 19.06", "+1.50 ± 6.35"],
        ["baseline", "1", "72.00 ± 4.97", "80.00", "+6.00"],
    ]
    assert "significance: baseline_guided." in printed.out
    rows, _ = cli.table(*words, "_guided", "--groups", "baseline=`base`", "margin")
    assert [row[0] for row in rows[1:]] == ["`base`", "margin"]
    assert "--versus _x: no group's name" in cli.refused(*words, "_x")


def test_rows_and_columns_are_named_chosen_and_sorted(runs, cli):
    words = (*runs, "--scores", "recall=R@1")
    rows, _ = cli.table(*words, "--groups", "guided=+ words", "baseline")
    assert rows == [
        ["group", "seeds", "R@1"],
        ["+ words", "3", "73.00 ± 4.30"],
        ["baseline", "3", "72.00 ± 4.97"],
    ]
    assert [row[0] for row in cli.table(*words)[0][1:]] == ["baseline", "guided"]
    assert [row[0] for row in cli.table(*words, "--sort")[0][1:]] == ["guided", "baseline"]


def test_the_default_scores_are_the_headlines_or_all_evaluations(make, cli):
    row = {"epoch": 1, "train/loss": 2.0, "train/embeds/nmi": 0.5, "other": 0.5}
    names = [f"test/embeds/{name}" for name in HEADLINES]
    plain, full, part = (
        make(name, 0, row | dict.fromkeys(scores, 0.5))
        for name, scores in (("plain", ()), ("full", names), ("part", names[:2]))
    )
    assert cli.table(plain)[0][0][2:] == ["other"]
    assert cli.table(full)[0][0][2:] == names
    assert cli.table(full, part)[0][0][2:] == names[:2]


def test_search_by_words_is_a_headline_in_percent_and_its_control_is_not(make, cli):
    row = {"epoch": 1, "test/embeds/e_recall@1": 0.5, "test/words/word_recall@1": 0.0707}
    row |= {"test/words/word_mAP": 0.0594, "test/words/named@1": 0.1}
    row |= {"test/permuted_words/word_recall@1": 0.0032, "test/permuted_words/word_mAP": 0.004}
    heading, line = cli.table(make("guided", 0, row))[0]
    names = ["test/embeds/e_recall@1", "test/words/word_recall@1", "test/words/word_mAP"]
    assert heading[2:] == names
    assert line[2:] == ["50.00", "7.07", "5.94"]


def test_each_dataset_has_its_table(runs, make, cli):
    cub = make("cub", 0, {"epoch": 1, "test/embeds/nmi": 0.5}, dataset="cub200")
    text = cli(*runs, cub).out
    places = [text.index(part) for part in ("**emoji**", "| baseline", "**cub200**", "| cub |")]
    assert places == sorted(places)
    assert {row["dataset"] for row in cli.csv(*runs, cub)} == {"emoji", "cub200"}
    message = cli.refused(*runs, cub, "--curves", "c.png")
    assert "--curves draws one dataset, but the runs are of emoji, cub200" in message


def test_latex_is_escaped_and_the_best_is_bold(make, tmp_path, cli):
    name = "test/embeds/wrong_word_similarity@10"
    folders = [
        make(group, seed, {"epoch": 1, name: value, "test/loss": -value})
        for group, values in {"a&b_50%": (0.5, 0.6, 0.61), "x#": (0.7, 0.7, 0.7)}.items()
        for seed, value in enumerate(values)
    ]
    output = tmp_path / "tables" / "table.tex"
    words = ("--scores", name, "test/loss", "--output", output, "--format", "latex")
    assert cli(*folders, "--baseline", "x#", *words).out == ""
    text = output.read_text()
    assert list(output.parent.iterdir()) == [output]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert rows[0] == r"group & seeds & test/embeds/wrong\_word\_similarity@10 & test/loss \\"
    assert r"\begin{tabular}{lrrr}" in text and r"95 \% confidence" in text
    assert rows[1].startswith(r"a\&b\_50\% & 3 & $57.00 \pm 15.11$ ($-13.00 \pm 15.11$) & $-0.5700")
    assert rows[2] == r"x\# & 3 & $\mathbf{70.00} \pm 0.00$ & $-0.7000 \pm 0.0000$ \\"
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert all(len(re.findall(r"(?<!\\)&", row)) == 3 for row in rows)
    assert text.count("{") == text.count("}")


def test_csv_holds_every_digit_and_both_tests(make, cli):
    gains = (0.013, 0.021, 0.008, 0.017, 0.011, -0.002)
    folders = [
        make(group, seed, {"epoch": 1, "recall": 0.5 + seed / 7 + factor * gain})
        for group, factor in (("base", 0), ("more", 1))
        for seed, gain in enumerate(gains)
    ]
    base, more = cli.csv(*folders, "--baseline", "base")
    assert tuple(base) == COLUMNS
    assert base["n"] == "6" and base["seeds"] == "0 1 2 3 4 5" and base["p_t"] == ""
    assert float(more["difference"]) == pytest.approx(sum(gains) / 6)
    assert float(more["p_t"]) == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
    assert float(more["p_wilcoxon"]) == pytest.approx(stats.wilcoxon(gains).pvalue)
    assert more["versus"] == "base" and more["n_pairs"] == "6" and more["epoch_by"] == "last"
    assert stats.ttest_1samp(gains, 0).pvalue < 0.05 < stats.wilcoxon(gains).pvalue
    note = "more in recall: p 0.0176 by the t-test, 0.0625 by Wilcoxon's"
    assert note in cli(*folders, "--baseline", "base").err


# --------------------------------------------------------------------------------------------------
# Epochs
# --------------------------------------------------------------------------------------------------
@pytest.fixture
def validated(make):
    """Two seeds whose validation, test and last epochs differ; epoch 0 is above all of them."""
    val, test = "val/embeds/e_recall@1", "test/embeds/e_recall@1"
    rows = [
        {"epoch": 0, val: 0.99, test: 0.99},
        {"epoch": 1, val: 0.6, test: 0.50, "train/loss": 1.0},
        {"epoch": 2, val: 0.8, test: 0.40, "train/loss": 1.0},
        {"epoch": 3, val: 0.8, test: 0.30, "train/loss": 1.0},
    ]
    later = [*rows[:2], {**rows[2], val: None}, rows[3]]
    return [make("g", 0, *rows), make("g", 1, *later)]


def test_epochs_are_chosen_by_validation_where_there_is_one(validated, cli):
    """The first of equal ones, none without a number, and never epoch 0 of a run that trains."""
    rows, printed = cli.table(*validated)
    assert rows[0] == ["group", "seeds", "best epoch by validation", "test/embeds/e_recall@1"]
    assert rows[-1][2:] == ["2/3", "35.00 ± 63.53"]
    assert "emoji: scores at each run's best epoch by val/embeds/e_recall@1" in printed.err
    assert "optimistic" not in printed.out
    _, printed = cli.table(*validated, "--scores", "val/embeds/e_recall@1")
    assert "Validation scores are optimistic" in printed.out


def test_the_last_epoch_or_one_by_number(validated, cli):
    rows, printed = cli.table(*validated, "--epoch_by", "last")
    assert rows[-1] == ["g", "2", "30.00 ± 0.00"]
    assert "after the last epoch, 3" in printed.out
    assert cli.table(*validated, "--epoch_by", "1")[0][-1] == ["g", "2", "50.00 ± 0.00"]
    message = cli.refused(*validated, "--epoch_by", "7")
    assert "--epoch_by 7: g seed 0 was evaluated at epochs 0, 1, 2, 3" in message
    message = cli.refused(*validated, "--epoch_by", "best")
    assert "must be validation, last, test or an epoch; got best" in message


def test_epochs_chosen_on_test_classes_are_labelled_everywhere(validated, cli):
    label = "best epoch on test classes: optimistic"
    rows, printed = cli.table(*validated, "--epoch_by", "test")
    assert rows[0][2] == label and rows[-1][2:] == ["1", "50.00 ± 0.00"]
    assert "test classes" in printed.out.splitlines()[-1] and "optimistic" in printed.err
    text = cli(*validated, "--epoch_by", "test", "--format", "latex").out
    assert label in text and "optimistic" in text[text.index(r"\caption") : text.index("tabular")]
    [row] = cli.csv(*validated, "--epoch_by", "test")
    assert row["epoch_by"] == "test classes: optimistic"
    text = cli("--compare", *validated, "--epoch_by", "test").out
    assert "on test classes, by test/embeds/e_recall@1: optimistic" in text


def test_one_rule_for_all_runs(validated, runs, cli):
    message = "g seed 0 has validation scores and baseline seed 0 has none"
    assert message in cli.refused(*validated, *runs)
    assert cli.table(*validated, *runs, "--groups", "baseline")[0][1][0] == "baseline"


def test_scores_that_cannot_choose_an_epoch_are_refused(validated, runs, cli):
    for score, message in (
        ("test/embeds/e_recall@1", "does not fit --epoch_by validation"),
        ("val/embeds/e_recall@10", "is missing at every epoch"),
        ("val/embeds/uniformity", "must be a score that is better when higher"),
    ):
        assert message in cli.refused(*validated, "--epoch_score", score)
    message = cli.refused(*runs, "--epoch_by", "validation")
    assert "baseline seed 0 has no validation score e_recall@1" in message
    for ending in ((*validated, "--epoch_by", "last"), runs):
        assert "last ignores scores" in cli.refused("--epoch_score", "recall", *ending)


# --------------------------------------------------------------------------------------------------
# Damaged and unsuitable input
# --------------------------------------------------------------------------------------------------
def test_unfinished_runs_are_left_out_and_named(runs, cli):
    (runs[0] / "metrics.jsonl").write_text('{"epoch": 2, "recall": 0.9}\n')
    (runs[3] / "metrics.jsonl").unlink()  # has only just begun
    rows, printed = cli.table(*runs)
    assert [row[1] for row in rows[1:]] == ["2", "2"]
    left = "left out, not finished: baseline seed 0 (epoch 2 of 4), guided seed 0 (epoch 0 of 4)"
    assert left in printed.err
    assert "no finished run; left out, not finished" in cli.refused(runs[0])


def test_a_last_line_that_was_cut_short_makes_a_run_unfinished(runs, cli):
    path = runs[0] / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert "left out, not finished: baseline seed 0 (epoch 0 of 4)" in cli.table(*runs)[1].err
    path.write_text('{"epoch": 0\n{"epoch": 4, "recall": 0.5}\n')
    assert f"{path} line 1 is damaged; remove the line" in cli.refused(*runs)


def test_folders_without_a_run_are_left_out_and_named(runs, tmp_path, cli):
    (tmp_path / "notes").mkdir()
    (tmp_path / "curves.png").write_text("")
    _, printed = cli.table(*runs, tmp_path / "notes", tmp_path / "curves.png")
    assert "left out, not a run folder: notes, curves.png" in printed.err
    assert f"{tmp_path / 'typo'} does not exist" in cli.refused(*runs, tmp_path / "typo")
    (runs[0] / "config.json").write_text("{")
    assert f"{runs[0]} holds no run (config.json:" in cli.refused(*runs)
    for content in ("[" * 100_000, "[]", '{"flags": [1]}', '{"flags": {}, "flags": {}}'):
        (runs[0] / "config.json").write_text(content)
        assert f"{runs[0]} holds no run (config.json:" in cli.refused(*runs)
    (runs[0] / "config.json").write_text('{"flags": {"group": "g"}}')
    assert "lacks dataset, n_epochs, seed" in cli.refused(*runs)


def test_runs_beneath_a_folder_are_found(runs, make, tmp_path, cli):
    """Not the trials of a search, nor evaluations, which have the seed of the run they evaluate."""
    make("baseline", 0, {"epoch": 4, "recall": 0.1}, suffix="_evaluation", evaluate_only=True)
    (tmp_path / "search" / "study" / "deep").mkdir(parents=True)
    (tmp_path / "search" / "study" / "trials.db").touch()
    leave(tmp_path / "search" / "study" / "deep", "trial", 0, [{"epoch": 4, "recall": 0.9}])
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text("{}")  # of something else
    (tmp_path / "other").mkdir()
    rows = [{"epoch": 1, "val/embeds/e_recall@1": 0.5}]  # chosen by another rule
    leave(tmp_path / "other", "g", 0, rows, dataset="cub200")
    rows, printed = cli.table(tmp_path)
    assert rows[0:3] == cli.table(*runs)[0]
    assert "cub200: scores at each run's best epoch" in printed.err and "trial" not in printed.out
    found = {(row["dataset"], row["group"]): row["epoch_by"] for row in cli.csv(tmp_path)}
    assert found == {
        ("emoji", "baseline"): "last", ("emoji", "guided"): "last", ("cub200", "g"): "validation",
    }  # fmt: skip


def test_runs_for_deployment_are_left_out_and_named(runs, make, cli):
    """They have no scores of unseen classes, and would leave the others without one in common."""
    deployed = make("all", 0, {"epoch": 4, "train/embeds/e_recall@1": 0.9, "train/loss": 1})
    rows, printed = cli.table(*runs, deployed)
    assert rows == cli.table(*runs)[0]
    assert "emoji: left out, scored on training classes alone: all seed 0" in printed.err
    assert "scored on training classes alone; name --scores" in cli.refused(deployed)
    name = "train/embeds/e_recall@1"
    assert cli.table(deployed, "--scores", name)[0][1] == ["all", "1", "90.00"]


def test_of_one_seed_the_newest_run_is_taken(runs, make, cli):
    for suffix, date, recall in (
        ("_2", "2026-01-02", 0.8),
        ("_10", "2026-01-02", 0.9),
        ("_11", "2025-01-01", 0.2),
    ):
        row = {"epoch": 4, "recall": recall}
        runs.append(make("baseline", 0, row, suffix=suffix, date=date))
    rows, printed = cli.table(*runs, runs[0])  # one folder twice is one run
    assert rows[1] == ["baseline", "3", "78.67 ± 24.51"]  # 0.9, 0.72, 0.74
    assert "baseline seed 0: took baseline_s0_10, the newest, and left out" in printed.err
    assert all(f"baseline_s0{suffix}" in printed.err for suffix in ("", "_2", "_11"))


def test_scores_that_are_not_finite_leave_no_mean(runs, cli):
    (runs[3] / "metrics.jsonl").write_text('{"epoch": 4, "recall": null}\n')
    (runs[4] / "metrics.jsonl").write_text('{"epoch": 4, "recall": NaN}\n')
    rows, printed = cli.table(*runs, "--baseline", "baseline")
    assert rows[2] == ["guided", "3", "nan (+nan)"]
    note = "Not finite: recall of guided seed 0, recall of guided seed 1; its group has no mean."
    assert note in printed.out
    _, guided = cli.csv(*runs, "--baseline", "baseline")
    assert guided["mean"] == guided["p_t"] == "" and guided["n"] == "3"


def test_groups_that_mix_flags_are_named(runs, make, cli):
    for seed, flags in ((3, {"lr": 0.1}), (4, {"lr": 0.2, "kernels": 9})):
        runs.append(make("baseline", seed, {"epoch": 8, "recall": 0.7}, **flags))
    rows, printed = cli.table(*runs)
    assert rows[0][2] == "epochs" and rows[1][2] == "4/8"
    note = "the runs of baseline differ in more than the seed: --n_epochs 4 / 8, --lr 0.1 / 0.2"
    assert note in printed.err.splitlines()


def test_unknown_scores_and_groups_are_named(runs, make, cli):
    early = make("early", 0, {"epoch": 1, "nmi": 0.2}, {"epoch": 2, "recall": 0.2})
    bare = make("bare", 0, {"epoch": 2, "train/loss": 0.2})
    other = make("other", 0, {"epoch": 2, "b": 0.1})
    for words, message in (
        ((*runs, "--baseline", "nobody"), "nobody is not among the groups: baseline, guided"),
        ((*runs, "--groups", "guidde"), "no finished run"),
        ((*runs, "--groups", "guided", "basline"), "basline is not among the groups; closest"),
        (
            (*runs, "--scores", "recal"),
            "--scores recal is missing in epoch 4 of baseline seed 0; known, closest",
        ),
        ((early, "--scores", "nmi"), "early seed 0, which has it at 1;"),
        ((bare,), "bare_s0: no epoch was evaluated"),
        ((early, other), "no score in common"),
    ):
        assert message in cli.refused(*words)


def test_flags_that_do_not_go_together(runs, cli):
    for words, message in (
        ((), "give run folders"),
        ((*runs, "--baseline", "a", "--versus", "b"), "give one of them"),
        ((*runs[2:], "--compare", *runs[:2]), "--compare takes only its two runs"),
        (("--scores", "recall", "--compare", *runs[:2]), "--compare takes only its two runs"),
        (("--sort", "--compare", *runs[:2]), "--compare takes only its two runs"),
        ((*runs, "--curves", "c.jpg"), "--curves must end in .png, .svg, .pdf; got c.jpg"),
    ):
        assert message in cli.refused(*words)


# --------------------------------------------------------------------------------------------------
# Two runs
# --------------------------------------------------------------------------------------------------
def test_two_runs_flag_by_flag_and_score_by_score(make, cli):
    row = {"epoch": 2, "train/loss": 1.5, "test/embeds/e_recall@1": 0.5}
    shared = {"lr": 0.1, "tau": [10, 20]}
    a = make("a", 0, row, **shared, bs=90, save_path="here", old=1)
    other = row | {"test/embeds/e_recall@1": 0.515, "test/embeds/nmi": 0.25}
    b = make("b", 0, other, **shared, bs=112, save_path="there", new=None)
    config = json.loads((b / "config.json").read_text())
    config |= {"git": {"commit": "abc", "dirty": True}, "packages": {"torch": "2.14"}}
    (b / "config.json").write_text(json.dumps(config))
    rows, printed = cli.table("--compare", a, b)
    assert [row for row in rows if re.match("--[a-z]", row[0])] == [
        ["--group", "a", "b"],
        ["--bs", "90", "112"],
        ["--old", "1", "–"],
        ["--new", "–", "None"],
    ]
    assert "Flags that only say where they ran: --save_path here and there" in printed.out
    for line in (
        ["commit", "–", "abc and changes to it"],
        ["torch", "–", "2.14"],
        ["epoch", "2", "2", ""],
        ["train/loss", "1.5000", "1.5000", "+0.0000"],
        ["test/embeds/e_recall@1", "0.5000", "0.5150", "+0.0150"],
        ["test/embeds/nmi", "–", "0.2500", "–"],
    ):
        assert line in rows
    assert not any(row[0] in ("--lr", "--tau", "date") for row in rows)
    lines = [list(row.values()) for row in cli.csv("--compare", a, b)]
    assert ["place", "--save_path", "here", "there", ""] in lines
    assert ["score", "test/embeds/e_recall@1", "0.5000", "0.5150", "+0.0150"] in lines
    text = cli("--compare", a, b, "--format", "latex").out
    assert r"score & A & B & B $-$ A \\" in text
    assert r"test/embeds/e\_recall@1 & 0.5000 & 0.5150 & +0.0150 \\" in text


def test_a_run_beside_itself_and_one_that_is_not_finished(runs, cli):
    text = cli("--compare", runs[0], runs[0]).out
    assert "Every flag that shapes a run is the same." in text and "| flag |" not in text
    (runs[1] / "metrics.jsonl").write_text('{"epoch": 2, "recall": 0.9}\n')
    rows, printed = cli.table("--compare", *runs[:2])
    assert f"{runs[1]} is not finished" in printed.err
    assert ["epoch", "4", "2", ""] in rows


def test_reading_needs_only_the_standard_library():
    """main.py leaves early through these modules."""
    code = (
        "import sys, utilities.finished, utilities.run_files; "
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("versus", ["", "_guided"])
def test_what_the_runs_began_with_heads_the_table(make, cli, versus):
    score, backbone = "test/embeds/e_recall@1", "test/backbone/e_recall@1"
    folders = [
        make(group, seed, {"epoch": 0, score: start, backbone: 0.4}, {"epoch": 4, score: end})
        for group, end in (("plain", 0.5), ("plain_guided", 0.6))
        for seed, start in ((0, 0.2), (1, 0.3))
    ]
    (_, *rows), _ = cli.table(*folders, *(["--versus", versus] if versus else []))
    assert [row[0] for row in rows] == [
        "backbone's features", "before training", "plain", *([] if versus else ["plain_guided"]),
    ]  # fmt: skip
    assert [row[2] for row in rows[:2]] == ["40.00", "25.00"]
    assert {len(row) for row in rows} == {5 if versus else 3}
