"""The embedder of an index as ONNX, beside it, so that a query by pictures need not import torch.

It takes part in a search only while it embeds as the embedder that made the index does.
"""

import importlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.exported_preprocess import prepare
from evaluation.image_index import ImageIndex
from evaluation.index_files import QUICK
from evaluation.nearest import ALIKE
from utilities import faults
from utilities.checksums import seal, verify
from utilities.console import printable
from utilities.files import atomic_folder

LOG = logging.getLogger(__name__)

EMBEDDER, SETTINGS = "embedder.onnx", "preprocessing.json"
MOST_PIXELS = 30_000_000  # of a picture that is decoded whole; it takes 60 bytes for each
N_COMPARED, N_TRIED = 4, 16  # images


class QuickEmbedder:
    """Embeds image files by the ONNX file in a folder.

    Raises:
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        onnxruntime = importlib.import_module("onnxruntime")  # not needed without such a folder
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: it warns of machines without a GPU
        self.settings = dict(settings)
        self.session = onnxruntime.InferenceSession(
            str(folder / EMBEDDER), options, providers=["CPUExecutionProvider"]
        )

    def embed(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """Return (Q, D) unit rows; ValueError if one of the images cannot be embedded here."""
        return np.stack([self._embed(path) for path in paths])

    def _embed(self, path: Path) -> NDArray[np.float32]:
        try:
            with Image.open(path) as image:
                if image.format != "JPEG" and image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"over {MOST_PIXELS:,} pixels")
            batch = prepare(path, self.settings)[None]  # (1, 3, S, S)
            embedding: NDArray[np.float32] = self.session.run(None, {"images": batch})[0][0]
        except Exception as error:  # onnxruntime and Pillow raise their own
            raise ValueError(f"{printable(path)} is not embedded by {EMBEDDER}: {error}") from error
        unit = embedding / np.linalg.norm(embedding)
        if not np.isfinite(unit).all():
            raise ValueError(f"{printable(path)} has an embedding that is not finite")
        return unit


def load(where: Path, digest: str) -> QuickEmbedder | None:
    """Return the quick embedder of the index ``where``, if it has a sound one.

    Args:
        digest: of the embedder that made the index.
    """
    folder = where / QUICK
    if not folder.is_dir():
        return None
    try:
        verify(folder)
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        made_by = settings.pop("digest")
        return QuickEmbedder(folder, settings) if made_by == digest else None
    except Exception as error:  # onnxruntime raises its own
        LOG.warning("%s cannot be used (%s); loading the checkpoint instead", folder, error)
        return None


def keep(
    where: Path,
    index: ImageIndex,
    settings: Mapping[str, Any],
    write: Callable[[Path], None],
) -> None:
    """Write the quick embedder of an index, unless it is there.

    If it cannot be exported, or embeds images of the index otherwise, it is left out with a log
    line.

    Args:
        where: folder of the index.
        settings: of ``evaluation.exported_preprocess.prepare``.
        write: writes the embedder to an ONNX file.
    """
    digest = index.provenance.digest
    if load(where, digest):
        return
    for left in where.glob(f".{QUICK}.*"):  # by a killed process
        shutil.rmtree(left, ignore_errors=True)
    try:
        with atomic_folder(where / QUICK) as fresh:
            write(fresh / EMBEDDER)
            content = json.dumps({**settings, "digest": digest})
            (fresh / SETTINGS).write_text(content, encoding="utf-8")
            _compare(QuickEmbedder(fresh, settings), index)
            seal(fresh)
    except Exception as error:  # the exporters of backbones raise their own
        reason = faults.first_line(error)
        LOG.info("queries will load the checkpoint, which takes seconds (%s)", reason)


def _compare(embedder: QuickEmbedder, index: ImageIndex) -> None:
    """Raise ValueError unless images of the index get the vectors that they have in it."""
    folder, (files, vectors, _) = index.provenance.folder, index.embedded
    cosines: list[float] = []
    for row in np.unique(np.linspace(0, len(files) - 1, N_TRIED).astype(int)):
        with suppress(ValueError):  # of a format that is left to the checkpoint
            [embedding] = embedder.embed([folder / files[row].path])
            cosines.append(float(embedding @ vectors[row]))
        if len(cosines) == N_COMPARED:
            break
    if not cosines:
        raise ValueError("no image of the index can be read for it")
    if min(cosines) < ALIKE:
        raise ValueError(f"as ONNX it embeds otherwise: cosine {min(cosines):.4f}")
