"""Which runs are done already."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import parameters
from utilities.finished import differing, exit_if_finished, finished_run
from utilities.run_files import finished_flags

ROOT = Path(__file__).parents[2]


def parsed(tmp_path, *words):
    return parameters.parse(
        ["--save_path", str(tmp_path), "--group", "g", "--n_epochs", "3", *words]
    )


def leave(folder, args, epoch=3, finished="today"):
    """The folder that a run of ``args`` leaves when its last written epoch is ``epoch``."""
    folder.mkdir(parents=True)
    flags = {**vars(args), "lr": args.lr or 3e-4}  # filled in by the recipe
    (folder / "config.json").write_text(json.dumps({"flags": flags, "finished": finished}))
    rows = [{"epoch": number} for number in range(epoch + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_finished_run_is_found_wherever_it_ran(tmp_path):
    args = parsed(tmp_path)
    assert finished_run(vars(args), "g_s0") is None
    leave(tmp_path / "emoji" / "g_s0", args)
    again = parsed(tmp_path, "--kernels", "1", "--resume", "--source_path", "elsewhere")
    assert finished_run(vars(again), "g_s0") == tmp_path / "emoji" / "g_s0"


def test_one_prompt_is_that_of_older_runs():
    older = {"language_prompt": "a {}"}
    assert differing(older, {"language_prompt": ["a {}"]}) == []
    assert len(differing(older, {"language_prompt": ["a {}", "{}"]})) == 1
    assert len(differing(older, {"language_prompt": ["{}"]})) == 1


def test_interrupted_runs_are_passed_over(tmp_path):
    args = parsed(tmp_path)
    leave(tmp_path / "emoji" / "g_s0", args, epoch=1)
    (tmp_path / "emoji" / "g_s0_2").mkdir()  # stopped before its first line
    assert finished_run(vars(args), "g_s0") is None
    leave(tmp_path / "emoji" / "g_s0_3", args, finished=None)  # its report is missing
    assert finished_run(vars(args), "g_s0") is None
    leave(tmp_path / "emoji" / "g_s0_4", args)
    assert finished_run(vars(args), "g_s0") == tmp_path / "emoji" / "g_s0_4"


@pytest.mark.parametrize("reported", [True, False])
def test_older_runs_kept_a_file_until_they_were_finished(tmp_path, reported):
    args, folder = parsed(tmp_path), tmp_path / "emoji" / "g_s0"
    leave(folder, args)
    config = json.loads((folder / "config.json").read_text())
    del config["finished"]
    (folder / "config.json").write_text(json.dumps(config))
    if not reported:
        (folder / "before.pt").touch()
    assert finished_run(vars(args), "g_s0") == (folder if reported else None)


def test_an_evaluation_is_of_any_epoch(tmp_path):
    folder = tmp_path / "evaluation"
    args = parsed(tmp_path, "--evaluate_only", "--checkpoint", str(tmp_path))
    leave(folder, args, epoch=2)
    assert finished_flags(folder)["n_epochs"] == 3
    leave(tmp_path / "killed", args, epoch=2, finished=None)
    assert finished_flags(tmp_path / "killed") is None


def test_a_finished_run_of_other_flags_is_refused(tmp_path):
    leave(tmp_path / "emoji" / "g_s0", parsed(tmp_path, "--lr", "0.1"))
    with pytest.raises(ValueError, match=r"--lr 0.1 \(now 0.2\).*give another --group"):
        finished_run(vars(parsed(tmp_path, "--lr", "0.2")), "g_s0")


def test_the_newest_run_decides_whether_flags_differ(tmp_path):
    """The command that resumes an interrupted run is not refused for an older run."""
    first, second = (parsed(tmp_path, "--lr", lr) for lr in ("0.1", "0.2"))
    leave(tmp_path / "emoji" / "g_s0", first)
    leave(tmp_path / "emoji" / "g_s0_2", second, epoch=1)
    assert finished_run(vars(second), "g_s0") is None
    assert finished_run(vars(first), "g_s0") == tmp_path / "emoji" / "g_s0"
    leave(tmp_path / "emoji" / "g_s0_3", second)
    assert finished_run(vars(second), "g_s0") == tmp_path / "emoji" / "g_s0_3"
    with pytest.raises(ValueError, match=r"g_s0_3 is finished .* --lr 0.2 \(now 0.3\)"):
        finished_run(vars(parsed(tmp_path, "--lr", "0.3")), "g_s0")


@pytest.mark.parametrize("loss", ["simclr", "slip", "lgslip", "simsiam", "margin"])
def test_a_run_of_before_simclr_had_three_layers_differs(loss):
    now = vars(parameters.parse(["--loss", loss]))
    before = {flag: value for flag, value in now.items() if flag != "loss_simclr_layers"}
    contains_simclr = loss in ("simclr", "slip", "lgslip")
    assert differing(before, now) == ["--loss_simclr_layers 2 (now 3)"] * contains_simclr
    assert differing(before, now | {"loss_simclr_layers": 2}) == []


@pytest.mark.parametrize(
    "words", [["--data_class_replacement"], ["--no_zero_init_last", "--not_pretrained"]]
)
def test_a_run_of_before_a_flag_was_there_did_without_it(words):
    now = vars(parameters.parse(words))
    flag = words[0].removeprefix("--")
    before = {name: value for name, value in now.items() if name != flag}
    assert differing(before, now) == [f"--{flag} False (now True)"]
    assert differing(before, now | {flag: False}) == []


def test_only_the_flag_skips(tmp_path, capsys):
    args = parsed(tmp_path)
    leave(tmp_path / "emoji" / "g_s0", args)
    exit_if_finished(vars(args), "g_s0")
    args.resume = True
    with pytest.raises(SystemExit) as stop:
        exit_if_finished(vars(args), "g_s0")
    assert not stop.value.code  # success
    assert "g_s0 is finished" in capsys.readouterr().out


def test_the_command_line_skips_without_torch(tmp_path):
    args = parsed(tmp_path, "--resume")
    leave(tmp_path / "emoji" / "g_s0", args)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", "--save_path", str(tmp_path),
         "--group", "g", "--n_epochs", "3", "--resume"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "is finished" in done.stdout
    assert "torch" not in done.stderr
