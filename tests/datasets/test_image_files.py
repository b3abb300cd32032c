"""The list of images: which files it holds, in which order, and what is skipped."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image

from datasets import check, folders, splits
from datasets.image_files import (
    PLUGINS,
    add_plugins,
    endings,
    image_files,
    is_harmless,
    is_image_name,
)
from datasets.readable import fault
from datasets.reading import read_image
from tests.runs import odd_file
from utilities.files import special_kind

pytestmark = pytest.mark.usefixtures("own_cache")


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


# ------------------------------------------------------------------------ what is and is not listed
def test_all_endings_of_images_are_taken(tmp_path):
    taken = ("a.jfif", "b.avif", "c.jpe", "d.jp2", "e.JPF", "f.mpo", "g.qoi", "h.apng", "i.webp")
    others = ("a.heic", "b.HEIC", "c.svg", "d.pdf", "notes.md", "Makefile", "e.", "odd.an ending")
    for name in (*taken, *others):
        touch(tmp_path / name)
    listing = image_files(tmp_path)
    assert names(listing, tmp_path) == sorted(taken)
    assert listing.problems() == "without an ending (3), .heic (2), .md (1), .pdf (1), .svg (1)"
    assert listing.first[".svg"] == tmp_path / "c.svg"
    assert [kind for kind in sorted(listing.skipped) if not is_harmless(kind)] == [".heic", ".svg"]


def test_many_kinds_are_capped(tmp_path):
    for number in range(25):
        touch(tmp_path / f"a.x{number}")
    assert image_files(tmp_path).problems().endswith(", and 15 more kinds")


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Puts modules on the path; afterwards Pillow is as before."""
    for table in ("OPEN", "ID", "EXTENSION"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())

    def install(name, text):
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path / "plugins")
        add_plugins()
        endings.cache_clear()

    yield install
    for name in PLUGINS:
        sys.modules.pop(name, None)
    endings.cache_clear()


@pytest.mark.parametrize("plugin", ["pillow_heif", "pi_heif", "pillow_avif"])
def test_heic_is_taken_where_a_plug_in_is_installed(tmp_path, plugins, plugin):
    """The plug-in is a stand-in that opens PNG under another name."""
    register = (
        "    Image.register_open('HEIF', PngImagePlugin.PngImageFile, lambda start: True)\n"
        "    Image.register_extension('HEIF', '.heic')\n"
    )
    begin = "if True:\n" if plugin == "pillow_avif" else "def register_heif_opener():\n"
    (tmp_path / "a").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "a" / "a.heic", "PNG")
    assert image_files(tmp_path / "a").problems() == ".heic (1)"
    plugins(plugin, f"from PIL import Image, PngImagePlugin\n{begin}{register}")
    (path,) = image_files(tmp_path / "a").paths
    assert read_image(path).size == (5, 4)


def test_a_plug_in_that_does_not_work_is_named(tmp_path, plugins, caplog):
    plugins("pillow_heif", "raise RuntimeError('no libheif')")
    assert "the plug-in pillow_heif of Pillow does not work: no libheif" in caplog.text


def test_images_of_nested_folders_are_of_the_class_and_those_outside_are_counted(mine, caplog):
    root = mine({"a": 2, "b": 1})
    above = root / "images"
    for place in ("a/2019/x.png", "a/2019/june/y.jpg", "b/.hidden/z.png", "loose.png"):
        (above / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(above / place)
    (above / "a" / "2019" / "phone.heic").touch()
    (above / "b" / "about.txt").touch()
    images = folders.read_class_folders(root)
    found = [path.relative_to(above).as_posix() for path in images.paths]
    assert found == ["a/0.jpg", "a/1.jpg", "a/2019/june/y.jpg", "a/2019/x.png", "b/0.jpg"]
    assert images.labels.tolist() == [0, 0, 0, 0, 1]
    said = f"skipped in {above}: .heic (1), .txt (1), image outside the class folders (1)"
    assert said in caplog.text
    write_captions = {place: place for place in found}
    (root / "captions.json").write_text(json.dumps(write_captions))
    assert folders.read_class_folders(root).captions == tuple(found)


# ------------------------------------------------------------------------------- names, odd files
def not_utf8(path: bytes, content: bytes = b"") -> None:
    """A file, or a folder if it has no content, of a name in bytes."""
    place = Path(os.fsdecode(path))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content) if content else place.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        (b"images/007.citro\xebn/1.png", r"b'007.citro\xebn'"),
        (b"images/a/caf\xe9.png", r"b'caf\xe9.png'"),
        (b"images/a/nested \xff/1.png", r"b'nested \xff'"),
        (b"images/loose\xfc.png", r"b'loose\xfc.png'"),
        (b"images/empty \xe9", r"b'empty \xe9'"),
    ],
)
def test_names_that_are_not_utf8_are_refused_by_name(mine, place, shown):
    root = mine({"a": 2, "b": 2, "c": 2, "d": 2})
    content = (root / "images" / "a" / "0.jpg").read_bytes() if place.endswith(b"png") else b""
    not_utf8(os.fsencode(root) + b"/" + place, content)
    with pytest.raises(ValueError, match="1 names of files or folders are not in UTF-8") as refused:
        splits.read(root.name, root.parent)
    assert shown in str(refused.value) and "convmv" in str(refused.value)
    str(refused.value).encode()
    found = check.examine(root.name, root.parent)
    assert shown in found.problems[0]
    assert check.report(root.name, found).encode()


def test_the_folder_of_a_dataset_may_be_named_in_utf8_only(mine, tmp_path):
    root = mine({"a": 2, "b": 2, "c": 2, "d": 2})
    shoes = tmp_path / os.fsdecode(b"shoes \xe9")
    try:
        root.rename(shoes)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for read in (splits.read, splits.load):
        with pytest.raises(ValueError, match=r"b'shoes .xe9'.*convmv"):
            read(shoes.name, tmp_path)


@pytest.mark.parametrize("name", ["classes.json", "captions.json", "manifest.csv"])
@pytest.mark.parametrize("kind", ["named pipe", "device", "folder", "broken link"])
def test_a_file_beside_the_images_that_is_no_regular_file_is_refused(mine, name, kind):
    root = mine({"a": 2, "b": 2, "c": 2, "d": 2})
    odd_file(root / name, kind)
    with pytest.raises((OSError, ValueError), match=f"{name} is a {kind}; it must be a regular"):
        splits.read(root.name, root.parent)
    assert f"{name} is a {kind}" in check.examine(root.name, root.parent).problems[0]


@pytest.mark.parametrize("name", ["classes.json", "captions.json"])
def test_half_a_character_in_a_json_file_is_refused(mine, name):
    root = mine({"a": 2, "b": 2, "c": 2, "d": 2})
    (root / name).write_text('{"a": {"name": "half an emoji \\ud83d"}}')
    with pytest.raises(ValueError, match=rf"{name} is not JSON: .*surrogates not allowed"):
        splits.read(root.name, root.parent)
