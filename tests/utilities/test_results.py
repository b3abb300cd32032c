"""Tables from run folders."""

import json
import math

import pytest

from utilities import results


@pytest.fixture
def runs(tmp_path):
    """Two groups of three seeds; recalls that a hand can average."""
    recalls = {"baseline": (0.70, 0.72, 0.74), "guided": (0.71, 0.74, 0.74)}
    folders = []
    for group, values in recalls.items():
        for seed, value in enumerate(values):
            folder = tmp_path / f"{group}_s{seed}"
            folder.mkdir()
            config = {"flags": {"group": group, "seed": seed, "n_epochs": 4}}
            (folder / "config.json").write_text(json.dumps(config))
            rows = [{"epoch": 0, "recall": 0.1}, {"epoch": 4, "recall": value, "nmi": None}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            folders.append(folder)
    return folders


def test_interval_of_students_t():
    """Mean 2, s 1, n 3: 4.303 / sqrt(3)."""
    assert results.interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.4843, abs=1e-3))
    mean, half = results.interval([5.0])
    assert mean == 5.0 and math.isnan(half)


def test_table_of_last_epochs_with_paired_gains(runs):
    text = results.table([results.read(run) for run in runs], ["recall"], "baseline")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["group", "seeds", "epochs", "recall"]
    assert rows[2] == ["baseline", "3", "4", "72.00 ± 4.97"]
    # The gains 1, 2 and 0: mean 1, s 1.
    assert rows[3][3] == "73.00 ± 4.30 (+1.00 ± 2.48)"


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run"):
        results.read(tmp_path)


def test_unknown_scores_and_groups_are_named(runs, capsys):
    with pytest.raises(SystemExit):
        results.main([str(runs[0]), "--scores", "recall", "--baseline", "nobody"])
    assert "--baseline nobody is not among the groups: baseline" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        results.main([str(runs[0]), "--scores", "recal"])
    assert "recal is missing in the last row" in capsys.readouterr().err


def test_groups_beside_their_counterparts(runs, tmp_path):
    """The better group first; changes are over the seeds that both have."""
    for name, stem in (("margin", "baseline"), ("margin_guided", "guided")):
        for seed in (0, 1):
            folder = tmp_path / f"{name}_s{seed}"
            folder.mkdir()
            config = {"flags": {"group": name, "seed": seed, "n_epochs": 4}}
            (folder / "config.json").write_text(json.dumps(config))
            rows = (tmp_path / f"{stem}_s{seed}" / "metrics.jsonl").read_text()
            (folder / "metrics.jsonl").write_text(rows)
    (tmp_path / "baseline_guided").mkdir()
    config = {"flags": {"group": "baseline_guided", "seed": 2, "n_epochs": 4}}
    (tmp_path / "baseline_guided" / "config.json").write_text(json.dumps(config))
    (tmp_path / "baseline_guided" / "metrics.jsonl").write_text('{"epoch": 4, "recall": 0.8}\n')
    found = [results.read(folder) for folder in sorted(tmp_path.iterdir())]
    text = results.paired_table(found, ["recall"], "_guided")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["group", "seeds", "recall", "guided", "change"]
    assert rows[2] == ["baseline", "1", "72.00 ± 4.97", "80.00", "+6.00"]
    assert rows[3] == ["margin", "2", "71.00 ± 12.71", "72.50 ± 19.06", "+1.50 ± 6.35"]
    with pytest.raises(ValueError, match="--versus _x: no group's name"):
        results.paired_table(found, ["recall"], "_x")


def test_unfinished_runs_are_left_out_and_named(runs, capsys):
    (runs[0] / "metrics.jsonl").write_text('{"epoch": 2, "recall": 0.9}\n')
    results.main([*map(str, runs), "--scores", "recall"])
    printed = capsys.readouterr()
    assert "| baseline | 2 | 4 | 73.00" in printed.out
    assert "left out, not finished: baseline seed 0" in printed.err


def test_without_names_the_table_has_the_headlines_or_all_evaluations(runs, tmp_path, capsys):
    results.main([str(run) for run in runs])  # of the headlines these runs have none
    assert capsys.readouterr().out.splitlines()[0] == "| group | seeds | epochs | recall |"

    row = {"epoch": 4, "train/loss": 2.0} | dict.fromkeys(results.HEADLINES, 0.5)
    (runs[0] / "metrics.jsonl").write_text(json.dumps(row | {"another": 0.5}) + "\n")
    results.main([str(runs[0])])
    header = capsys.readouterr().out.splitlines()[0]
    assert [cell.strip() for cell in header.split("|")[4:-1]] == list(results.HEADLINES)
