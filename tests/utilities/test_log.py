"""What reaches the console and log.txt, and Weights & Biases with and without a server."""

import logging
import sys

import pytest
from tqdm import tqdm

from utilities import log


@pytest.fixture(autouse=True)
def _close_handlers():
    yield
    log.take_down()


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


def test_set_up_again_replaces_its_own_handlers_alone(tmp_path, capsys):
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


def test_the_file_begins_with_what_was_said_before_it_was_there(tmp_path, capsys):
    log.set_up()
    logging.getLogger("datasets").warning("two files are broken")
    path = tmp_path / "log.txt"
    log.set_up(path)
    logging.getLogger("main").info("training")
    lines = path.read_text().splitlines()
    assert lines[0].endswith("two files are broken") and lines[1].endswith("training")
    assert capsys.readouterr().err == "warning: two files are broken\ntraining\n"


def test_tracebacks_go_to_the_file_alone(tmp_path, capsys):
    path = tmp_path / "log.txt"
    log.set_up(path)
    try:
        raise ValueError("no such folder")
    except ValueError as error:
        logging.getLogger("main").exception("%s", error)
    assert capsys.readouterr().err == "error: no such folder\n"
    assert "Traceback" in path.read_text()


def test_log_file_is_continued(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("before\n")
    log.set_up(path)
    logging.getLogger("main").info("after")
    assert path.read_text().startswith("before\n")


def test_messages_stand_above_a_progress_bar(capsys):
    log.set_up()
    with tqdm(total=3, file=sys.stderr, desc="bar") as bar:
        bar.update()
        logging.getLogger("main").info("a message")
    assert any(line.endswith("a message") for line in capsys.readouterr().err.splitlines())


def start(mode, folder):
    return log.start_wandb(
        mode, project="p", group="g", name="n", config={"loss": "margin"}, folder=folder
    )


def test_disabled_log_does_nothing_and_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    run = start("disabled", tmp_path)
    run.log({"loss": 1.0}, step=1)
    run.image(tmp_path / "absent.png")
    run.finish()
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        start("online", tmp_path)


def test_offline_log_stays_in_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from PIL import Image

    monkeypatch.setenv("WANDB_API_KEY", "5" * 40)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "curves.png")
    run = start("offline", folder)
    run.log({"loss": 1.0}, step=1)
    run.image(folder / "curves.png")
    run.finish()
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    key = b"5" * 40
    assert not any(key in p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("kind", "remedies"),
    [
        ("UsageError", ["wandb login", "WANDB_API_KEY", "--wandb_mode offline"]),
        ("CommError", ["network", "--wandb_mode offline", "wandb sync"]),
    ],
)
def test_online_failures_name_the_remedies(tmp_path, monkeypatch, kind, remedies):
    wandb = pytest.importorskip("wandb")

    def fail(**_):
        raise getattr(wandb.errors, kind)("no\nmore")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ValueError) as caught:
        start("online", tmp_path)
    assert all(remedy in str(caught.value) for remedy in remedies)
    assert "\n" not in str(caught.value)
