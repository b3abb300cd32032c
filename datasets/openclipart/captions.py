"""Finds the pictures of each package and puts together a caption for each.

- openclipart-svg: the metadata inside each SVG file. Title, then up to four keywords, those that
  its folders repeat first, then a description if it is a sentence about the picture. Titles that
  name a collection ("Clipart by ...") give way to the file's name. Only files that their metadata
  put into the public domain; machine-made families (1,378 stars, gradients, icon themes), whose
  metadata say nothing about the single picture, are left out.
- tuxpaint-stamps-default: the English first line of the text file beside each stamp. Letters of
  alphabets and mirrored copies are left out.
- pysiogame: file and folder name of each picture ("zebra, animals").
"""

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Picture(NamedTuple):
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
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RANKS = {"a": "ace", "k": "king", "q": "queen", "j": "jack"}
RANKS |= {str(number): word for number, word in enumerate(NUMBERS, start=2)}


def plain(text: str) -> str:
    """Return a title or file name as lower-case words: "BypassLopper_02" → "bypass lopper"."""
    text = re.sub(r"\([^)]*@[^)]*\)", " ", text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(r"[\s_\-./\\#&]+", " ", text).lower()
    text = re.sub(r"\(b and w\)|\bbw\b", "black and white", text)
    # A number that a word follows counts something ("2 scoops"); any other numbers the files.
    text = re.sub(r"\b0\d*[a-z]?\b|\b\d+\b(?! [a-z])|(?<=[a-z]{3})\d+\b", " ", text)
    return " ".join(text.split()).strip(" ,:;")


def to_ascii(text: str) -> str:
    """Return a text in lower case without accents and other characters beyond ASCII."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


def _file_words(file: str, author: str) -> str:
    """Return the words of a file name without its author, who is often abbreviated there."""
    name = plain(Path(file).stem)
    authors = [word for word in re.findall(r"[a-z]+", to_ascii(author)) if len(word) > 1]

    def of_author(word: str) -> bool:
        return any(
            other.startswith(word) or (len(other) > 4 and word.startswith(other[:5]))
            for other in authors
        )

    passing = ("aiga", "bb", "gnome", "dev", "fs")  # prefixes of icon sets
    kept = [w for w in name.split() if len(w) > 1 and w not in passing and not of_author(w)]
    return " ".join(kept)


def clip_art_caption(svg: bytes, file: str) -> str | None:  # file: "animals/dogs/bored_dog_01.svg"
    """Return a caption from an Open Clip Art file's metadata; None if it has none or isn't free."""
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
    """Return up to four that say more than ``shown``, those that the folders repeat first."""
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
    """Return a stem that most words share with their plurals."""
    return re.sub(r"(e?s)$", "", word) if len(word) > 3 else word


# Each reader yields the pictures of its package, unpacked in root.
def clip_art(root: Path) -> Iterator[Picture]:
    folder = root / "usr/share/openclipart/svg"
    for path in sorted(folder.rglob("*.svg")):
        file = path.relative_to(folder).as_posix()
        if MACHINE_MADE.match(file):
            continue
        if caption := clip_art_caption(path.read_bytes(), file):
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
        file = path.relative_to(folder).as_posix()
        yield Picture(path, file, f"{plain(path.stem)}, {plain(kind)}")


READERS = {"openclipart-svg": clip_art, "tuxpaint-stamps-default": stamps, "pysiogame": art4apps}
