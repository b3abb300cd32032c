"""Commands end well when nobody can read what they print, and print any text."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.runs import ROOT, RUN, tiny_run
from utilities import log
from utilities.console import HANDLER, columns, padded

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


# ------------------------------------------------------------------------------- characters
FLOWER = "花 ± caf\udce9"  # the last is a byte of a file name that is not UTF-8
SHOWN = "\\u82b1 +- caf\\udce9"


def printed(encoding, text):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=HANDLER)
    print(text, file=stream, end="", flush=True)
    return stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", SHOWN), ("latin-1", "\\u82b1 ± caf\\udce9"), ("utf-8", "花 ± caf\\udce9")],
)
def test_what_an_encoding_lacks_is_written_otherwise(encoding, shown):
    assert printed(encoding, FLOWER) == shown.encode(encoding)
    signs = printed(encoding, "≥ 3 × 2 … – −1 → ²").decode(encoding)
    assert signs == ">= 3 x 2 ... - -1 -> ^2" or encoding != "ascii"


def test_the_log_file_takes_any_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # of pytest, which shows failures
    log.set_up(tmp_path / "log.txt")
    logging.getLogger("datasets").warning("skipped %s", FLOWER)
    assert "skipped 花 ± caf\\udce9" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "Logging error" not in sys.stderr.getvalue()


def run(*words):
    """Run a command on a console that is ASCII; return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    text = (done.stdout + done.stderr).decode("ascii")  # an error unless all of it is
    assert "Traceback" not in text and "Logging error" not in text, text
    return done.returncode, text


@pytest.fixture
def runs(tmp_path):
    for group in ("花", "plain"):
        for seed in (0, 1):
            folder = tmp_path / "花" / f"{group}_s{seed}"
            folder.mkdir(parents=True)
            config = {"flags": {"dataset": "花", "group": group, "seed": seed, "n_epochs": 1}}
            (folder / "config.json").write_text(json.dumps(config))
            row = {"epoch": 1, "test/embeds/e_recall@1": 0.5 + seed / 10}
            (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "花"


def test_tables_of_runs_are_printed(runs):
    status, text = run("-m", "utilities.results", *sorted(runs.iterdir()), "--baseline", "plain")
    assert status == 0 and "| \\u82b1" in text and " +- " in text, text


def test_a_dataset_is_checked(tmp_path, own_cache):
    name = "Žluťoučký kůň"
    for label in ("花", "木", "水", "火"):
        (tmp_path / name / "images" / label).mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (8, 8), (number, len(label), ord(label) % 256))
            image.save(tmp_path / name / "images" / label / f"{number}.png")
    (tmp_path / name / "images" / "木" / "木.jpg").write_text("no image")
    status, text = run("-m", "datasets.check", name, "--source_path", tmp_path)
    assert status == 1 and "\\u6728.jpg" in text


@pytest.mark.parametrize(
    "words", ["main.py --help", "-m utilities.results --help", "main.py --dataset 花 --loss 木"]
)
def test_help_and_errors_are_printed(words):
    assert run(*words.split())[0] in (0, 2)


# --------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("花", 2), ("ทะเล", 4), ("ที่", 1), ("e\u0301", 1), ("ﾊ", 1)]
)
def test_columns(text, width):
    assert columns(text) == width
    assert padded(text, 6) == text + " " * (6 - width)
    assert padded(text, 6, right=True) == " " * (6 - width) + text
