"""Messages on the console and in log.txt."""

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from utilities import log

ROOT = Path(__file__).parents[2]


def test_our_information_and_everyones_warnings_reach_both(tmp_path, capsys):
    path = tmp_path / "run" / "log.txt"
    log.set_up(path)
    logging.getLogger("datasets.emoji").info("1244 classes")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    console, text = capsys.readouterr().err, path.read_text()
    assert console == "1244 classes\nwarning: trouble\n"
    assert "INFO datasets.emoji: 1244 classes" in text
    assert "WARNING some.library: trouble" in text
    assert "chatter" not in text


def test_set_up_again_replaces_only_its_own_handlers(tmp_path, capsys):
    foreign = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(foreign)
    try:
        log.set_up(tmp_path / "a.txt")
        log.set_up(tmp_path / "b.txt")
        logging.getLogger("main").info("once")
        assert foreign in root.handlers
    finally:
        root.removeHandler(foreign)
    assert capsys.readouterr().err == "once\n"
    assert (tmp_path / "a.txt").read_text() == ""
    assert (tmp_path / "b.txt").read_text().count("once") == 1


def test_a_file_is_continued_with_the_records_from_before_it_was_known(tmp_path, capsys):
    path = tmp_path / "log.txt"
    path.write_text("earlier run\n")
    log.set_up()
    logging.getLogger("datasets").warning("two files are broken")
    log.set_up(path)
    logging.getLogger("main").info("training")
    earlier, broken, training = path.read_text().splitlines()
    assert earlier == "earlier run"
    assert broken.endswith("two files are broken") and training.endswith("training")
    assert capsys.readouterr().err == "warning: two files are broken\ntraining\n"


def test_tracebacks_go_only_to_the_file(tmp_path, capsys):
    path = tmp_path / "log.txt"
    log.set_up(path)
    try:
        raise ValueError("no such folder")
    except ValueError as error:
        logging.getLogger("main").exception("%s", error)
    assert capsys.readouterr().err == "error: no such folder\n"
    assert "Traceback" in path.read_text()


def test_a_full_disk_costs_lines_of_the_file_only(capsys):
    log.set_up(Path("/dev/full"))
    logging.getLogger("main").error("the disk is full")
    log.take_down()
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_messages_stand_above_a_progress_bar(capsys):
    log.set_up()
    with tqdm(total=3, file=sys.stderr, desc="bar") as bar:
        bar.update()
        logging.getLogger("main").info("a message")
    assert any(line.endswith("a message") for line in capsys.readouterr().err.splitlines())


SAY = """
import logging
from utilities import log
log.set_up()
logging.getLogger("main").info("  emoji.train: 8 images\\n   objective: margin; guidance: none")
logging.getLogger("main").warning("two: files")
logging.getLogger("main").error("no folder")
"""
PLAIN = (
    "  emoji.train: 8 images\n   objective: margin; guidance: none\n"
    "warning: two: files\nerror: no folder\n"
)
COLOURED = (
    "\033[1m  emoji.train:\033[0m 8 images\n\033[1m   objective:\033[0m margin; guidance: none\n"
    "\033[33mwarning:\033[0m two: files\n\033[31merror:\033[0m no folder\n"
)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm"}, COLOURED),
        ({"TERM": "xterm", "NO_COLOR": "1"}, PLAIN),
        ({"TERM": "dumb"}, PLAIN),
        (None, PLAIN),  # not a terminal
    ],
)
def test_only_a_terminal_shows_colours_unless_told_not_to(environment, expected):
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    command = [sys.executable, "-c", SAY]
    if environment is None:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stderr == expected
        return
    ours, theirs = pty.openpty()
    done = subprocess.Popen(command, cwd=ROOT, stderr=theirs, env=kept | environment)
    os.close(theirs)
    parts = []
    while not parts or parts[-1]:
        try:
            parts.append(os.read(ours, 4096))
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert done.wait(timeout=60) == 0
    assert b"".join(parts).decode().replace("\r\n", "\n").replace("\r", "") == expected
