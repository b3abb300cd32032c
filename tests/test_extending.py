"""The components of docs/extending.md can be added as it says, in a copy of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.runs import ANIMALS, ROOT

EXTENDING = (ROOT / "docs" / "extending.md").read_text()
COMPONENTS = ("A loss", "A miner", "A sampler", "A metric", "A dataset", "A language source")


class Block(NamedTuple):
    """A fenced block: ```language info."""

    language: str
    info: str
    text: str


def blocks(text):
    """Return the fenced blocks of a page, in order."""
    return [Block(*found) for found in re.findall(r"^```(\w+) ?(.*)\n([\s\S]*?)^```$", text, re.M)]


def section(title):
    """Return the blocks under a heading of docs/extending.md."""
    [text] = re.findall(rf"^## {title}\n([\s\S]*?)(?=^## |\Z)", EXTENDING, re.M)
    return blocks(text)


def file_of(block):
    """Return the ``file=`` of a block, None if there is none."""
    return block.info.removeprefix("file=") if block.info.startswith("file=") else None


def patched(text, change):
    """Apply a diff to a text, which must have its old lines exactly once."""
    lines = change.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    begin = old.rstrip("\n")  # a diff may end within a line
    assert text.count(begin) == 1, f"{text.count(begin)} times in the file:\n{begin}"
    return text.replace(begin, new.rstrip("\n"))


def changed(found):
    """Return the new texts of the files that some blocks write or change, by name."""
    files = {}
    for block in found:
        name = file_of(block)
        if block.language == "diff":
            text = files[name] if name in files else (ROOT / name).read_text()
            files[name] = patched(text, block.text)
        elif name:
            assert not (ROOT / name).exists(), f"{name} is there already"
            files[name] = block.text
    return files


def commands(found):
    """Yield the words of each example command of some blocks."""
    for block in found:
        if block.language == "bash" and block.info == "example":
            for line in block.text.replace("\\\n", " ").splitlines():
                yield shlex.split(line, comments=True)


@pytest.fixture
def copy(tmp_path):
    """A copy of the sources."""
    root = tmp_path / "copy"
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT)
        if inside.parts[0] not in (".venv", "Training_Results"):
            (root / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / inside)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.fixture
def data(animals, tmp_path):
    """The folder that the commands call data: animals with a tree over them, and pets."""
    shutil.copytree(animals, tmp_path / "data")
    lines = [f"animal > {name.split()[-1]} kind > {name}\n" for name in ANIMALS]
    (tmp_path / "data" / "animals.tree").write_text("".join(lines))
    rng = np.random.default_rng(0)
    for folder in ("images", "annotations"):
        (tmp_path / "data" / "pets" / folder).mkdir(parents=True)
    listed = []
    for breed in ("Abyssinian", "Bengal", "Persian", "Sphynx", "beagle", "boxer", "pug", "samoyed"):
        for image in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/pets/images/{breed}_{image}.jpg")
            listed.append(f"{breed}_{image} 1 1 1\n")
    (tmp_path / "data" / "pets" / "annotations" / "list.txt").write_text("".join(listed))
    return tmp_path / "data"


# One process for all examples: a test in the copy that runs the commands as a user's shell would.
DRIVER = """
import json, math, os, pathlib
import pytest
import main

COMMANDS = json.loads(pathlib.Path(os.environ["COMMANDS"]).read_text())

@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command(words, monkeypatch):
    monkeypatch.chdir(os.environ["PLACE"])
    scores = main.main(words)
    added = words[words.index("--evaluation_metrics") + 1 :] if "nDCG@10" in words else []
    for name in added[: added.index("mAP@R")] if added else ["e_recall@1"]:
        assert 0 <= scores[f"test/embeds/{name}"] <= 1
    assert math.isfinite(scores["train/loss"])
"""
OURS = (  # of the tests that the page runs: those that a new component could fail
    "tuplet_margin or easy_positive or class_power or ndcg or pets or tree or registry or agree or "
    "flags_know or driver"
)
TINY = [
    *("--arch", "test_resnet_normalize", "--not_pretrained", "--image_size", "32"),
    *("--embed_dim", "16", "--bs", "8", "--kernels", "0", "--n_epochs", "1", "--lr", "1e-3"),
    *("--save_path", "out", "--no_report", "--language_words", "classnames"),
]  # fmt: skip


@pytest.mark.usefixtures("own_cache")
@pytest.mark.slow
def test_components_can_be_added_as_docs_extending_says(copy, data, tmp_path):
    """All at once in one copy; the tests of the examples, those of the flags, then main.py."""
    files = changed([block for title in COMPONENTS for block in section(title)])
    for name, text in files.items():
        (copy / name).write_text(text)
    runs, tests = [], []
    for title in COMPONENTS:
        found = section(title)
        own = {file_of(block) for block in found if (file_of(block) or "").startswith("tests/")}
        named = list(commands(found))
        assert len(named) == 2 and len(own) == 1
        for words in named:
            assert words[0] == ".venv/bin/python"
            if words[1] == "main.py":
                runs.append([*words[2:], *TINY, "--group", title.replace(" ", "_")])
            else:
                assert words[1:3] == ["-m", "pytest"] and own <= set(words[3:])
                tests += [word for word in words[3:] if word not in tests]
    (copy / "tests" / "test_driver.py").write_text(DRIVER)
    (tmp_path / "commands.json").write_text(json.dumps(runs))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", OURS,
         *tests, "tests/test_driver.py"],
        cwd=copy, env=os.environ | {"COMMANDS": str(tmp_path / "commands.json"),
                                    "PLACE": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folders = {path.parent.name for path in (tmp_path / "out").rglob("metrics.jsonl")}
    assert folders == {f"{title.replace(' ', '_')}_s0" for title in COMPONENTS}
    for folder in (tmp_path / "out").rglob("config.json"):
        assert json.loads(folder.read_text())["flags"]["n_epochs"] == 1
    for check in (["check"], ["format", "--check"]):
        linted = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *files], cwd=copy, capture_output=True, text=True
        )
        assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("title", COMPONENTS)
def test_each_component_can_be_added_alone(title):
    """Its changes apply to the sources as they are, and what it adds is written and entered."""
    files = changed(section(title))
    assert 3 <= len(files) <= 4
    for name, text in files.items():
        compile(text, name, "exec")


def test_a_diff_that_does_not_fit_is_found():
    with pytest.raises(AssertionError, match="0 times"):
        patched("a\nb\n", " a\n+x\n c\n")
    with pytest.raises(AssertionError, match="2 times"):
        patched("a\na\n", "-a\n+x\n")
    assert patched("a\nb\nc\n", " a\n-b\n+x\n") == "a\nx\nc\n"
