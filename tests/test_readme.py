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
    known |= {"--dev", "--baseline", "--help", "--scores"}
    named = set(re.findall(r"(?<![\w-])--[a-z_]+", README))
    assert len(named) > 15 and named <= known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("group", ["emoji", "emoji_validation", "emoji_long", "cub200", "cars196"])
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
        assert args.dataset == group.partition("_")[0]
        names.add(args.group)
    rows = {"emoji": 4, "emoji_validation": 6, "emoji_long": 2, "cub200": 2, "cars196": 2}
    assert len(names) == rows[group]


def test_unknown_benchmark_group_is_refused():
    done = subprocess.run(
        ["bash", "language_guidance_benchmark_runs.sh", "cub"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "unknown group: cub" in done.stderr
