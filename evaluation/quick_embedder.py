"""The embedder of an index as ONNX, beside it, so that a query by pictures need not import torch.

It takes part in a search only while it embeds as the embedder that made the index does.
"""

import importlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.exported_preprocess import prepare
from evaluation.image_index import ImageIndex
from evaluation.index_files import QUICK
from evaluation.nearest import ALIKE
from utilities.checksums import seal, verify
from utilities.files import atomic_folder

LOG = logging.getLogger(__name__)

EMBEDDER, SETTINGS = "embedder.onnx", "preprocessing.json"
N_COMPARED = 4  # images


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
        """Return (Q, D) unit rows; an error of whatever kind if one cannot be read."""
        rows = []
        for path in paths:
            image = prepare(path, self.settings)[None]  # (1, 3, S, S)
            rows.append(self.session.run(None, {"images": image})[0][0])
        embeds = np.stack(rows).astype(np.float32)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        if not np.isfinite(embeds).all():
            raise ValueError("an embedding is not finite")
        return embeds


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
        return QuickEmbedder(folder, settings) if settings.pop("digest") == digest else None
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

    One that cannot be made or embeds images of the index otherwise is left out, with a log line.

    Args:
        where: folder of the index.
        settings: of ``evaluation.exported_preprocess.prepare``.
        write: writes the embedder to an ONNX file.
    """
    digest = index.provenance.digest
    if load(where, digest):
        return
    folder, files = index.provenance.folder, index.embedded.files
    rows = np.unique(np.linspace(0, len(files) - 1, N_COMPARED).astype(int))
    try:
        with atomic_folder(where / QUICK) as fresh:
            write(fresh / EMBEDDER)
            content = json.dumps({**settings, "digest": digest})
            (fresh / SETTINGS).write_text(content, encoding="utf-8")
            embeds = QuickEmbedder(fresh, settings).embed([folder / files[r].path for r in rows])
            cosines = (embeds * index.embedded.vectors[rows]).sum(axis=1)
            if not (cosines > ALIKE).all():
                raise ValueError(f"as ONNX it embeds otherwise: cosine {cosines.min():.4f}")
            seal(fresh)
    except Exception as error:  # the exporters of backbones raise their own
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        LOG.info("queries will load the checkpoint, which takes seconds (%s)", reason)
