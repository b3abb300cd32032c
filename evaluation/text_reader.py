"""Reads texts as queries by a map from words to images, without loading an embedder.

Like an entry point it assembles parts of several folders; only entry points import it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import language
from evaluation import word_map_file
from utilities import checkpoint
from utilities.run_files import checkpoint_file

ReadTexts = Callable[[Sequence[str]], NDArray[np.float32]]  # texts -> (W, D) unit rows


def reader_by_map(
    run: Path,
    word_map: Path | None,
    language_model: str | None,
    digest: str,
    where: Path,
    device: torch.device,
) -> ReadTexts:
    """Return a reader of texts by a map from words to images.

    Args:
        run, word_map, language_model: as ``evaluation.searcher.Searcher`` takes them.
        digest: of the embedder that made the index ``where``.

    Raises:
        FileNotFoundError: the map is missing.
        ValueError: it is damaged, or of another embedder or text encoder.
    """
    file = word_map
    if not file:
        made_by = checkpoint_file(run)
        file = word_map_file.map_file(made_by)
        if not file.is_file():
            content = checkpoint.load(made_by)
            why = word_map_file.why_none(made_by, content.get("data"))
            import criteria  # rarely needed, and not at once there

            if "captions" in criteria.CRITERIA[content["flags"].get("loss", "margin")].needs:
                why = f"{made_by} has a text side of its own; index the folder with --space words"
            raise FileNotFoundError(f"--words: {why}")
    stored = word_map_file.read(file)
    stored.check_embedder(
        *(digest, file, f"those that made the index {where}"),
        "index the folder again into another index, or give --map a map that was fitted to them",
    )
    name = language_model or stored.language_model
    encoder = language.build_encoder(name, device)
    stored.check_encoder(encoder.encode([*stored.probes]), name, file)

    def read(words: Sequence[str]) -> NDArray[np.float32]:
        return stored.map(language.query_embeds(encoder, words)).numpy()

    return read
