"""Keeps a map from words to images in a file beside the checkpoint whose images it was fitted to.

Such a file is safetensors: the tensors of a ``WordMap``, and in its metadata, as JSON, what
they were fitted with and a checksum of it all. A few names and their text embeddings tell whether
a text encoder is still the one of the map, on whatever machine.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from datasets import description
from datasets.description import Description
from evaluation.word_map import FEWEST, WordMap
from utilities.checksums import digest
from utilities.disk_cache import digest_of_tensors
from utilities.files import atomic_path

FORMAT = 1  # raised when an older reader would misunderstand a newer file
SUFFIX = ".words.safetensors"
PROMPT = "{}"  # names are embedded as they are
KEY = "words"  # of the metadata; one, since safetensors writes several in any order
TENSORS = ("weight", "text_mean", "probes")
N_PROBES = 4
CLOSE = 1e-3  # between unit vectors of one text; other machines round otherwise, by 1e-6

COMMAND = "python -m evaluation.words --checkpoint {}"


class StoredMap(NamedTuple):
    """A map with all that its use needs."""

    map: WordMap
    language_model: str  # text encoder, by the name that --evaluation_language_model gave it
    output: str  # of the embedder, that it leads to: "embeds" or "features"
    n_classes: int  # that it was fitted to
    embedder: str  # ``digest_of_embeddings`` of the embedder and its preprocessing
    probes: dict[str, Tensor]  # a few names, and their embeddings (D_text,) unit rows

    def check_embedder(self, embedder: str, file: Path, whose: str, remedy: str) -> None:
        """Raise ValueError unless the map leads to the embeddings of the embedder of this digest.

        Args:
            whose: embedder it is, and ``remedy``: for the message.
        """
        if self.embedder != embedder:
            raise ValueError(f"the map {file} was fitted to other weights than {whose}; {remedy}")
        if self.output != "embeds":
            raise ValueError(
                f"the map {file} leads to {self.output}, not to the embeddings that pictures are "
                f"searched by; {remedy}"
            )

    def check_encoder(self, embeds: Tensor, name: str, file: Path) -> None:
        """Raise ValueError if an encoder's embeddings (P, D_text) of the probes have changed."""
        kept = torch.stack([*self.probes.values()])
        if embeds.shape != kept.shape or not bool((embeds - kept).norm(dim=1).max() < CLOSE):
            raise ValueError(
                f"the text encoder {name} is not the one of the map {file}: it embeds "
                f"{', '.join(map(repr, self.probes))} differently; name the encoder that was "
                f"called {self.language_model} then by --language_model, or fit the map again: "
                + COMMAND.format("RUN")
            )


def probes_of(names: Sequence[str], embeds: Tensor) -> dict[str, Tensor]:
    """Return the first few of the names (C,) that have an embedding, with it."""
    known = [row for row, embed in enumerate(embeds) if bool(embed.any())]
    return {names[row]: embeds[row] for row in known[:N_PROBES]}


def map_file(checkpoint: Path) -> Path:
    """Return the place of the map beside a checkpoint: last.words.safetensors for last.pt."""
    return checkpoint.with_name(checkpoint.stem + SUFFIX)


def why_none(checkpoint: Path, data: Description | None) -> str:
    """Return why there is no map beside a checkpoint, or the command that makes one.

    Args:
        data: the checkpoint's description of them; None in older checkpoints.
    """
    names = {*description.classes(data).get("train", ())} if data else set()
    if data and len(names) < FEWEST:
        return (
            f"{checkpoint} was trained on {len(names)} classes with different names, and a map "
            f"from words to images needs at least {FEWEST}"
        )
    return f"there is no map from words to images beside {checkpoint}; make it: " + COMMAND.format(
        checkpoint
    )


def write(file: Path, stored: StoredMap) -> None:
    """Write a map, whole or not at all; the same one always gives the same bytes."""
    fitted, probes = stored.map, torch.stack([*stored.probes.values()])
    parts = (fitted.weight, fitted.text_mean, probes)
    tensors = {name: part.contiguous() for name, part in zip(TENSORS, parts, strict=True)}
    about: dict[str, Any] = {
        "format": FORMAT,
        "language_model": stored.language_model,
        "prompt": PROMPT,
        "output": stored.output,
        "n_classes": stored.n_classes,
        "penalties": [*fitted.penalties],
        "embedder": stored.embedder,
        "probes": [*stored.probes],
    }
    about["checksum"] = _checksum(about, tensors)
    with atomic_path(file) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={KEY: json.dumps(about)}))


def read(file: Path) -> StoredMap:
    """Read a map.

    Raises:
        ValueError: the file is damaged, or of a newer version. FileNotFoundError: there is none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no map from words {file}")
    try:
        with safetensors.safe_open(file, framework="pt") as content:
            about = json.loads((content.metadata() or {})[KEY])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        if about["format"] > FORMAT:
            raise ValueError(f"format {about['format']} is newer than this version's {FORMAT}")
        if about.pop("checksum") != _checksum(about, tensors):
            raise ValueError("it does not match its checksum")
        weight, text_mean, probes = (tensors[name] for name in TENSORS)
        return StoredMap(
            WordMap(weight, text_mean, tuple(about["penalties"])),
            about["language_model"],
            about["output"],
            about["n_classes"],
            about["embedder"],
            dict(zip(about["probes"], probes, strict=True)),
        )
    except Exception as error:  # safetensors and json each raise their own
        raise ValueError(
            f"the map from words {file} cannot be read ({error}); delete it and fit it again: "
            + COMMAND.format("RUN")
        ) from error


def _checksum(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    names = sorted(tensors)
    return digest([json.dumps(about), *names, digest_of_tensors(tensors[name] for name in names)])
