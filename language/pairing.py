"""Finds images whose captions say nearly the same: the partners of language-guided sampling.

Source: El Banani, Desai and Johnson, Learning Visual Representations via Language-Guided Sampling,
CVPR 2023. Differs in that a row without embedding stays in the table, without a partner, and in the
order of ties (``language.copies``). Partners by images instead of captions are their ablation.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from language.copies import distinct, hash_texts
from language.embedding_store import Embed, EmbeddingStore, wait_for
from language.partner_folder import Partners, is_there, read, save, write
from language.search import Options, search
from language.text_encoder import TextEncoder
from utilities.checksums import digest, stamp
from utilities.disk_cache import Entry
from utilities.files import cache_folder


class Rows(NamedTuple):
    """The N images whose partners are searched."""

    name: str  # of their dataset; names the folder
    n: int
    content: str  # changes with the images, their order and their captions
    captions: Sequence[str] = ()  # N, or none; read in slices, so it may be lazy
    scopes: NDArray[np.int64] | None = None  # (N,), needed where ``options.scope`` is not "none"


class ImageEmbedder(NamedTuple):
    """Embeds images by ranges of rows, for visual partners."""

    embed: Embed  # first row, last + 1 -> (rows, F); a zero row where an image cannot be read
    name: str  # for the reader
    fingerprint: str  # changes when an embedding may change


class Rank(NamedTuple):
    """The number of this process among those that share the work; they share only the disk."""

    number: int
    world: int

    @classmethod
    def of_process(cls) -> "Rank":
        """Return torchrun's RANK and WORLD_SIZE; 0 of 1 outside of torchrun."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def span(self, n: int) -> tuple[int, int]:
        """Return the first of its share of n rows, and the last + 1."""
        return self.number * n // self.world, (self.number + 1) * n // self.world


def rows_of(images: Any, scope: str = "none") -> Rows:
    """Describe the images of a ``CaptionSet`` or an ``ImageSet``, which has no scopes."""
    if scope != "none" and not hasattr(images, "scopes"):
        raise ValueError(
            f"--data_pairs_scope (--scope) must be none for {images.name}, which has classes and "
            f"no scopes; got {scope}"
        )
    scopes = None if scope == "none" else images.scopes(scope)
    return Rows(images.name, len(images), identity(images), images.captions, scopes)


def identity(images: Any) -> str:
    """Return a text that changes with the images of a set, their order and their captions."""
    if hasattr(images, "fingerprint"):
        return images.fingerprint()
    hashes = hash_texts([*map(str, images.paths), *images.captions])
    return hashlib.blake2b(hashes.astype("<u8").tobytes(), digest_size=16).hexdigest()


def image_embedder(
    images: Any,
    backbone: nn.Module,
    name: str,
    *,
    settings: Sequence[object],
    extract: Callable[[Any], Any],
) -> ImageEmbedder:
    """Embed the images of a set by their pooled features.

    Args:
        images: a ``CaptionSet`` or an ``ImageSet``.
        settings: whatever else decides the features, such as the preprocessing.
        extract: returns the ``evaluation.Features`` of some of the images.
    """

    def embed(start: int, stop: int) -> NDArray[np.float32]:
        found = extract(_Span(images, start, stop))
        rows = np.zeros((stop - start, found.features.shape[1]), np.float32)
        rows[found.rows.numpy()] = found.features.numpy()
        return rows

    state = backbone.state_dict()
    parts = [f"{key} {value.dtype} {tuple(value.shape)}" for key, value in state.items()]
    parts += [repr(tuple(settings)), str(images.reading)]
    parts += images.stamps() if hasattr(images, "stamps") else map(stamp, images.paths)
    weights = (value.cpu().contiguous().numpy().tobytes() for value in state.values())
    return ImageEmbedder(embed, name, digest([*parts, *weights]))


class _Span:
    def __init__(self, images: Any, start: int, stop: int) -> None:
        self.images, self.start, self.stop = images, start, stop
        self.name = images.name

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, row: int) -> Any:
        return self.images.read(self.start + row)

    def label(self, row: int) -> int:
        return self.images.label(self.start + row)

    def caption(self, row: int) -> str | None:
        return self.images.caption(self.start + row)


def find(
    rows: Rows,
    embedder: TextEncoder | ImageEmbedder,
    options: Options | None = None,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    rank: Rank | None = None,
) -> Partners:
    """Read the partners of N rows, or find them if they are not there.

    Args:
        embedder: of the captions, or of the images. A text encoder needs no cache of its own.
        folder: where to write to; by default an entry of the cache, where embeddings always are.
        device: where vectors are compared.
        rank: by default torchrun's. All ranks return when the work is done.

    Raises:
        ValueError: ``folder`` holds other partners; or captions or scopes are missing.
    """
    options, rank = options or Options(), rank or Rank.of_process()
    _check(rows, embedder, options)
    name, n, content, captions, scopes = rows
    scopes = None if options.scope == "none" else scopes
    by = "language" if isinstance(embedder, TextEncoder) else "visual"
    encoder = _mark(embedder.fingerprint)
    settings = {
        "by": by, "encoder": encoder, "content": content, "rows": n, **asdict(options),
        "scopes": None if scopes is None else hashlib.sha256(scopes.tobytes()).hexdigest()[:16],
    }  # fmt: skip
    settings["no_identical"] = settings.pop("distinct")  # its name on disk
    # Partners from before there was this option are the same.
    marked = {name: value for name, value in settings.items() if name != "csls" or value}
    mark = _mark(json.dumps(marked, sort_keys=True))
    entry = Entry("neighbours", name, mark)
    kept = entry.read() if folder is None else folder if is_there(folder) else None
    if kept:
        there = read(kept, n=n)
        if there.about["options"] != mark:
            raise ValueError(
                f"{folder} holds other neighbours: {_difference(there.about, settings)}; give "
                "another folder, or delete this one"
            )
        return there

    since = time.perf_counter()
    where = cache_folder() / "embeddings" / f"{name}-{_mark(json.dumps((by, encoder, content)))}"
    described = {"encoder": encoder, "content": content}
    store = EmbeddingStore(where, n, kind="text" if by == "language" else "img", about=described)
    if isinstance(embedder, TextEncoder):
        store.fill_with_texts(captions, embedder, rank=rank.number, world=rank.world)
    else:
        store.fill(embedder.embed, rank=rank.number, world=rank.world)
    store.wait()
    embedded = time.perf_counter()

    texts = None
    if len(captions) == n and (options.distinct or rank.number == 0):
        texts = distinct(hash_texts(captions))
    differ = texts if options.distinct else None

    def share(of: Rank) -> Partners:
        return search(store, options, scopes=scopes, texts=differ, rows=of.span(n), device=device)

    found = share(rank) if rank.world == 1 else _of_all_ranks(share, entry, rank)
    if rank.number:
        place = folder or entry.folder
        wait_for(lambda: not is_there(place), "folder of neighbours, by rank 0")
        return read(place, n=n)
    about = {
        **settings, "options": mark, "name": name, "encoder": embedder.name, "fingerprint": encoder,
        "embeddings": str(where), **found.about,
        "distinct_captions": None if texts is None else int(texts.max()) + 1,
        "seconds_embedding": round(embedded - since, 1),
        "seconds_searching": round(time.perf_counter() - embedded, 1), "processes": rank.world,
    }  # fmt: skip
    found = found._replace(about=about)
    if folder is not None:
        return write(folder, found)
    return read(entry.write(lambda fresh: save(fresh, found)))


def _check(rows: Rows, embedder: TextEncoder | ImageEmbedder, options: Options) -> None:
    if rows.n < 1:
        raise ValueError(f"{rows.name} has no images, and so no neighbours")
    captioned = len(rows.captions) == rows.n
    if isinstance(embedder, TextEncoder) and not captioned:
        raise ValueError(
            f"{rows.name} has no captions, which neighbours are found by; give it a captions.json, "
            "put <id>.txt or <id>.json beside each image, or find neighbours by the images (visual)"
        )
    if options.distinct and not captioned:
        raise ValueError(f"--data_pairs_distinct (--distinct) needs captions; {rows.name} has none")
    if options.scope != "none" and (rows.scopes is None or len(rows.scopes) != rows.n):
        raise ValueError(
            f"scope {options.scope} needs the scope of each of the {rows.n} rows of {rows.name}; "
            f"got {'none' if rows.scopes is None else len(rows.scopes)}"
        )


def _of_all_ranks(share: Callable[[Rank], Partners], entry: Entry, rank: Rank) -> Partners:
    """Search the share of this rank into the cache; on rank 0, join those of all ranks."""
    parts = [
        Entry(entry.kind, f"{entry.name}-part-{number}-of-{rank.world}", entry.fingerprint)
        for number in range(rank.world)
    ]

    def kept(number: int) -> Partners:
        def compute() -> dict[str, Any]:
            found = share(Rank(number, rank.world))
            return {
                "partners": torch.from_numpy(found.partners),
                "similarities": torch.from_numpy(found.similarities),
                "about": found.about,
            }

        part = parts[number].tensors(compute)
        return Partners(part["partners"].numpy(), part["similarities"].numpy(), part["about"])

    found = kept(rank.number)
    if not parts[rank.number].folder.is_dir():  # the others would wait for it
        raise OSError(f"{entry.folder.parent} cannot be written; several processes share it")
    if rank.number:
        return found
    wait_for(lambda: sum(not part.folder.is_dir() for part in parts), "ranges of rows")
    shares = [kept(number) for number in range(rank.world)]
    recalls = [found.about["recall@1"] for found in shares]
    weights = [len(found.partners) + 1 for found in shares]
    about = found.about | {
        "recall@1": round(float(np.average(recalls, weights=weights)), 4),
        "distinct_vectors": max(found.about["distinct_vectors"] for found in shares),
        "zero_rows": sum(found.about["zero_rows"] for found in shares),
    }
    for part in parts:
        shutil.rmtree(part.folder, ignore_errors=True)
    partners, similarities, *_ = zip(*shares, strict=True)
    return Partners(np.concatenate(partners), np.concatenate(similarities), about)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _difference(there: dict[str, Any], settings: dict[str, Any]) -> str:
    there = {"csls": 0, **there, "encoder": there.get("fingerprint")}
    differ = [
        f"{key} {there.get(key)} (now {value})"
        for key, value in settings.items()
        if there.get(key) != value
    ]
    return ", ".join(differ) or "of an older version"
