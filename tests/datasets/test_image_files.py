"""The list of images: which files it holds, in which order, and what is skipped."""

import os
import socket

import pytest
from PIL import Image

from datasets import folders
from datasets.image_files import endings, image_files, is_image_name, special_kind
from datasets.readable import fault


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "b-a/1.jfif", "a.WebP", ".x/a.jpg", "b/._2.jpg", "b/c.txt"):
        touch(tmp_path / "tree" / name)
    return tmp_path / "tree"


def names(listing, root):
    return [path.relative_to(root).as_posix() for path in listing.paths]


def test_images_of_all_folders_sorted_by_their_parts(tree):
    listing = image_files(tree)
    assert names(listing, tree) == ["a.WebP", "b/10.png", "b/2.JPG", "b-a/1.jfif"]
    assert listing.paths == sorted(listing.paths)
    assert listing.skipped == {"hidden": 2, ".txt": 1} and listing.problems() == ".txt (1)"
    assert names(image_files(tree, apart_from=tree / "b"), tree) == ["a.WebP", "b-a/1.jfif"]


def test_one_folder_alone(tree):
    listing = image_files(tree, recursive=False)
    assert names(listing, tree) == ["a.WebP"]
    assert listing.skipped == {"hidden": 1, "folder": 2}


def test_links_are_followed_and_loops_are_not(tree):
    (tree / "b" / "above").symlink_to(tree)
    (tree / "b-a" / "b").symlink_to("../b", target_is_directory=True)
    (tree / "b-a" / "linked.gif").symlink_to("../a.WebP")
    listing = image_files(tree)
    assert names(listing, tree) == [
        *("a.WebP", "b/10.png", "b/2.JPG", "b-a/1.jfif", "b-a/b/10.png", "b-a/b/2.JPG"),
        "b-a/linked.gif",
    ]
    assert listing.problems() == ".txt (2), loop of links (2)"


def test_what_is_not_a_regular_file_is_counted(tree, monkeypatch):
    os.mkfifo(tree / "b" / "pipe.jpg")
    (tree / "b" / "folder.jpg").mkdir()
    (tree / "b" / "broken.jpg").symlink_to("nowhere.jpg")
    (tree / "b" / "itself.jpg").symlink_to("itself.jpg")
    (tree / "b" / "zero.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(tree)  # the path of a socket is at most 108 bytes long
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("b/socket.jpg")
    listing = image_files(tree / "b", recursive=False)
    assert names(listing, tree) == ["b/10.png", "b/2.JPG"]
    kinds = {"broken link": 2, "device": 1, "folder": 1, "named pipe": 1, "socket": 1}
    assert listing.skipped == kinds | {"hidden": 1, ".txt": 1}
    assert listing.problems().startswith("broken link (2), ")
    assert special_kind(tree / "b" / "pipe.jpg") == fault(tree / "b" / "pipe.jpg") == "named pipe"
    assert special_kind(tree / "b" / "broken.jpg") == "broken link"
    assert special_kind(tree / "b" / "none.jpg") == special_kind(tree / "b" / "2.JPG") == ""


def test_a_folder_that_cannot_be_listed(tree, monkeypatch, caplog):
    scandir = os.scandir

    def refuse(path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = image_files(tree)
    assert names(listing, tree) == ["a.WebP", "b-a/1.jfif"]
    assert listing.problems() == "folder that cannot be read (1)"
    assert f"skipped the folder {tree / 'b'}: Permission denied" in caplog.text
    with pytest.raises(PermissionError):
        image_files(tree / "b")
    with pytest.raises(FileNotFoundError):
        image_files(tree / "nowhere")


def test_endings_are_those_that_pillow_decodes():
    assert {".jpg", ".jfif", ".png", ".webp", ".gif", ".tif", ".bmp", ".ppm", ".jp2"} <= endings()
    assert not {".pdf", ".h5", ".mpg", ".txt", ".json", ".tar", ""} & endings()
    assert is_image_name("a/b.c.JPeG") and is_image_name("1.tiff")
    assert not any(map(is_image_name, ("jpg", ".jpg", "a/._b.jpg", "a.jpg/b", "a.jpg.txt")))


def test_class_folders_hold_every_format_and_name_what_is_skipped(mine, caplog):
    root = mine({"a": 2, "b": 1})
    Image.new("RGB", (4, 4)).save(root / "images" / "a" / "more.PPM")
    os.mkfifo(root / "images" / "b" / "pipe.png")
    images = folders.read_class_folders(root)
    assert [path.name for path in images.paths] == ["0.jpg", "1.jpg", "more.PPM", "0.jpg"]
    assert f"skipped in {root / 'images'}: named pipe (1)" in caplog.text
