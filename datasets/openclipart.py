"""The `openclipart` dataset: pictures with a sentence or a few words for each.

Three Debian packages hold pictures whose makers said what they show. They are downloaded by
`apt-get download`, which installs nothing, unpacked, drawn on white, and laid out as any set of
image-caption pairs:

    openclipart/<package>/<id>.jpg
    openclipart/<package>/<id>.json     {"caption": ..., "file": ...}

Where a caption comes from:

- openclipart-svg: the metadata inside each SVG file. Title, then up to four keywords, those that
  its folders repeat first, then a description where it is a sentence about the picture. Titles that
  name a collection ("Clipart by ...") give way to the file's name. Only files that their metadata
  put into the public domain; machine-made families (1,378 stars, gradients, icon themes), whose
  metadata say nothing about the single picture, are left out.
- tuxpaint-stamps-default: the English first line of the text file beside each stamp. Letters of
  alphabets and mirrored copies are left out.
- pysiogame: file and folder name of each picture ("zebra, animals").

Blank drawings are dropped; of pictures that are equal pixel by pixel the first stays.
"""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from datasets.locking import alone
from utilities.files import atomic_folder

log = logging.getLogger(__name__)


class Package(NamedTuple):
    """One Debian package; of Debian 12, which the counts were taken from."""

    version: str
    sha256: str
    address: str  # below POOL
    pairs: int  # what it gives with resvg 0.5.0
    credit: str


POOL = "https://deb.debian.org/debian/pool/main/"
PACKAGES = {
    "openclipart-svg": Package(
        "1:0.18+dfsg-19",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "o/openclipart/openclipart-svg_0.18+dfsg-19_all.deb",
        3_836,
        "Open Clip Art Library <https://openclipart.org>, public domain",
    ),
    "tuxpaint-stamps-default": Package(
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "t/tuxpaint-stamps/tuxpaint-stamps-default_2022.06.04-1_all.deb",
        864,
        "Bill Kendrick and others <https://tuxpaint.org>, GPL-2",
    ),
    "pysiogame": Package(
        "4.20.01-1",
        "6b22766dfd8ef3a046c2665fe2598ac8a1ecee3d331bda38accf53de65bc59bf",
        "p/pysiogame/pysiogame_4.20.01-1_all.deb",
        581,
        "Art4Apps <http://www.art4apps.org>, CC BY-SA 3.0",
    ),
}
SIZE = 160  # pixels, the longer side
THINNEST = 8  # pixels, the shorter side: below it there is nothing to see


# ------------------------------------------------------------------------------------- packages


def fetch(name: str, downloads: Path, debs: Path) -> Path:
    """The package's .deb file: one that lies in ``downloads`` or ``debs``, else apt's.

    Any version is taken, since each release of Debian and Ubuntu has its own; `prepare` says when
    what it gives is not the usual.

    Raises:
        FileNotFoundError: there is no apt-get.
        ConnectionError: apt-get could not download it; carries its last lines.
    """
    for folder in (downloads, debs):
        there = sorted(folder.glob(f"{name}_*.deb"))
        if there:
            return there[-1]
    remedy = (
        f"Download {POOL}{PACKAGES[name].address} into {debs}, or leave the package out: "
        "`python -m datasets.openclipart --packages NAME ...`"
    )
    apt = shutil.which("apt-get")
    if apt is None:
        raise FileNotFoundError(
            f"the openclipart dataset is drawn from the Debian package {name}, and there is no "
            f"apt-get here to download it. {remedy}"
        )
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".apt.") as folder_name:
        done = subprocess.run(
            [apt, "download", name], cwd=folder_name, capture_output=True, text=True
        )
        fetched = sorted(Path(folder_name).glob("*.deb"))
        if done.returncode or not fetched:
            raise ConnectionError(
                f"apt-get could not download {name}, which the openclipart dataset is drawn from; "
                f"`apt-get update` (as root) helps where apt has no lists yet. {remedy}. apt-get "
                "said: " + " / ".join(done.stderr.strip().splitlines()[-3:])
            )
        return fetched[0].replace(downloads / fetched[0].name)


def unpack(deb: Path, folder: Path) -> None:
    """The files of a package under ``folder``, as `dpkg -x` writes them; nothing is installed.

    Raises:
        ValueError: it is no .deb file, or one that only dpkg can read here.
    """
    if dpkg := shutil.which("dpkg-deb"):
        done = subprocess.run([dpkg, "-x", deb, folder], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{deb} cannot be unpacked: {done.stderr.strip()}; delete it")
        return
    # Without Debian's tools: a .deb is an ar archive that holds data.tar.* (deb(5)).
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError(f"{deb} is no Debian package; delete it")
        while header := file.read(60):
            name, size = header[:16].decode("ascii", "replace").strip(" /"), int(header[48:58])
            if name.startswith("data.tar"):
                break
            file.seek(size + size % 2, os.SEEK_CUR)
        else:
            raise ValueError(f"{deb} holds no data.tar; delete it")
        try:
            with tarfile.open(fileobj=io.BytesIO(file.read(size))) as tar:
                for member in tar:
                    if member.isfile() or member.isdir():
                        tar.extract(member, folder, filter="data")
        except tarfile.ReadError as error:
            raise ValueError(
                f"{deb} cannot be unpacked without dpkg-deb ({name}: {error}); Debian's own "
                "packages can, those of Ubuntu are compressed in another way"
            ) from error


# ------------------------------------------------------------------------------------- captions


class Picture(NamedTuple):
    """A file to be drawn and what is said of it."""

    path: Path
    file: str  # its path inside the package's folder of pictures
    caption: str


DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
CREATIVE_COMMONS = "{http://web.resource.org/cc/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"

MACHINE_MADE = re.compile(
    r"shapes/(stars|jigsaw)/|computer/buttons/|computer/icons/[\w-]+-?theme/|special/|buttons/"
    r"|signs_and_symbols/led/|recreation/games/cards/cardbacks/"
)
COLLECTION = re.compile(  # titles that name where a picture comes from, not what it shows
    r"clipart by|cliparts?$|theme\b|icon ?set|^etiquette icons|collection|aiga_symbol|road ?signs$"
    r"|s[iu]bmission|rpg map|\bmaps$|map symbols|^advertising|^people$|^icons?$|^unsorted|^food$"
    r"|^untitled|^drawing|^simple arrows$|^card$",
    re.IGNORECASE,
)
EMPTY_KEYWORD = re.compile(
    r"hash.*|.*0x.*|\W*|.*\d.*|.*architetto.*|unsorted|magick|clip ?art|icons?|appicon|mimeicon"
    r"|theme|various|special|public domain|menu|signs?|mapsym|symbols?|signs and symbols|shapes?"
    r"|united nations member|map symbol|subnational|openclipart|svg|\w+sym|arrowshape"
    r"|lemon theme icon"
)
NO_DESCRIPTION = re.compile(
    r"hash\(|@|http|vectori[sz]ed|converted|inkscape|enjoy it|\bdrew\b|\bmade (with|in)|^part of"
    r"|drawn for|submi|data from|e-?mail",
    re.IGNORECASE,
)
SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
RANKS = {"a": "ace", "k": "king", "q": "queen", "j": "jack"} | {
    str(2 + place): word
    for place, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}


def plain(text: str) -> str:
    """Lower-case words of a title or a file name: "BypassLopper_02" → "bypass lopper"."""
    text = re.sub(r"\([^)]*@[^)]*\)", " ", text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(r"[\s_\-./\\#&]+", " ", text).lower()
    text = re.sub(r"\(b and w\)|\bbw\b", "black and white", text)
    # A number that a word follows counts something ("2 scoops"); any other numbers the files.
    text = re.sub(r"\b0\d*[a-z]?\b|\b\d+\b(?! [a-z])|(?<=[a-z]{3})\d+\b", " ", text)
    return " ".join(text.split()).strip(" ,:;")


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


def _file_words(file: str, author: str) -> str:
    """The words of a file name without its author's, who often stands there cut short."""
    name = plain(Path(file).stem)
    authors = [word for word in re.findall(r"[a-z]+", _ascii(author)) if len(word) > 1]

    def of_author(word: str) -> bool:
        return any(
            other.startswith(word) or (len(other) > 4 and word.startswith(other[:5]))
            for other in authors
        )

    passing = ("aiga", "bb", "gnome", "dev", "fs")  # prefixes of icon sets
    kept = [w for w in name.split() if len(w) > 1 and w not in passing and not of_author(w)]
    return " ".join(kept)


def clip_art_caption(svg: bytes, file: str) -> str | None:
    """What an Open Clip Art file says of itself; None when that is nothing or it is not free.

    Args:
        file: its path in the library, such as "animals/mammals/dogs/bored_dog_01.svg".
    """
    try:
        work = ElementTree.fromstring(svg).find(f".//{CREATIVE_COMMONS}Work")
    except ElementTree.ParseError:
        return None
    if work is None:
        return None
    licence = work.find(f"{CREATIVE_COMMONS}license")
    if licence is None or "publicdomain" not in "".join(licence.attrib.values()).lower():
        return None
    if found := re.match(r".*/cards/(\w+)/\w+?_([cdhs])_(\w+)\.svg$", file):
        style, suit, rank = found.groups()
        return f"{RANKS.get(rank, rank)} of {SUITS[suit]}, playing card, {style}"

    title = (work.findtext(f"{DUBLIN_CORE}title") or "").strip()
    author = " ".join(
        name.text or "" for name in work.findall(f"{DUBLIN_CORE}creator//{DUBLIN_CORE}title")
    )
    shown = "" if COLLECTION.search(title) else plain(title)
    if len(shown) < 3:
        shown = _file_words(file, author)
    if len(re.findall(r"[^\W\d_]", shown)) < 3:
        return None

    folders = [plain(part) for part in file.split("/")[:-1]]
    keywords = [plain(item.text or "") for item in work.iter(f"{RDF}li")]
    caption = ", ".join([shown, *_keywords(keywords, folders, shown)])
    description = " ".join((work.findtext(f"{DUBLIN_CORE}description") or "").split())
    if (
        3 <= len(description.split()) <= 25
        and not NO_DESCRIPTION.search(description)
        and set(plain(description).split()) - set(plain(caption).replace(",", "").split())
    ):
        caption = f"{caption}. {description.rstrip('.').lower()}"
    return caption


def _keywords(keywords: Iterable[str], folders: Sequence[str], shown: str) -> list[str]:
    """Up to four that say more than ``shown``, those that the folders repeat first."""
    kept: list[str] = []
    stems = {_stem(word) for word in shown.split()}
    in_folders = {_stem(folder) for folder in folders}
    for word in sorted(dict.fromkeys(keywords), key=lambda word: _stem(word) not in in_folders):
        new = {_stem(part) for part in word.split()} - stems
        if new and not EMPTY_KEYWORD.fullmatch(word) and len(word) > 2:
            kept.append(word)
            stems |= new
    if not kept:
        more = [f for f in folders if not EMPTY_KEYWORD.fullmatch(f) and f != "computer"]
        kept = [folder for folder in more[-1:] if _stem(folder) not in stems]
    return kept[:4]


def _stem(word: str) -> str:
    """Equal for a word and its plural, most often."""
    return re.sub(r"(e?s)$", "", word) if len(word) > 3 else word


def clip_art(root: Path) -> Iterator[Picture]:
    folder = root / "usr/share/openclipart/svg"
    for path in sorted(folder.rglob("*.svg")):
        file = path.relative_to(folder).as_posix()
        if MACHINE_MADE.match(file):
            continue
        caption = clip_art_caption(path.read_bytes(), file)
        if caption:
            yield Picture(path, file, caption)


def stamps(root: Path) -> Iterator[Picture]:
    folder = root / "usr/share/tuxpaint/stamps"
    for path in sorted((*folder.rglob("*.png"), *folder.rglob("*.svg"))):
        file = path.relative_to(folder).as_posix()
        text = path.with_suffix(".txt")
        if "alphabets/" in file or re.search(r"_(mirror|flip)", path.name) or not text.exists():
            continue
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        caption = re.sub(r"[“”]", "", lines[0]).strip(" .!").lower() if lines else ""
        if caption:
            yield Picture(path, file, caption)


def art4apps(root: Path) -> Iterator[Picture]:
    folder = root / "usr/share/games/pysiogame/res/images/art4apps"
    for path in sorted(folder.glob("*/*.jpg")):
        kind = path.parent.name.replace("_n_veg", " and vegetables").replace("_n_", " and ")
        yield Picture(
            path, path.relative_to(folder).as_posix(), f"{plain(path.stem)}, {plain(kind)}"
        )


READERS = {
    "openclipart-svg": clip_art,
    "tuxpaint-stamps-default": stamps,
    "pysiogame": art4apps,
}


# -------------------------------------------------------------------------------------- drawing


def draw(path: Path) -> tuple[bytes, str] | None:
    """The JPEG file of a picture on white and the digest of its pixels; None when it is blank.

    What is transparent all around is cut away and the rest laid on a white square; a picture
    without transparency keeps its shape.

    Raises:
        ValueError, OSError: the file cannot be drawn.
    """
    image = _raster(path)
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None:
        return None
    if path.suffix == ".svg" and SIZE / max(box[2] - box[0], box[3] - box[1]) > 1.25:
        # A small thing on a large page: drawn again at the size that it needs.
        zoom = min(SIZE / max(box[2] - box[0], box[3] - box[1]), 8)
        image = _raster(path, width=round(SIZE * zoom))
        box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    cut_out = image.getchannel("A").getextrema() != (255, 255)
    image = image.crop(box)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    contrast = max(high - low for low, high in image.getextrema())  # type: ignore[misc]
    if contrast < 16 or min(image.size) < THINNEST:
        return None
    if cut_out:
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, optimize=True)
    return file.getvalue(), hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()


def _raster(path: Path, width: int = SIZE) -> Image.Image:
    """The picture in RGBA; an SVG at ``width``, anything else as it is."""
    if path.suffix != ".svg":
        with Image.open(path) as opened:
            return opened.convert("RGBA")
    import resvg_py

    # 96 dots per inch: at its default of none, resvg refuses sizes in mm or pt. No system fonts:
    # the images must not depend on what is installed.
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=width, dpi=96.0, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _draw_or_say(path: Path) -> tuple[bytes, str] | str | None:
    """``draw`` for another process: an error comes back as its text."""
    try:
        return draw(path)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic inside resvg is no Exception
        return f"{type(error).__name__}: {error}"


def _draw_all(paths: Sequence[Path]) -> Iterator[tuple[bytes, str] | str | None]:
    """In order, on every core. New processes are spawned: a fork would copy torch's threads."""
    with ProcessPoolExecutor(
        os.cpu_count(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # an interrupt is for the parent to answer
    ) as pool:
        try:
            yield from pool.map(_draw_or_say, paths, chunksize=32)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# ------------------------------------------------------------------------------------- building


def prepare(source_path: Path, *, packages: Sequence[str] | None = None) -> Path:
    """The built dataset ``<source_path>/openclipart``; fetched and drawn when it is not there.

    Packages (202 MB) stay in ``<source_path>/downloads``; those that lie in ``<source_path>/debs``
    are taken from there. The dataset appears under its name only when it is whole; of two processes
    that need it at once, one builds and the other waits.

    Args:
        packages: which of ``PACKAGES`` to build from; None is what is built, else all.

    Raises:
        ValueError: an unknown package; or the built dataset is damaged or of other packages.
        FileNotFoundError, ConnectionError: see ``fetch``.
    """
    chosen = tuple(PACKAGES if packages is None else dict.fromkeys(packages))
    if not chosen or set(chosen) - set(PACKAGES):
        raise ValueError(f"packages {list(chosen)} of openclipart: choose from {list(PACKAGES)}")
    folder, downloads = source_path / "openclipart", source_path / "downloads"
    if not folder.exists():
        with alone(downloads / "openclipart.lock", "the openclipart dataset"):
            for left_over in (*source_path.glob(".openclipart.*"), *downloads.glob(".apt.*")):
                # Of a build that was killed, whose dpkg may still write for a moment.
                shutil.rmtree(left_over, ignore_errors=True)
            if not folder.exists():
                _build(folder, downloads, source_path / "debs", chosen)
    manifest = verify(folder)
    if packages is not None and set(manifest["packages"]) != set(chosen):
        raise ValueError(
            f"the openclipart dataset in {folder} is of the packages "
            f"{', '.join(manifest['packages'])}, not of {', '.join(chosen)}; delete that folder to "
            "have it built anew"
        )
    return folder


def _build(folder: Path, downloads: Path, debs: Path, packages: Sequence[str]) -> None:
    log.info("building the openclipart dataset in %s, once", folder)
    with tqdm(packages, desc="openclipart: fetch", unit="package") as bar:
        files = {package: fetch(package, downloads, debs) for package in bar}
    with (
        tempfile.TemporaryDirectory(dir=downloads, prefix=".apt.") as unpacked,
        atomic_folder(folder) as temporary,
    ):
        pictures = []
        for package in tqdm(packages, desc="openclipart: unpack", unit="package"):
            place = Path(unpacked) / package
            place.mkdir()
            unpack(files[package], place)
            pictures += [(package, picture) for picture in READERS[package](place)]
        _write(temporary, pictures)
        sources = _sources(files)
        (temporary / "SOURCES.md").write_text(sources, encoding="utf-8")
        manifest = {
            **measure(temporary),
            "packages": {package: files[package].name for package in packages},
            "resvg_py": version("resvg-py"),
            "pillow": version("pillow"),
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    found = manifest["pairs"]
    expected = {package: PACKAGES[package].pairs for package in packages}
    if found != expected:
        log.warning(
            "openclipart has %s pairs, not the usual %s: it is drawn from %s by resvg-py %s and "
            "pillow %s. Scores are not comparable with published ones",
            *(found, expected, ", ".join(manifest["packages"].values())),
            *(manifest["resvg_py"], manifest["pillow"]),
        )


def _write(folder: Path, pictures: Sequence[tuple[str, Picture]]) -> None:
    """``<package>/<id>.jpg`` and ``.json`` of every picture that can be drawn and is no copy."""
    seen: set[str] = set()
    names: set[tuple[str, str]] = set()
    cannot, blank, copies = [], 0, 0
    results = _draw_all([picture.path for _, picture in pictures])
    bar = tqdm(results, desc="openclipart: draw", total=len(pictures), unit="image")
    for (package, picture), result in zip(pictures, bar, strict=True):
        if isinstance(result, str):
            cannot.append(f"{package} {picture.file}: {result}")
        elif result is None:
            blank += 1
        elif result[1] in seen:
            copies += 1
        else:
            jpeg, digest = result
            seen.add(digest)
            stem = re.sub(r"[^a-z0-9]+", "_", _ascii(Path(picture.file).with_suffix("").as_posix()))
            name, number = stem, 2
            while (package, name) in names:
                name, number = f"{stem}_{number}", number + 1
            names.add((package, name))
            place = folder / package
            place.mkdir(exist_ok=True)
            (place / f"{name}.jpg").write_bytes(jpeg)
            about = {"caption": picture.caption, "file": picture.file}
            text = json.dumps(about, ensure_ascii=False)
            (place / f"{name}.json").write_text(text, encoding="utf-8")
    log.info(
        "openclipart: %d pictures are blank, %d are copies, %d cannot be drawn%s",
        *(blank, copies, len(cannot), "".join(f"\n  {line}" for line in cannot)),
    )


def _sources(files: Mapping[str, Path]) -> str:
    lines = ["# Where these images and captions come from", ""]
    for package, file in files.items():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        same = " (the usual file)" if digest == PACKAGES[package].sha256 else ""
        lines.append(f"- {package}: {file.name}, sha256 {digest}{same}; {PACKAGES[package].credit}")
    lines += [
        "",
        "Each picture was drawn on white at 160 pixels or less. Captions were put together from",
        "its metadata, its text file or its name, in lower case; `file` in each JSON file names",
        "the original inside the package.",
    ]
    return "\n".join(lines) + "\n"


def measure(folder: Path) -> dict[str, Any]:
    """Pairs of each package, and one SHA-256 over the names and bytes of images and captions."""
    digest = hashlib.sha256()
    pairs: Counter[str] = Counter()
    for path in sorted(folder.glob("*/*.jpg")):
        pairs[path.parent.name] += 1
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
        digest.update(path.with_suffix(".json").read_bytes())
    return {"pairs": dict(pairs), "sha256": digest.hexdigest()}


def verify(folder: Path) -> dict[str, Any]:
    """What ``manifest.json`` says. Raises ValueError when the images or captions say otherwise."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        found = measure(folder)
        difference = [
            f"{key} {found[key]}, expected {manifest.get(key)}"
            for key in found
            if found[key] != manifest.get(key)
        ]
    except (OSError, ValueError) as error:
        difference = [str(error)]
    if difference:
        raise ValueError(
            f"the openclipart dataset in {folder} is damaged ({'; '.join(difference)}); delete "
            "that folder and run again, it will be built anew"
        )
    return manifest


if __name__ == "__main__":
    import argparse

    from utilities.files import cache_folder

    parser = argparse.ArgumentParser(description="Build the openclipart dataset.")
    parser.add_argument(
        "--source_path", type=Path, default=cache_folder() / "datasets", help="(%(default)s)"
    )
    parser.add_argument(
        "--packages", nargs="+", choices=PACKAGES, help=f"(all: {', '.join(PACKAGES)})"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(prepare(args.source_path.expanduser(), packages=args.packages))
