"""Embeds a folder of images into an index, and the pictures of queries."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from datasets.image_files import image_files
from datasets.image_set import ImageSet
from datasets.readable import fault
from evaluation.extract import extract_readable
from evaluation.feature_cache import digest_of_embeddings
from evaluation.image_index import (
    EmbeddedFiles,
    ImageFile,
    ImageIndex,
    Provenance,
    check_provenance,
    read_index,
    read_parts,
    write_index,
)
from evaluation.index_files import PARTS, has_index
from evaluation.preprocessing import Preprocessing
from utilities.console import printable

LOG = logging.getLogger(__name__)

PART_SECONDS = 30.0  # of embedding, the most that an interruption loses


@dataclass(frozen=True)
class SearchModel:
    """A trained embedder with the preprocessing and precision that its run was evaluated in."""

    embedder: Any  # nn.Module with ``embed_dim``: images (B, 3, H, W) -> ``Embedding``
    preprocessing: Preprocessing
    precision: str
    arch: str
    checkpoint: Path
    epoch: int
    space: str = "embeds"  # of ``evaluation.image_index.SPACES``

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides the embedding of an image."""
        return digest_of_embeddings(self.arch, self.preprocessing, self.embedder)

    def provenance(self, folder: Path) -> Provenance:
        """Return the provenance of an index of ``folder`` by this model."""
        dim = self.embedder.embed_dim
        return Provenance(folder, self.checkpoint, self.epoch, self.digest, dim, self.space)


class Changes(NamedTuple):
    """Numbers of images that changed in a folder since it was indexed."""

    new: int
    changed: int
    removed: int
    unchanged: int
    unreadable: int


def build_index(
    folder: Path,
    model: SearchModel,
    where: Path,
    *,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
) -> tuple[ImageIndex, Changes]:
    """Index ``folder`` into the folder ``where``: only new and changed images are embedded.

    Raises:
        FileNotFoundError: the folder does not exist or holds no readable image.
        ValueError: ``where`` is the index of another model or folder, or is damaged; an embedding
            is not finite.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to index")
    folder, where = folder.resolve(), where.resolve()
    provenance = model.provenance(folder)
    old = EmbeddedFiles([], np.zeros((0, provenance.embed_dim), np.float32), {})
    if has_index(where):
        made_by, old = read_index(where)
        check_provenance(made_by, provenance, where)

    files = list_files(folder, apart_from=where)
    known = [old, *read_parts(where, provenance)]
    seen = {file for part in known for file in (*part.files, *part.unreadable)}
    fresh = [file for file in files if file not in seen]
    if len(known) > 1:
        n_embedded = sum(len(part.files) for part in known[1:])
        LOG.info("resuming an interrupted pass, which has embedded %d images", n_embedded)
    paths = [folder / file.path for file in fresh]
    for number, (rows, vectors, faults) in enumerate(
        embed_files(model, paths, bs=bs, workers=workers, device=device),
        start=len(list((where / PARTS).glob("*"))),
    ):
        unreadable = {fresh[row]: why for row, why in faults.items()}
        part = EmbeddedFiles([fresh[row] for row in rows], vectors, unreadable)
        write_index(where / PARTS / f"{number:05d}", ImageIndex(provenance, part))
        known.append(part)

    embedded = _select(files, known)
    for file, why in embedded.unreadable.items():
        if file not in old.unreadable:
            LOG.warning("skipped, cannot be read: %s (%s)", printable(folder / file.path), why)
    if not embedded.files:
        raise FileNotFoundError(
            f"{folder} holds no readable image ({len(embedded.unreadable)} that cannot be read); "
            "give a folder of images"
        )
    index = ImageIndex(provenance, embedded)
    if embedded.files != old.files or embedded.unreadable != old.unreadable:
        write_index(where, index)
    shutil.rmtree(where / PARTS, ignore_errors=True)
    return index, _changes(old, embedded)


def list_files(folder: Path, apart_from: Path) -> list[ImageFile]:
    """List the images in ``folder`` but not in ``apart_from``, sorted by path."""
    listing = image_files(folder, apart_from=apart_from)
    listing.warn(printable(folder))
    files = []
    for path in listing.paths:
        status, relative = path.stat(), path.relative_to(folder).as_posix()
        files.append(ImageFile(relative, status.st_size, status.st_mtime_ns))
    return sorted(files)


def embed_files(
    model: SearchModel,
    paths: Sequence[Path],
    *,
    bs: int = 112,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[list[int], NDArray[np.float32], dict[int, str]]]:
    """Embed image files in order, in parts of about ``PART_SECONDS``.

    Yields:
        rows of ``paths``, their (M, D) unit rows, and the rows that cannot be read with the reason.
    """
    if not paths:
        return
    images = ImageSet("images", tuple(paths), np.zeros(len(paths), np.int64), ("",))
    rows: list[int] = []
    vectors = [torch.empty(0, model.embedder.embed_dim)]
    first, since = 0, time.perf_counter()

    def part(end: int) -> tuple[list[int], NDArray[np.float32], dict[int, str]]:
        missing = sorted({*range(first, end)}.difference(rows))
        faults = {row: fault(paths[row]) or "unreadable" for row in missing}
        return rows, torch.cat(vectors).numpy(), faults

    for found, embeds in extract_readable(
        *(model.embedder.to(device), images, model.preprocessing.transform()),
        bs=bs,
        workers=workers,
        device=device,
        precision=model.precision,
    ):
        if not bool(embeds.isfinite().all()):
            raise ValueError(
                f"checkpoint {model.checkpoint} gives embeddings that are not finite; use an "
                "earlier one of its run"
            )
        rows += found.tolist()
        vectors.append(F.normalize(embeds, dim=1))
        if time.perf_counter() - since >= PART_SECONDS:
            yield part(rows[-1] + 1)
            first, since = rows[-1] + 1, time.perf_counter()
            rows, vectors = [], vectors[:1]
    if first < len(paths):
        yield part(len(paths))


def _select(files: Sequence[ImageFile], known: Sequence[EmbeddedFiles]) -> EmbeddedFiles:
    """Return those of ``files`` that are embedded or unreadable, in their order."""
    vectors = np.concatenate([part.vectors for part in known])
    rows = {file: row for row, file in enumerate(file for part in known for file in part.files)}
    faults = {file: why for part in known for file, why in part.unreadable.items()}
    readable = [file for file in files if file in rows]
    unreadable = {file: faults[file] for file in files if file in faults}
    return EmbeddedFiles(readable, vectors[[rows[file] for file in readable]], unreadable)


def _changes(old: EmbeddedFiles, now: EmbeddedFiles) -> Changes:
    before, after = ({file.path: file for file in part.files} for part in (old, now))
    shared = before.keys() & after.keys()
    unchanged = sum(before[path] == after[path] for path in shared)
    return Changes(
        new=len(after) - len(shared),
        changed=len(shared) - unchanged,
        removed=len(before) - len(shared),
        unchanged=unchanged,
        unreadable=len(now.unreadable),
    )


def embed_queries(
    images: Sequence[Path], model: SearchModel, *, device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Return (Q, D) unit rows of image files; ValueError if one cannot be read."""
    parts = list(embed_files(model, images, device=device))
    faults = {row: why for _, _, found in parts for row, why in found.items()}
    if faults:
        reasons = [f"{printable(images[row])} ({why})" for row, why in faults.items()]
        raise ValueError(f"the query cannot be read: {', '.join(reasons)}; give another image")
    return np.concatenate([vectors for _, vectors, _ in parts])
