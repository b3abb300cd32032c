"""Captions from metadata, drawing, and the build of hand-made packages; once of the real ones."""

import io
import json
import shutil
import sys
import tarfile

import pytest
from PIL import Image
from tqdm import tqdm

from datasets import drawings, openclipart
from datasets.caption_index import is_caption_set
from datasets.openclipart import PACKAGES, draw, fetch, prepare, unpack
from datasets.openclipart.captions import READERS, clip_art_caption, plain
from tests.datasets.captioned import image_bytes, write

CLIP_ART, STAMPS, ART4APPS = (
    "usr/share/openclipart/svg",
    "usr/share/tuxpaint/stamps",
    "usr/share/games/pysiogame/res/images/art4apps",
)


def svg(
    title="Bored dog",
    *,
    description="",
    keywords=(),
    author="Jose Hevia",
    licence="http://web.resource.org/cc/PublicDomain",
    body='<rect x="10" y="10" width="30" height="60" fill="#f00"/>',
) -> bytes:
    """A drawing with metadata as the Open Clip Art Library wrote them."""
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="100mm" height="100mm" viewBox="0 0 100 100">
<metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/"
  xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
  <dc:title>{title}</dc:title><dc:description>{description}</dc:description>
  <dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
  <dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
  <dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
  <cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>{body}</svg>""".encode()


# ------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("BypassLopper_02", "bypass lopper"),
        ("Ice Cream Cone (2 scoop) (B and W)", "ice cream cone (2 scoop) black and white"),
        ("flower2", "flower"),
        ("horse#1", "horse"),
        ("45 RPM Record", "45 rpm record"),
        ("people 06a", "people"),
        ("M1 Abrams", "m1 abrams"),
        ("Telefono (email: someone@mail.it)", "telefono"),
        ("arrow-right-red", "arrow right red"),
        ("007", ""),
    ],
)
def test_plain_words_of_titles_and_file_names(text, words):
    assert plain(text) == words


def test_a_caption_is_title_keywords_and_description():
    caption = clip_art_caption(
        svg(
            keywords=("mammal", "", "11", "hash(0x8a39)", "dog", "Dogs", "animal", "africa", "pet"),
            description="A dog that lies on the floor.",
        ),
        "animals/mammals/dogs/bored_dog_01.svg",
    )
    # The folders' own words first; "dog" is in the title, and four are enough.
    assert caption == "bored dog, mammal, animal, africa, pet. a dog that lies on the floor"


@pytest.mark.parametrize(
    "description",
    [
        "Bored dog",  # says nothing new
        "HASH(0x862bbb8)",
        "jean.victor@mail.com wrote this one",
        "EPS converted from  http://aiga.org",
        "a simple map of the region, enjoy it!",
        "word " * 26,
    ],
)
def test_descriptions_that_do_not_describe_are_left_out(description):
    assert clip_art_caption(svg(description=description), "animals/bored_dog.svg") == (
        "bored dog, animals"
    )


def test_titles_of_collections_give_way_to_the_file_name():
    title = "Clipart by Nicu Buculei - contour_chipmunk"
    giraffe = svg(title, author="Nicu Buculei", keywords=("animal", "mammal"))
    assert clip_art_caption(giraffe, "animals/mammals/giraffe_nicu_bucu_01.svg") == (
        "giraffe, animal, mammal"
    )
    sign = svg("AIGA_Symbol_Signs", author="Moisés Rincón")
    assert clip_art_caption(sign, "transportation/aiga_ticket_purchase_moises_ri.svg") == (
        "ticket purchase, transportation"
    )
    for style, suit, rank, words in (
        ("white", "h", "a", "ace of hearts, playing card, white"),
        ("simple", "c", "10", "ten of clubs, playing card, simple"),
    ):
        file = f"recreation/games/cards/{style}/{style}_{suit}_{rank}.svg"
        assert clip_art_caption(svg("card"), file) == words


def test_what_is_not_free_or_says_nothing_has_no_caption():
    assert clip_art_caption(svg(), "animals/a.svg") is not None
    gpl = svg(licence="http://creativecommons.org/licenses/GPL/2.0/")
    assert clip_art_caption(gpl, "animals/a.svg") is None
    assert clip_art_caption(svg(licence=""), "animals/a.svg") is None
    assert clip_art_caption(b"<svg/>", "animals/a.svg") is None
    assert clip_art_caption(b"<svg", "animals/a.svg") is None
    assert clip_art_caption(svg("gold-theme"), "icons/70a007.svg") is None


@pytest.fixture
def packages(tmp_path):
    """The files of three packages in miniature, by package."""
    roots = {name: tmp_path / "packages" / name for name in PACKAGES}
    clip_art = roots["openclipart-svg"] / CLIP_ART
    write(clip_art / "animals/dogs/bored_dog_01.svg", svg(keywords=("dog", "animal")))
    write(clip_art / "unsorted/bored_dog_01.svg", svg())  # the same drawing once more
    write(clip_art / "shapes/stars/star_3pt.svg", svg("gramastar"))  # machine-made
    write(
        clip_art / "people/white.svg",
        svg("Nobody", body='<rect width="9" height="9" fill="#fff"/>'),
    )
    circle = '<circle cx="50" cy="50" r="4" fill="#00f"/>'
    write(clip_art / "shapes/dot.svg", svg("Small blue dot", body=circle))
    stamps = roots["tuxpaint-stamps-default"] / STAMPS
    for number, (name, text) in enumerate(
        {
            "animals/a.png": "A happy lion!\nde.utf8=Ein Löwe.\n",
            "animals/a_mirror.png": "A happy lion!",
            "town/b.png": "“Yield” means wait.",
            "symbols/alphabets/c.png": "The letter C.",
            "town/without.png": None,
        }.items()
    ):
        image = write(stamps / name, image_bytes(number, (50, 40), "PNG"))
        if text is not None:
            write(image.with_suffix(".txt"), text)
    pictures = roots["pysiogame"] / ART4APPS
    write(pictures / "fruit_n_veg" / "sweet_corn2.jpg", image_bytes(7, (60, 30)))
    write(pictures / "fruit_n_veg" / "broken.jpg", b"no image")
    return roots


CAPTIONS = {
    "openclipart-svg": {
        "animals/dogs/bored_dog_01.svg": "bored dog, animal",
        "people/white.svg": "nobody, people",
        "shapes/dot.svg": "small blue dot",
        "unsorted/bored_dog_01.svg": "bored dog",
    },
    "tuxpaint-stamps-default": {
        "animals/a.png": "a happy lion",
        "town/b.png": "yield means wait",
    },
    "pysiogame": {
        "fruit_n_veg/broken.jpg": "broken, fruit and vegetables",
        "fruit_n_veg/sweet_corn2.jpg": "sweet corn, fruit and vegetables",
    },
}
DROPPED = {"people/white.svg", "unsorted/bored_dog_01.svg", "fruit_n_veg/broken.jpg"}


def test_each_package_gives_its_pictures(packages):
    assert {
        name: {picture.file: picture.caption for picture in READERS[name](root)}
        for name, root in packages.items()
    } == CAPTIONS


# -------------------------------------------------------------------------------------- drawing


def drawn(path):
    return Image.open(io.BytesIO(draw(path).jpeg))


def test_drawings_are_cut_out_and_laid_on_a_white_square(tmp_path):
    image = drawn(write(tmp_path / "a.svg", svg()))  # 30 x 60 of 100 x 100, sizes in mm
    assert image.size == (160, 160)
    for place in ((10, 80), (150, 80)):
        assert min(image.getpixel(place)) > 250  # white
    for place in ((80, 5), (80, 155)):
        red, green, blue = image.getpixel(place)
        assert red > 250 and max(green, blue) < 5


def test_small_things_on_a_large_page_are_drawn_at_the_size_that_they_need(tmp_path):
    body = '<circle cx="50" cy="50" r="10" fill="#00f"/>'
    image = drawn(write(tmp_path / "a.svg", svg(body=body)))
    assert 155 <= image.width <= 160
    # Drawn, not enlarged: the edge is as sharp as that of any drawing.
    row = [image.getpixel((x, image.height // 2))[0] for x in range(12)]
    assert sum(30 < value < 225 for value in row) <= 3


def test_photographs_keep_their_shape_and_small_ones_their_size(tmp_path):
    large = write(tmp_path / "a.jpg", image_bytes(size=(400, 100)))
    small = write(tmp_path / "b.jpg", image_bytes(size=(60, 30)))
    assert drawn(large).size == (160, 40) and drawn(small).size == (60, 30)


def test_blank_and_hair_thin_drawings_are_none(tmp_path):
    for number, body in enumerate(
        (
            "",
            '<rect width="50" height="50" fill="#fff"/>',
            '<rect width="50" height="50" fill="#000" opacity="0.01"/>',
            '<rect width="100" height="1" fill="#000"/>',
        )
    ):
        assert draw(write(tmp_path / f"{number}.svg", svg(body=body))) is None
    with pytest.raises(ValueError):
        draw(write(tmp_path / "broken.svg", b"<svg"))


# ------------------------------------------------------------------------------- .deb packages


def deb(path, root, compression="xz"):
    """A .deb of the files under ``root``, as deb(5) describes it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as tar:
        tar.add(root, ".")
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w:xz") as tar:
        tar.addfile(tarfile.TarInfo("./control"))
    content = b"!<arch>\n"
    for name, part in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", control.getvalue()),
        (f"data.tar.{compression}", data.getvalue()),
    ):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode()
        content += part + b"\n" * (len(part) % 2)
    return write(path, content)


@pytest.mark.parametrize("with_dpkg", [True, False])
def test_packages_are_unpacked_with_and_without_dpkg(tmp_path, packages, monkeypatch, with_dpkg):
    if with_dpkg and not shutil.which("dpkg-deb"):
        pytest.skip("there is no dpkg-deb here")
    if not with_dpkg:
        monkeypatch.setattr(openclipart.shutil, "which", lambda _: None)
    file = deb(tmp_path / "a_1_all.deb", packages["pysiogame"])
    unpack(file, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / ART4APPS / "fruit_n_veg").iterdir())
    assert names == ["broken.jpg", "sweet_corn2.jpg"]
    with pytest.raises(ValueError, match=r"bad.deb .*delete it"):
        unpack(write(tmp_path / "bad.deb", b"no package"), tmp_path / "out2")


def test_without_apt_the_error_says_where_the_files_come_from_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr(openclipart.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # where bars are shown
    with pytest.raises(FileNotFoundError) as error:
        prepare(tmp_path)
    text = str(error.value)
    assert "there is no apt-get" in text and f"into {tmp_path / 'debs'}" in text
    assert "https://deb.debian.org/debian/pool/main/o/openclipart/openclipart-svg_0.18" in text
    assert "--packages" in text
    # A bar left open is closed when it is collected, and a message that is printed then fails.
    assert not [bar for bar in tqdm._instances if bar.desc.startswith("openclipart")]


@pytest.fixture
def fake_apt(tmp_path, monkeypatch):
    """An apt-get on the path that does what the test's script says."""

    def install(script: str) -> None:
        file = write(tmp_path / "bin" / "apt-get", f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{file.parent}:/usr/bin:/bin")

    return install


def test_packages_are_downloaded_once_and_debs_are_taken(tmp_path, fake_apt):
    fake_apt('echo "$2" > "$2_1%3a2_all.deb"')
    file = fetch("pysiogame", tmp_path / "downloads", tmp_path / "debs")
    assert file == tmp_path / "downloads" / "pysiogame_1%3a2_all.deb"
    assert file.read_text() == "pysiogame\n"
    fake_apt("echo 'E: Unable to locate package' >&2; exit 100")
    with pytest.raises(ConnectionError, match=r"apt-get update.*E: Unable to locate package"):
        fetch("openclipart-svg", tmp_path / "downloads", tmp_path / "debs")
    assert fetch("pysiogame", tmp_path / "downloads", tmp_path / "debs") == file
    own = write(tmp_path / "debs" / "openclipart-svg_9_all.deb", b"")
    assert fetch("openclipart-svg", tmp_path / "downloads", tmp_path / "debs") == own


# ------------------------------------------------------------------------------------- building


@pytest.fixture
def source_path(tmp_path, packages, monkeypatch):
    """A folder whose ``debs`` hold the miniature packages; they are drawn in this process."""
    for name, root in packages.items():
        deb(tmp_path / "data" / "debs" / f"{name}_1_all.deb", root)
    monkeypatch.setattr(
        drawings, "draw_all", lambda draw, paths: (drawings.try_to(draw, path) for path in paths)
    )
    return tmp_path / "data"


def test_the_build_is_a_caption_set_with_its_sources(source_path, caplog):
    caplog.set_level("INFO")
    folder = prepare(source_path)
    captions = {
        path.relative_to(folder).as_posix(): json.loads(path.read_text())
        for path in folder.glob("*/*.json")
    }
    assert set(captions) == {
        "openclipart-svg/animals_dogs_bored_dog_01.json",
        "openclipart-svg/shapes_dot.json",
        "pysiogame/fruit_n_veg_sweet_corn2.json",
        "tuxpaint-stamps-default/animals_a.json",
        "tuxpaint-stamps-default/town_b.json",
    }
    for name, about in captions.items():
        assert about["file"] not in DROPPED
        assert about["caption"] == CAPTIONS[name.partition("/")[0]][about["file"]]
    assert all(folder.joinpath(name).with_suffix(".jpg").exists() for name in captions)
    assert is_caption_set(folder)
    assert "1 pictures are blank, 1 are copies, 1 cannot be drawn" in caplog.text
    assert "pysiogame fruit_n_veg/broken.jpg: UnidentifiedImageError" in caplog.text
    assert "not the usual" in caplog.text and "pysiogame_1_all.deb" in caplog.text
    sources = (folder / "SOURCES.md").read_text()
    assert "tuxpaint-stamps-default_1_all.deb, sha256 " in sources and "CC BY-SA" in sources
    assert sorted(path.name for path in source_path.iterdir()) == [
        "debs",
        "downloads",
        "openclipart",
    ]


def test_fewer_packages_and_a_built_set_of_others(source_path, monkeypatch):
    folder = prepare(source_path, packages=["pysiogame"])
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["pysiogame"]
    monkeypatch.setattr(openclipart, "_build", lambda *_: pytest.fail("was built again"))
    assert prepare(source_path) == folder  # what is built
    with pytest.raises(ValueError, match=r"built from pysiogame, not from openclipart-svg; del"):
        prepare(source_path, packages=["openclipart-svg"])
    for wrong in ([], ["gcompris"]):
        with pytest.raises(ValueError, match=r"must be among .*tuxpaint-stamps-default"):
            prepare(source_path, packages=wrong)


@pytest.mark.packages
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("apt-get"), reason="there is no apt-get here")
def test_the_real_dataset(tmp_path, caplog):
    folder = prepare(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["pairs"] == {name: package.pairs for name, package in PACKAGES.items()}
    # No warning: as many as usual.
    assert not [one for one in caplog.records if one.levelname != "INFO"]
    captions = [json.loads(path.read_text())["caption"] for path in folder.glob("*/*.json")]
    assert len(captions) == 5281 and len(set(captions)) > 4400
    assert min(map(len, captions)) >= 3
