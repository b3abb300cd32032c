"""What README and the benchmark script promise is there."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import parameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme():
    command = "bash requirements.sh --dev && .venv/bin/python -m pytest"
    assert command in README and command in (ROOT / ".ci" / "run").read_text()


def test_every_flag_of_the_readme_exists():
    known = {
        flag for action in parameters.build_parser()._actions for flag in action.option_strings
    }
    known |= {"--dev", "--baseline", "--help", "--scores", "--index", "--save", "--out"}
    known |= {"--nproc_per_node"}  # torchrun
    named = set(re.findall(r"(?<![\w-])--[a-z_]+", README))
    assert len(named) > 15 and named <= known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


ROWS = {
    "emoji": 4,
    "emoji_validation": 6,
    "emoji_long": 2,
    "league": 2 * len(parameters.LABEL_LOSSES),
    "openclipart": 8,
    "redcaps": 6,
    "cub200": 4,
    "cars196": 4,
}


@pytest.mark.parametrize("group", ROWS)
def test_benchmark_commands_parse(group):
    """Every command of the script, with its quoting, is one that main.py accepts."""
    done = subprocess.run(
        ["bash", "language_guidance_benchmark_runs.sh", group, "7", "--", "--lr", "1e-5"],
        cwd=ROOT, env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    commands = [shlex.split(line)[3:] for line in done.stdout.splitlines()]
    names = set()
    for command in commands:
        args = parameters.parse(command)
        assert args.seed == 7 and args.lr == 1e-5 and args.group not in names
        assert args.dataset == {"league": "emoji"}.get(group, group.partition("_")[0])
        assert args.resume
        names.add(args.group)
    assert len(names) == ROWS[group]


def test_the_league_has_every_loss_with_and_without_words():
    done = subprocess.run(
        ["bash", "language_guidance_benchmark_runs.sh", "league"],
        cwd=ROOT, env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    runs = [parameters.parse(shlex.split(line)[3:]) for line in done.stdout.splitlines()]
    named = [(run.loss, run.language_distill_w, run.group) for run in runs]
    expected = [
        row
        for loss in parameters.LABEL_LOSSES
        for row in ((loss, 0.0, f"league_{loss}"), (loss, 7.5, f"league_{loss}_guided"))
    ]
    assert named == expected


def test_parallel_runs_of_the_script_fail_where_one_fails(tmp_path):
    """JOBS=2 runs all of them, and its status says that one did not succeed."""
    interpreter = tmp_path / "python"
    interpreter.write_text(
        '#!/bin/sh\ncase "$*" in\n-c*) echo 2 ;;\n'
        f'*) echo "$OMP_NUM_THREADS $*" >> {tmp_path}/ran\n'
        '   case "$*" in *_guided*) exit 1 ;; esac ;;\nesac\n'
    )
    interpreter.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"PYTHON": str(interpreter), "JOBS": "2", "LOSSES": "circle supcon"}
    done = subprocess.run(
        ["bash", "language_guidance_benchmark_runs.sh", "league"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == 4 and all(line.startswith("1 main.py") for line in ran)
    assert done.returncode == 1


def test_unknown_benchmark_group_is_refused():
    done = subprocess.run(
        ["bash", "language_guidance_benchmark_runs.sh", "cub"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "unknown group: cub" in done.stderr
