"""The `openclipart` dataset: pictures with a sentence or a few words for each.

Three Debian packages hold pictures that their makers described. They are downloaded by
`apt-get download`, which installs nothing, and laid out, drawn on white, as

    openclipart/<package>/<id>.jpg
    openclipart/<package>/<id>.json     {"caption": ..., "file": ...}

``captions`` says where a caption comes from. Blank drawings are dropped; of pictures that are equal
pixel by pixel the first stays.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from datasets import drawings
from datasets.drawings import Drawn
from datasets.openclipart.captions import READERS, Picture, to_ascii
from utilities.progress import bar

LOG = logging.getLogger(__name__)


class Package(NamedTuple):
    """One package of Debian 12, which the counts were taken from."""

    version: str
    sha256: str
    address: str  # under POOL
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
THINNEST = 8  # pixels, the shorter side; a thinner picture shows nothing


def prepare(source_path: Path, *, packages: Sequence[str] | None = None) -> Path:
    """Return the folder of the dataset, built in ``<source_path>/openclipart`` if need be.

    A folder of that name that was not built is the user's own, and returned as it is.
    Packages (202 MB) are kept in ``<source_path>/downloads``, or used from ``<source_path>/debs``.
    ``packages`` are of ``PACKAGES``; None accepts those of a built dataset, else takes all.

    Raises:
        FileNotFoundError, ConnectionError: apt-get is not installed, or could not download one.
        ValueError: an unknown package; or the built dataset is damaged or of other packages.
    """
    chosen = tuple(PACKAGES if packages is None else dict.fromkeys(packages))
    if not chosen or set(chosen) - set(PACKAGES):
        raise ValueError(
            f"packages of openclipart must be among {', '.join(PACKAGES)}; got {list(chosen)}"
        )
    folder = source_path / "openclipart"
    if drawings.is_own(folder):
        return drawings.as_own(folder)
    drawings.build_once(folder, lambda fresh: _build(fresh, source_path, chosen))
    manifest = verify(folder)
    if packages is not None and set(manifest["packages"]) != set(chosen):
        raise ValueError(
            f"the openclipart dataset in {folder} was built from {', '.join(manifest['packages'])},"
            f" not from {', '.join(chosen)}; delete that folder to rebuild it"
        )
    return folder


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest; raise ValueError if images or captions do not agree with it."""
    return drawings.verify(folder, measure)


def measure(folder: Path) -> dict[str, Any]:
    """Return the pairs of each package, and one SHA-256 over all images and captions."""
    digest = hashlib.sha256()
    pairs: Counter[str] = Counter()
    for path in sorted(folder.glob("*/*.jpg")):
        pairs[path.parent.name] += 1
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
        digest.update(path.with_suffix(".json").read_bytes())
    return {"pairs": dict(pairs), "sha256": digest.hexdigest()}


def fetch(name: str, downloads: Path, debs: Path) -> Path:
    """Return the package's .deb file, of any version, from the folders, else by apt-get."""
    for folder in (downloads, debs):
        if there := sorted(folder.glob(f"{name}_*.deb")):
            return there[-1]
    remedy = (
        f"Download {POOL}{PACKAGES[name].address} into {debs}, or leave the package out: "
        "`python -m datasets.openclipart --packages NAME ...`"
    )
    apt = shutil.which("apt-get")
    if apt is None:
        raise FileNotFoundError(
            f"the openclipart dataset is drawn from the Debian package {name}, which apt-get "
            f"downloads, and there is no apt-get here. {remedy}"
        )
    return drawings.fetch(
        "openclipart",
        [apt, "download", name],
        "*.deb",
        downloads,
        failure=f"apt-get could not download {name}, which the openclipart dataset is drawn from; "
        f"run `apt-get update` (as root) if apt has no lists yet. {remedy}",
    )


def unpack(deb: Path, folder: Path) -> None:
    """Write a package's files to ``folder``, as `dpkg -x` does; raise ValueError if unreadable."""
    if dpkg := shutil.which("dpkg-deb"):
        done = subprocess.run([dpkg, "-x", deb, folder], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{deb} cannot be unpacked: {done.stderr.strip()}; delete it")
        return
    # Without Debian's tools: a .deb is an ar archive that holds data.tar.* (deb(5)).
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError(f"{deb} is not a Debian package; delete it")
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


def draw(path: Path) -> Drawn | None:
    """Return a picture on white, margins cut, centred on a square; None if it is blank."""
    image = _raster(path)
    box = _visible(image)
    if box is None:
        return None
    longer = max(box[2] - box[0], box[3] - box[1])
    if path.suffix == ".svg" and SIZE / longer > 1.25:
        # A small thing on a large page: drawn again at the size that it needs.
        image = _raster(path, width=round(SIZE * min(SIZE / longer, 8)))
        box = _visible(image)
    cut_out = image.getchannel("A").getextrema() != (255, 255)
    image = drawings.on_white(image.crop(box))
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    if drawings.is_blank(image) or min(image.size) < THINNEST:
        return None
    if cut_out:
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return drawings.encode(image)


def _visible(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box of what is not transparent."""
    return image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()


def _raster(path: Path, width: int = SIZE) -> Image.Image:
    """Return the picture in RGBA; an SVG at ``width``, anything else in its own size."""
    if path.suffix == ".svg":
        # 96 dots per inch: at its default of none, resvg refuses sizes in mm or pt.
        return drawings.render(svg_path=str(path), width=width, dpi=96.0)
    with Image.open(path) as opened:
        return opened.convert("RGBA")


def _build(folder: Path, source_path: Path, packages: Sequence[str]) -> dict[str, Any]:
    downloads, debs = source_path / "downloads", source_path / "debs"
    with bar(packages, desc="openclipart: fetch", unit="package") as shown:
        files = {package: fetch(package, downloads, debs) for package in shown}
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".openclipart.") as unpacked:
        pictures = []
        for package in bar(packages, desc="openclipart: unpack", unit="package"):
            place = Path(unpacked) / package
            place.mkdir()
            unpack(files[package], place)
            pictures += [(package, picture) for picture in READERS[package](place)]
        _write(folder, pictures)

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
    (folder / "SOURCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    measured = measure(folder)
    names = {package: file.name for package, file in files.items()}
    expected = {package: PACKAGES[package].pairs for package in packages}
    if measured["pairs"] != expected:
        LOG.warning(
            "openclipart has %s pairs, not the usual %s: it is drawn from %s by resvg-py %s and "
            "pillow %s. Scores are not comparable with published ones",
            *(measured["pairs"], expected, ", ".join(names.values())),
            *drawings.renderers().values(),
        )
    return {**measured, "packages": names}


def _write(folder: Path, pictures: Sequence[tuple[str, Picture]]) -> None:
    seen: set[str] = set()
    cannot, blank, copies = [], 0, 0
    results = drawings.draw_all(draw, [picture.path for _, picture in pictures])
    shown = bar(results, desc="openclipart: draw", total=len(pictures), unit="image")
    for (package, picture), result in zip(pictures, shown, strict=True):
        if isinstance(result, str):
            cannot.append(f"{package} {picture.file}: {result}")
        elif result is None:
            blank += 1
        elif result[1] in seen:
            copies += 1
        else:
            jpeg, digest = result
            seen.add(digest)
            place = folder / package
            place.mkdir(exist_ok=True)
            stem = Path(picture.file).with_suffix("").as_posix()
            stem = re.sub(r"[^a-z0-9]+", "_", to_ascii(stem))
            name, number = stem, 2
            while (place / f"{name}.jpg").exists():
                name, number = f"{stem}_{number}", number + 1
            (place / f"{name}.jpg").write_bytes(jpeg)
            about = {"caption": picture.caption, "file": picture.file}
            text = json.dumps(about, ensure_ascii=False)
            (place / f"{name}.json").write_text(text, encoding="utf-8")
    LOG.info(
        "openclipart: %d pictures are blank, %d are copies, %d cannot be drawn%s",
        *(blank, copies, len(cannot), "".join(f"\n  {line}" for line in cannot)),
    )
