"""Datasets that are built once: whole or absent, and verified; what they are fetched by."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from datasets import drawings


def measure(folder):
    return {"text": (folder / "a.txt").read_text()}


def fill(folder):
    (folder / "a.txt").write_text("drawn")
    return measure(folder)


def test_a_dataset_is_built_once_by_one_of_two(tmp_path):
    built = []

    def count(folder):
        built.append(folder)
        return fill(folder)

    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(drawings.build_once, [tmp_path / "mine"] * 2, [count] * 2))
    assert len(built) == 1
    manifest = drawings.verify(tmp_path / "mine", measure)
    assert manifest == {"text": "drawn", **drawings.renderers()}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()  # holds for root, too
    for source_path in (tmp_path / "file", tmp_path / "file" / "datasets"):
        with pytest.raises(OSError, match=f"mine .*{source_path} .*--source_path, or set XDG_C"):
            drawings.build_once(source_path / "mine", fill)


def test_an_interrupted_build_leaves_nothing_and_the_next_one_works(tmp_path):
    def interrupted(folder):
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawings.build_once(tmp_path / "mine", interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]
    left = [tmp_path / ".mine.killed", tmp_path / "downloads" / ".mine.killed"]
    for folder in left:  # what a kill would leave
        folder.mkdir()
    drawings.build_once(tmp_path / "mine", fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "mine"]
    assert not any(folder.exists() for folder in left)


@pytest.mark.parametrize(
    ("harmed", "content", "message"),
    [
        ("a.txt", "other", "text other, expected drawn"),
        ("manifest.json", "[", "Expecting value"),
        ("manifest.json", None, "No such file"),
    ],
)
def test_damage_is_noticed_and_the_remedy_named(tmp_path, harmed, content, message):
    folder = tmp_path / "mine"
    drawings.build_once(folder, fill)
    assert json.loads((folder / "manifest.json").read_text())["text"] == "drawn"
    if content is None:
        (folder / harmed).unlink()
    else:
        (folder / harmed).write_text(content)
    with pytest.raises(ValueError, match=rf"{folder} is damaged .*{message}.*delete that folder"):
        drawings.verify(folder, measure)


@pytest.mark.parametrize("script", ["echo half > a.zip; echo no route >&2; exit 1", "echo no >&2"])
def test_a_failed_download_is_told_and_not_kept(tmp_path, script):
    with pytest.raises(ConnectionError, match=r"^it failed\. sh reported: no"):
        drawings.fetch("mine", ["/bin/sh", "-c", script], "*.zip", tmp_path, failure="it failed")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_drawn_comes_back_as_text_and_an_interrupt_does_not():
    def draw(error):
        raise error

    assert drawings.try_to(draw, ValueError("broken")) == "ValueError: broken"
    assert drawings.try_to(draw, BaseException("panic")) == "BaseException: panic"
    with pytest.raises(KeyboardInterrupt):
        drawings.try_to(draw, KeyboardInterrupt())
