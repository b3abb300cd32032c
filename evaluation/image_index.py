"""The index of a folder of images: their embeddings and the model that made them, on disk.

An index folder holds ``retrieval_index``, which is replaced as a whole: ``images.json`` (model and
images), ``vectors.faiss`` (their unit embeddings, ``IndexFlatIP``) and ``entry.json`` (checksums).
During a pass ``retrieval_parts`` keeps what has been embedded, so that it can be resumed.
``retrieval_embedder`` is that of ``evaluation.quick_embedder``. One process at a time may write an
index folder; any number may read it.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from datasets.image_files import READING
from evaluation.index_files import EARLIER, IMAGES, INDEX, PARTS, VECTORS, refuse_missing
from utilities.checksums import CONTENTS, seal, verify
from utilities.files import atomic_folder

FORMAT = 3  # raised when an older reader would misunderstand a newer index


class ImageFile(NamedTuple):
    """An image file in one state; another size or time of change is another image."""

    path: str  # relative to the indexed folder, with forward slashes
    size: int  # bytes
    mtime_ns: int


class EmbeddedFiles(NamedTuple):
    """M image files with their embeddings, and those that cannot be read."""

    files: list[ImageFile]  # (M,)
    vectors: NDArray[np.float32]  # (M, D) unit rows
    unreadable: dict[ImageFile, str]  # with the reason


class Provenance(NamedTuple):
    """The folder and the model of an index."""

    folder: Path
    checkpoint: Path
    epoch: int
    digest: str  # of weights, architecture and preprocessing: copies of a checkpoint share it
    embed_dim: int
    space: str = "embeds"  # of SPACES; earlier versions had no other


class ImageIndex(NamedTuple):
    provenance: Provenance
    embedded: EmbeddedFiles


def version_of(where: Path) -> tuple[int, int] | None:
    """Return what changes as the index in ``where`` is replaced; None if there is none."""
    try:
        status = (where / INDEX / CONTENTS).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_index(where: Path) -> ImageIndex:
    """Read the index in the folder ``where``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or was written by an earlier or a newer version.
    """
    folder = where / INDEX
    refuse_missing(where)
    if not folder.is_dir():
        raise ValueError(
            f"the index {where} was written by an earlier version; delete {EARLIER} and "
            "vectors_*.faiss in it and index the folder again"
        )
    try:
        verify(folder)
        content = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise ValueError(f"format {content['format']} is newer than this version's {FORMAT}")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the index {where} cannot be read ({error}); delete {folder} and index its folder "
            "of images again"
        ) from error
    if content.get("reading") != READING:
        raise ValueError(
            f"the index {where} was written by another version, which reads some images otherwise, "
            f"such as turned ones; delete {folder} and index its folder of images again"
        )
    indexed, checkpoint, *rest = content["provenance"].values()
    index = faiss.read_index(str(folder / VECTORS))
    # Without an array to fill, FAISS returns a tensor once its torch_utils are imported.
    vectors = np.empty((index.ntotal, index.d), np.float32)
    index.reconstruct_n(0, index.ntotal, vectors)
    files = [ImageFile(*row) for row in content["images"]]
    unreadable = {ImageFile(*row): why for *row, why in content["unreadable"]}
    provenance = Provenance(Path(indexed), Path(checkpoint), *rest)
    return ImageIndex(provenance, EmbeddedFiles(files, vectors, unreadable))


def write_index(where: Path, index: ImageIndex) -> None:
    """Write an index into the folder ``where``, replacing the one that is there."""
    provenance, embedded = index
    vectors = faiss.IndexFlatIP(provenance.embed_dim)
    vectors.add(np.ascontiguousarray(embedded.vectors))
    content = {
        "format": FORMAT,
        "reading": READING,
        "provenance": provenance._asdict(),
        "images": embedded.files,
        "unreadable": [(*file, why) for file, why in embedded.unreadable.items()],
    }
    with atomic_folder(where / INDEX) as fresh:
        with (fresh / VECTORS).open("wb") as file:  # FAISS ignores what fails as it closes one
            faiss.write_index(vectors, faiss.PyCallbackIOWriter(file.write))
        (fresh / IMAGES).write_text(json.dumps(content, default=str), encoding="utf-8")
        seal(fresh)


def check_provenance(found: Provenance, given: Provenance, where: Path) -> None:
    """Raise ValueError unless the index in ``where`` was made as ``given``."""
    if found.digest != given.digest:
        raise ValueError(
            f"the index {where} was made by {found.checkpoint} of epoch {found.epoch} (digest "
            f"{found.digest[:12]}); {given.checkpoint} of epoch {given.epoch} embeds differently "
            f"({given.digest[:12]}). Give the checkpoint that made it, or index {found.folder} "
            "with this one into another index"
        )
    if found.folder != given.folder:
        raise ValueError(
            f"the index {where} is of the folder {found.folder}, not of {given.folder}; give "
            "another index"
        )


def read_parts(where: Path, provenance: Provenance) -> Iterator[EmbeddedFiles]:
    """Yield what an interrupted pass of the same provenance has embedded."""
    for folder in sorted((where / PARTS).glob("*")):
        with contextlib.suppress(OSError, ValueError):
            part = read_index(folder)
            check_provenance(part.provenance, provenance, folder)
            yield part.embedded


def folder_of(path: Path, root: Path) -> str:
    """Return the folder of an image as seen from the indexed one, "" for that itself."""
    folder = path.relative_to(root).parent.as_posix()
    return "" if folder == "." else folder
