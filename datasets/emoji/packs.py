"""Reads packages of emoji drawings and finds out which drawing shows which emoji."""

import json
import re
import tarfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SIZE = 128  # pixels


class Pack(NamedTuple):
    """One vendor's drawings, by the names that its package gives them."""

    drawings: dict[str, bytes]  # SVG text or a raster file
    codes: dict[str, str]  # code point -> name in ``drawings``; empty if the package has no table
    credit: str  # one line: author, address, licence


class Concept(NamedTuple):
    """An emoji as CLDR describes it."""

    name: str  # "hot beverage"
    emoji: str
    group: str  # "food & drink"
    subgroup: str  # "drink"
    tags: tuple[str, ...]


def read_pack(tarball: Path) -> Pack:
    """Return the drawings of an Iconify package, or of a folder of files named by code point."""
    with opened(tarball) as (names, read):
        if "icons.json" not in names:
            files = [name for name in sorted(names) if Path(name).suffix in (".webp", ".png")]
            drawings = {Path(name).stem: read(name) for name in files}
            about = json.loads(read("package.json"))
            licence = about.get("license", "no licence named")
            return Pack(
                drawings,
                {bare(name): name for name in drawings},
                f"{about.get('description', '').strip()}, {licence}",
            )
        icons, info = json.loads(read("icons.json")), json.loads(read("info.json"))
        chars = json.loads(read("chars.json")) if "chars.json" in names else {}
        author, licence = info["author"], info["license"]
        credit = f"{author['name']} <{author['url']}>, {licence['spdx']} {licence.get('url', '')}"
        return Pack(
            {name: svg(icon, icons) for name, icon in icons["icons"].items()},
            {bare(code): name for code, name in chars.items() if name in icons["icons"]},
            credit.strip(),
        )


def read_concepts(tarball: Path) -> dict[str, Concept]:
    """Return {code point: concept}; skin tones are listed under their own emoji and left out."""
    with opened(tarball) as (_, read):
        messages, entries = (json.loads(read(f"en/{name}.json")) for name in ("messages", "data"))
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    return {
        bare(entry["hexcode"]): Concept(
            name=entry["label"],
            emoji=entry["emoji"],
            group=groups[entry["group"]],
            subgroup=subgroups[entry["subgroup"]],
            tags=tuple(entry.get("tags", ())),
        )
        for entry in entries
        if "group" in entry  # single letters that only build flags have none
    }


@contextmanager
def opened(tarball: Path) -> Iterator[tuple[set[str], Callable[[str], bytes]]]:
    """Open an npm package: the names of its files, and a function that reads one."""
    with tarfile.open(tarball) as tar:
        files = {member.name.removeprefix("package/"): member for member in tar if member.isfile()}
        yield set(files), lambda name: tar.extractfile(files[name]).read()  # type: ignore[union-attr]


def svg(icon: Mapping[str, Any], pack: Mapping[str, Any]) -> bytes:
    """Return a whole SVG file; the box is the icon's, else its pack's, else 16 at the origin."""
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = " ".join(str(icon.get(key, pack.get(key, value))) for key, value in defaults.items())
    body = icon["body"].replace("currentColor", "#000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}" color="#000">{body}</svg>'
    ).encode()


def bare(code: str) -> str:
    """Return a code point sequence in lower case, without FE0F: "2615-FE0F" → "2615"."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def squash(name: str) -> str:
    """Return letters and digits only, to compare names: "Jack-o’-Lantern" → "jackolantern"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def match(concepts: Mapping[str, Concept], packs: Mapping[str, Pack]) -> dict[str, dict[str, str]]:
    """Return {code point: {vendor: name of the drawing}} of every concept that has a drawing."""
    # A drawing's name is looked up among the names of all packs' tables, then the Unicode names;
    # the CLDR name of a concept is its own, whatever others call it.
    code_of: dict[str, str] = {}
    for pack in packs.values():
        for code, name in pack.codes.items():
            if code in concepts:
                code_of.setdefault(squash(name), code)
    for code, concept in concepts.items():
        code_of[squash(concept.name)] = code
        if "-" not in code:
            code_of.setdefault(squash(unicodedata.name(chr(int(code, 16)), "")), code)
    code_of.pop("", None)

    drawn: dict[str, dict[str, str]] = defaultdict(dict)
    for vendor, pack in packs.items():
        for code, name in pack.codes.items():
            if code in concepts:
                drawn[code][vendor] = name
        for name in pack.drawings:
            found = code_of.get(squash(name))
            if found is None and not pack.codes:
                # Streamline numbers its variants: "tent-1", "tent-2"; the first one counts.
                found = code_of.get(squash(re.sub(r"-\d$", "", name)))
            if found is not None:
                drawn[found].setdefault(vendor, name)
    return drawn
