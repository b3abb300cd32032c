"""Finds images whose captions say nearly the same: the partners of language-guided sampling.

    torchrun --nproc_per_node 8 -m language.neighbours --dataset redcaps --source_path DATA

Writes a folder that numpy reads (``language.partner_folder``), and prints some of the partners.
"""

from language import neighbours_flags
from utilities import startup

if __name__ == "__main__":  # a wrong flag need not wait for torch
    startup.begin()
    neighbours_flags.parse()

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from language import encoders
from language.copies import READ_ROWS, distinct, hash_texts
from language.embedding_store import EmbeddingStore
from language.pair_quality import mutual, quality, reach
from language.pairing import ImageEmbedder, Rank, find, image_embedder, rows_of
from language.partner_folder import Partners, from_released_json, read, save, write
from language.search import Options
from language.text_encoder import TextEncoder
from utilities import device as devices
from utilities import faults, log
from utilities.checksums import digest, digest_of_file
from utilities.disk_cache import Entry
from utilities.files import cache_folder
from utilities.registry import from_flags

LOG = logging.getLogger(__name__)

EXAMPLES = 5  # pairs of captions that are printed
SHOWN = 60  # characters of each


def main(argv: Sequence[str] | None = None) -> None:
    """Find or import partners as the command line says, and print what they are like."""
    parser, args = neighbours_flags.parse(argv)
    log.set_up()
    with faults.reported(parser.error, "lower --bs or --kernels"):
        options = from_flags(Options, args, "")
        images = open_images(args.dataset, args.source_path)
        if args.from_json:
            found = import_released(args.from_json, images, args.out)
        else:
            device = devices.choose(args.device, args.gpu)
            embedder: TextEncoder | ImageEmbedder
            if args.by == "language":
                embedder = encoders.build(args.language_model, device, None)
            else:
                embedder = visual(args, images, device, args.checkpoint)
            rows = rows_of(images, options.scope)
            found = find(rows, embedder, options, folder=args.out, device=device)
        looks = None
        if args.quality:
            device = devices.choose(args.device, args.gpu)
            looking = visual(args, images, device, args.quality)
            looks = find(rows_of(images), looking, Options(k=neighbours_flags.LOOKS), device=device)
    if Rank.of_process().number == 0:
        print(summary(found, images.captions, looks))


def open_images(dataset: str, source_path: Path | None) -> Any:
    """Open the images of ``--dataset``: a ``CaptionSet``, or a training ``ImageSet``."""
    from datasets import caption_set, openclipart, splits
    from datasets.caption_index import is_caption_set

    source_path = (source_path or cache_folder() / "datasets").expanduser()
    root = source_path / dataset
    if dataset == "openclipart":
        root = openclipart.prepare(source_path)
    if is_caption_set(root):
        return caption_set.open_caption_set(root)
    return splits.read_splits(dataset, source_path).train


def import_released(file: Path, images: Any, folder: Path | None) -> Partners:
    """Read the neighbours that El Banani et al. released into a folder of partners."""
    if hasattr(images, "key"):
        keys = [images.key(row) for row in range(len(images))]
    else:
        keys = [path.as_posix() for path in images.paths]
    found = from_released_json(file, keys)
    LOG.info(
        "%s: %d pairs, %d of them of images that %s does not have",
        *(file, found.about["pairs"], found.about["pairs_of_unknown_images"], images.name),
    )
    rows = rows_of(images)
    mark = digest(["json", rows.content, digest_of_file(file)])[:16]
    captions = rows.captions
    about = {
        "by": "file", "options": mark, "name": rows.name, "content": rows.content,
        "searched_by": f"imported from {file.name}",
        "distinct_captions": int(distinct(hash_texts(captions)).max()) + 1 if captions else None,
    }  # fmt: skip
    found = found._replace(about={**about, **found.about})
    if folder is not None:
        return write(folder, found)
    return read(Entry("neighbours", rows.name, mark).get(lambda fresh: save(fresh, found)))


def visual(
    args: argparse.Namespace, images: Any, device: torch.device, checkpoint: str
) -> ImageEmbedder:
    """Return what embeds images: the backbone of a run, or a pretrained one."""
    # Pooled features, since without a run the embedding layer is random.
    from architectures.load import load_or_create
    from evaluation.extract import extract
    from evaluation.preprocessing import preprocessing_of

    embedder, name, flags = load_or_create(checkpoint)
    prepare = preprocessing_of(embedder, flags)
    features = partial(
        extract,
        embedder.to(device),
        transform=prepare.transform(),
        bs=args.bs,
        workers=devices.at_most_the_cores(args.kernels),
        device=device,
    )
    settings = (*prepare, embedder.pooling)
    return image_embedder(images, embedder.backbone, name, settings=settings, extract=features)


def summary(found: Partners, captions: Sequence[str], looks: Partners | None = None) -> str:
    """Describe the partners found, with some pairs of captions; ``looks`` are visual neighbours."""
    about = found.about
    head = f"{about['name']}: {about['rows']:,} images"
    if about.get("distinct_captions"):
        head += f", {about['distinct_captions']:,} distinct captions"
    head += f"; partners by {about.get('encoder', 'file')}, k {about['k']}"
    searched = f"searched by {about['searched_by']}"
    if "recall@1" in about:
        searched += (
            f", recall@1 {about['recall@1']:.3f}; {about['seconds_embedding']:g} s of embedding, "
            f"{about['seconds_searching']:g} s of searching"
        )
    alone = f"{about['without_partner']:,} have no partner"
    if "zero_rows" in about:
        alone += f" ({about['zero_rows']:,} cannot be embedded)"
    lines = [head, searched, f"{alone}; mean similarity of the nearest {about['mean_similarity']}"]
    lines += report(found, looks)
    paired = np.flatnonzero(found.partners[:, 0] >= 0)
    if len(captions):
        for row in np.random.default_rng(0).permutation(paired)[:EXAMPLES].tolist():
            texts = (_cut(captions[row]), _cut(captions[int(found.partners[row, 0])]))
            lines.append(f"  {found.similarities[row, 0]:.2f}  {texts[0]}  |  {texts[1]}")
    return "\n".join([*lines, str(found.folder)])


def report(found: Partners, looks: Partners | None = None) -> list[str]:
    """Return a line about all pairs, the mutual ones and, with ``looks``, random partners."""
    partners, similarities, about = found[:3]
    n, k = partners.shape
    seen = None if looks is None else looks.partners
    reached = reach(partners, similarities)
    measured = partial(quality, reached=reached, looks=seen)
    both = partial(mutual, reached=reached)
    lines = [
        f"     all: {measured(partners, similarities)}",
        f"  mutual: {measured(partners, similarities, usable=both)}",
    ]
    if looks is None or "embeddings" not in about:
        return lines
    rows = np.arange(n)[:, None]
    others = np.random.default_rng(0).integers(n - 1, size=(n, k))
    others += others >= rows
    kind = "text" if about["by"] == "language" else "img"
    vectors = EmbeddingStore(Path(about["embeddings"]), n, kind=kind)
    near = np.empty((n, k), np.float32)
    for start in range(0, n, READ_ROWS):
        block = slice(start, min(start + READ_ROWS, n))
        own = vectors[block].astype(np.float32)
        for column in range(k):
            other = vectors[others[block, column]].astype(np.float32)
            near[block, column] = (own * other).sum(axis=1)
    drawn, m = measured(others, near), looks.about["k"]
    lines.append(
        f"  random: mean similarity {drawn.similarity:.3f}; {drawn.visual:.2%} look alike, "
        f"{m / (n - 1):.2%} by chance ({m} of {n - 1:,})"
    )
    return lines


def _cut(text: str) -> str:
    shown = " ".join(text.encode(errors="replace").decode().split())
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…"


if __name__ == "__main__":
    main()
