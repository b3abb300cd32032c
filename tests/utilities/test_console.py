"""Commands end well when nobody can read what they print."""

import subprocess
import sys

import pytest

from tests.runs import ROOT, RUN, tiny_run

PRINT = """
import contextlib, os, sys
from utilities import console
console.outlast()
for number in range(3):
    print("花", "a line " * 2000, flush=True)
    print("a warning", file=sys.stderr)
with open(sys.argv[1], "w") as file:  # must not become the console
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"by a library")
"""
NOWHERE = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| head -n 1", "2>&1 | true", ">/dev/full",
           "2>/dev/full"]  # fmt: skip


def bash(words, where, **environment):
    command = ["bash", "-o", "pipefail", "-c", f'"$@" {where}', "bash", sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **environment)


@pytest.mark.parametrize("where", NOWHERE)
def test_printing_never_fails(tmp_path, where):
    done = bash(["-c", PRINT, str(tmp_path / "file")], where)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr  # as Python says of the last flush
    assert (tmp_path / "file").read_bytes() == b""


def test_a_console_without_the_characters_shows_their_codes(tmp_path):
    done = bash(["-c", PRINT, str(tmp_path / "file")], "", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and r"\u82b1 a line" in done.stdout


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("where", ["2>&-", "2>&1 | head -n 1"])
def test_a_run_ends_and_log_txt_has_all(animals, tmp_path, where):
    words = tiny_run(animals, tmp_path, "--n_epochs", "1", "--no_train_metrics")
    done = bash(["main.py", *words], where)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    log = (tmp_path / RUN / "log.txt").read_text()
    assert "Traceback" not in log and log.splitlines()[-1] == f"run folder: {tmp_path / RUN}"


@pytest.mark.parametrize(
    "words",
    [
        ("main.py", "--help"),
        ("-m", "evaluation.retrieve", "--help"),
        ("-m", "utilities.search", "--help"),
        ("-m", "utilities.completion", "bash"),
    ],
    ids=" ".join,
)
def test_commands_end_quietly_at_a_broken_pipe(words):
    done = bash(words, "| head -n 1 >/dev/null")
    assert (done.returncode, done.stderr) == (0, "")
