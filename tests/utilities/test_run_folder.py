"""Run folders: never shared, always readable, and silent about the environment."""

import csv
import json
import math
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from utilities import run_folder
from utilities.run_folder import RunFolder, read_rows


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "emoji", "margin_s0")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_names_count_up(tmp_path):
    paths = [RunFolder.create(tmp_path, "emoji", "margin_s0").path for _ in range(3)]
    names = ["margin_s0", "margin_s0_2", "margin_s0_3"]
    assert paths == [tmp_path / "emoji" / name for name in names]


def test_runs_that_start_together_never_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.create(tmp_path, "d", "run"), range(24)))
    assert len({folder.path for folder in folders}) == 24


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/x"])
def test_a_name_stays_in_the_save_path(tmp_path, name):
    with pytest.raises(ValueError, match="--savename"):
        RunFolder.create(tmp_path, "emoji", name)
    with pytest.raises(ValueError, match="--dataset"):
        RunFolder.create(tmp_path, name, "run")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "emoji"])


def test_a_save_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--save_path .*file cannot be written"):
        RunFolder.create(tmp_path / "file", "emoji", "run")


def test_metrics_are_on_disk_after_every_epoch(folder):
    for epoch in range(3):
        folder.record(epoch, {"e_recall@1": epoch / 10})
        lines = (folder.path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == folder.rows
        assert len(table(folder.path / "metrics.csv")) == epoch + 1


def test_csv_has_every_column_that_any_epoch_had(folder):
    folder.record(0, {"test.nmi": 0.5})
    folder.record(1, {"loss": 2.0, "test.nmi": 0.6})
    folder.record(2, {"loss": 1.0})
    assert table(folder.path / "metrics.csv") == [
        {"epoch": "0", "test.nmi": "0.5", "loss": ""},
        {"epoch": "1", "test.nmi": "0.6", "loss": "2.0"},
        {"epoch": "2", "test.nmi": "", "loss": "1.0"},
    ]


def test_scores_that_are_not_finite_stay_json(folder):
    folder.record(0, {"a": math.nan, "b": math.inf, "c": torch.tensor(0.5)})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"epoch": 0, "a": None, "b": None, "c": 0.5}


def test_reopened_run_goes_on_after_its_epoch(folder):
    for epoch in range(4):
        folder.record(epoch, {"loss": float(epoch)})
    again = RunFolder.reopen(folder.path, epoch=1)
    again.record(2, {"loss": 9.0})
    rows = read_rows(folder.path / "metrics.jsonl")
    assert [(row["epoch"], row["loss"]) for row in rows] == [(0, 0.0), (1, 1.0), (2, 9.0)]
    assert [row["loss"] for row in table(folder.path / "metrics.csv")] == ["0.0", "1.0", "9.0"]


def test_what_a_killed_process_was_writing_is_removed(folder):
    (folder.path / ".last.pt.x1y2").write_bytes(b"half")
    (folder.path / ".wandb").mkdir()
    RunFolder.reopen(folder.path, 0)
    assert {path.name for path in folder.path.glob(".*")} == {".lock", ".wandb"}


def test_reopen_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        RunFolder.reopen(tmp_path / "gone", epoch=1)


def test_a_last_line_cut_short_is_dropped_and_an_inner_one_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1, "lo')
    assert read_rows(path) == [{"epoch": 0}]
    path.write_text('{"epoch": 0, "lo\n{"epoch": 1}\n')
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_rows(path)
    path.write_bytes(b'{"epoch": 0}\n\0\0\0')  # as a power cut may leave it
    assert read_rows(path) == [{"epoch": 0}]
    assert read_rows(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(
    "damaged",
    [
        '{"epoch": 1, "loss": 0.5',
        '{"epoch": 1, "loss": "0.5"}',
        '{"epoch": 1, "loss": [0.5]}',
        '{"epoch": 1.5, "loss": 0.5}',
        '{"epoch": true}',
        '{"epoch": 0, "loss": 0.5}',  # again
        '{"epo\x1fh": 1}',
        '{"loss": 0.5}',
        "[1, 2]",
        "3",
        "",
        '{"epoch": 1, "\u2028": 0.5, ',
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("place", ["inner", "last"])
def test_a_damaged_line_is_named(tmp_path, damaged, place):
    path = tmp_path / "metrics.jsonl"
    after = '{"epoch": 3}\n' if place == "inner" else ""
    path.write_text(f'{{"epoch": 0}}\n{damaged}\n{after}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is damaged; remove the line"):
        read_rows(path)


def test_config_says_what_ran(folder):
    folder.write_config({"loss": "margin", "source_path": Path("data"), "tau": [28]}, "cpu")
    config = json.loads((folder.path / "config.json").read_text())
    assert config["flags"] == {"loss": "margin", "source_path": "data", "tau": [28]}
    assert config["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert {"timm", "numpy", "transformers"} <= set(config["packages"])
    assert config["device"].startswith("cpu: ")
    assert shlex.split(config["command"])[1:] == sys.argv[1:]


def test_config_holds_nothing_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-of-the-test")
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-of-the-test")
    folder.write_config({"loss": "margin"})
    assert "s3cr3t" not in (folder.path / "config.json").read_text()


def test_git_state_tells_clean_from_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    module = tmp_path / "utilities" / "run_folder.py"
    module.parent.mkdir()
    module.touch()
    monkeypatch.setattr(run_folder, "__file__", str(module))
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    state = run_folder.git_state()
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    module.write_text("changed")
    assert run_folder.git_state() == {"commit": state["commit"], "dirty": True}


def test_git_state_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "utilities" / "run_folder.py"))
    assert run_folder.git_state() is None


def test_checkpoint_names_stay_in_the_folder(folder):
    assert folder.checkpoint("last") == folder.path / "last.pt"
    assert folder.checkpoint("best_e_recall@1").name == "best_e_recall@1.pt"
    assert folder.checkpoint("best_a/b").parent == folder.path


def test_no_two_processes_write_into_one_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from utilities.run_folder import RunFolder\n"
        "RunFolder.reopen(Path(sys.argv[1]), 0); print('open', flush=True); sys.stdin.read()"
    )
    path = RunFolder.create(tmp_path, "cub200", "run").path
    command = [sys.executable, "-c", code, str(path)]
    other = subprocess.run(command, capture_output=True, text=True, check=False, input="")
    assert f"{path} is in use by another process" in other.stderr
    RunFolder.reopen(path, 0)  # its own process may

    path = tmp_path / "abandoned"
    path.mkdir()
    command[-1] = str(path)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(OSError, match="in use by another process"):
            RunFolder.reopen(path, 0)
        other.kill()
    RunFolder.reopen(path, 0)  # however its process ended


def test_the_newest_folder_of_a_name(tmp_path):
    assert RunFolder.newest(tmp_path, "cub200", "run") is None
    paths = [RunFolder.create(tmp_path, "cub200", "run").path for _ in range(3)]
    assert RunFolder.newest(tmp_path, "cub200", "run") == paths[-1]
