"""Search a folder of images with a trained embedder.

    python -m evaluation.retrieve index FOLDER --checkpoint RUN --index DIR
    python -m evaluation.retrieve query IMAGE ... --index DIR --k 10 --save found.png

DIR holds ``index.json``, which names the images, their sizes and times of change, and what embedded
them, and beside it a FAISS file (``IndexFlatIP``) of their embeddings, unit rows in the same order.
Indexing again embeds new and changed images alone. ``index.json`` is replaced last and at once, so
DIR is at any moment one whole index; what an interrupted pass has embedded waits in ``part_*.pt``
for the next one. One process at a time may index into a DIR, any number may query it.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from architectures.load import Trained, load_embedder
from datasets.loading import Transform
from datasets.reading import read_image
from evaluation.preprocessing import Preprocessing, preprocessing
from utilities import checkpoint, log
from utilities import device as devices
from utilities.device import autocast
from utilities.files import atomic_path

LOG = logging.getLogger(__name__)

MANIFEST = "index.json"
FORMAT = 1  # of the manifest; raised whenever an older reader would misunderstand a newer one
PART_SECONDS = 30.0  # of embedding, the most that an interruption loses

TILE, GAP, LABEL = 160, 10, 34  # pixels of the contact sheet: an image, between two, its text
PER_LINE = 10  # neighbours in a line of the contact sheet

NO_WORDS = (
    "--words needs a run that embeds images and texts into one space, and no run here does: the "
    "language guidance matches how alike images are to how alike their words are, so words order "
    "the images but have no place of their own among them. Query with an image of what is meant; "
    "words could be searched for after a contrastive training on pairs of image and text (CLIP)"
)


class ImageFile(NamedTuple):
    """An image on disk as it was when it was looked at; another size or time is another image."""

    path: str  # relative to the indexed folder, with forward slashes
    size: int  # bytes
    mtime_ns: int


class Embedded(NamedTuple):
    """M images with their embeddings, and those that could not be read."""

    files: list[ImageFile]  # (M,)
    vectors: NDArray[np.float32]  # (M, D) unit rows
    unreadable: dict[ImageFile, str]  # why


@dataclass(frozen=True)
class Source:
    """What makes the embeddings of an index; indices of other sources cannot be compared.

    Attributes:
        digest: of the weights, the architecture and the preprocessing, thus the same for two
            checkpoints of one state.
    """

    folder: Path
    checkpoint: Path
    epoch: int
    digest: str
    embed_dim: int


class Changes(NamedTuple):
    """What indexing a folder again has found, in images."""

    new: int
    changed: int
    removed: int
    unchanged: int
    unreadable: int


class Hit(NamedTuple):
    """One neighbour of a query."""

    rank: int  # 1 is the nearest
    similarity: float  # cosine, in [-1, 1]
    path: Path


# --------------------------------------------------------------------------------------------------
# Index
# --------------------------------------------------------------------------------------------------
def build_index(
    folder: Path,
    trained: Trained,
    where: Path,
    *,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
) -> tuple[Source, Embedded, Changes]:
    """Bring the index in ``where`` to what ``folder`` holds; makes it where there is none.

    Args:
        folder: searched through to its end for what Pillow reads; hidden entries are passed over.
        trained: the embedder.
        bs: images at a time.
        workers: processes that load; 0 loads in this one.

    Raises:
        FileNotFoundError: the folder does not exist or holds no readable image.
        ValueError: ``where`` is the index of another embedder or folder, or is damaged; the
            embedder gives values that are not finite.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to index")
    folder, where = folder.resolve(), where.resolve()
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    source = Source(
        folder, trained.file.resolve(), trained.epoch, digest(trained, prepare),
        trained.embedder.embed_dim,
    )  # fmt: skip
    old = _empty(source)
    if (where / MANIFEST).is_file():
        made_by, old = read_index(where)
        refuse_others(made_by, source, where)

    files = image_files(folder, apart_from=where)
    known = [old, *_unfinished(where, source)]
    seen = {file for part in known for file in (*part.files, *part.unreadable)}
    fresh = [file for file in files if file not in seen]
    if len(known) > 1:
        n_waiting = sum(len(part.files) for part in known[1:])
        LOG.info("going on from the %d images of an interrupted pass", n_waiting)
    for number, part in enumerate(
        _in_parts(trained, prepare, folder, fresh, bs=bs, workers=workers, device=device),
        start=len(list(where.glob("part_*.pt"))),
    ):
        _save_part(where / f"part_{number:05d}.pt", source, part)
        known.append(part)

    embedded = _select(files, known, source)
    for file, why in embedded.unreadable.items():
        if file not in old.unreadable:
            LOG.warning("left out, cannot be read: %s (%s)", shown(folder / file.path), why)
    if not embedded.files:
        raise FileNotFoundError(
            f"{folder} holds no readable image ({len(embedded.unreadable)} that cannot be read); "
            "give a folder of images"
        )
    changes = _changes(old, embedded)
    if embedded.files != old.files or embedded.unreadable != old.unreadable:
        _write_index(where, source, embedded)
    for path in where.glob("part_*.pt"):
        path.unlink()
    return source, embedded, changes


def read_index(where: Path) -> tuple[Source, Embedded]:
    """The index in the folder ``where``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or a newer version wrote it.
    """
    manifest = where / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(
            f"--index {where} holds no {MANIFEST}; make an index first: "
            "python -m evaluation.retrieve index FOLDER --checkpoint RUN --index DIR"
        )
    remedy = f"delete {where} and index the folder again"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise ValueError(f"format {content['format']} is newer than this version's {FORMAT}")
        source = Source(
            Path(content["folder"]), Path(content["checkpoint"]), content["epoch"],
            content["digest"], content["embed_dim"],
        )  # fmt: skip
        files = [ImageFile(*row) for row in content["images"]]
        unreadable = {ImageFile(*row): why for *row, why in content["unreadable"]}
        index = faiss.read_index(str(where / content["vectors"]))
        shape = (index.ntotal, index.d)
        if shape != (len(files), source.embed_dim):
            raise ValueError(f"{len(files)} images, but embeddings of shape {shape}")
        # Without an array to fill, FAISS returns a tensor once its torch_utils are imported.
        vectors = np.empty(shape, np.float32)
        index.reconstruct_n(0, len(files), vectors)
    except (ValueError, LookupError, TypeError, RuntimeError) as error:  # RuntimeError: FAISS
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ValueError(f"--index {where} cannot be read ({reason[0]}); {remedy}") from error
    return source, Embedded(files, vectors, unreadable)


def refuse_others(made_by: Source, source: Source, where: Path) -> None:
    """Raise ``ValueError`` unless ``source`` made the index in ``where``."""
    if made_by.digest != source.digest:
        raise ValueError(
            f"--index {where} was made by {made_by.checkpoint} of epoch {made_by.epoch} (digest "
            f"{made_by.digest[:12]}); --checkpoint {source.checkpoint} of epoch {source.epoch} "
            f"embeds otherwise ({source.digest[:12]}). Give the --checkpoint that made it, or "
            f"index {made_by.folder} with this one into another --index"
        )
    if made_by.folder != source.folder:
        raise ValueError(
            f"--index {where} is of the folder {made_by.folder}, not of {source.folder}; give "
            "another --index"
        )


def digest(trained: Trained, prepare: Preprocessing) -> str:
    """SHA-256, in hex, of all that decides the embedding of an image."""
    found = hashlib.sha256(json.dumps([trained.flags["arch"], *prepare]).encode())
    for name, value in trained.embedder.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def image_files(folder: Path, apart_from: Path) -> list[ImageFile]:
    """The files under ``folder`` whose ending one of Pillow's readers claims, sorted by path.

    Args:
        apart_from: a folder that is not entered: the index may lie among the images.
    """
    endings = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = []
    for root, folders, names in os.walk(folder, onerror=_cannot_be_entered):
        here = Path(root)
        folders[:] = [n for n in folders if not n.startswith(".") and here / n != apart_from]
        for name in names:
            path = here / name
            if name.startswith(".") or path.suffix.lower() not in endings or not path.is_file():
                continue
            status = path.stat()
            relative = path.relative_to(folder).as_posix()
            files.append(ImageFile(relative, status.st_size, status.st_mtime_ns))
    return sorted(files)


def _cannot_be_entered(error: OSError) -> None:
    LOG.warning("passed over: %s", error)


def _in_parts(
    trained: Trained,
    prepare: Preprocessing,
    folder: Path,
    files: Sequence[ImageFile],
    *,
    bs: int,
    workers: int,
    device: torch.device | str,
) -> Iterator[Embedded]:
    """``files`` embedded in order, in pieces of ``PART_SECONDS``."""
    paths = [folder / file.path for file in files]
    part, since = _empty_lists(), time.perf_counter()
    with tqdm(total=len(files), desc="embedding", unit="img", leave=False) as bar:
        for rows, vectors, faults in embed_files(
            trained, prepare.transform(), paths, bs=bs, workers=workers, device=device
        ):
            part[0].extend(files[row] for row in rows)
            part[1].append(vectors)
            part[2].update({files[row]: why for row, why in faults.items()})
            bar.update(len(rows) + len(faults))
            if time.perf_counter() - since >= PART_SECONDS:
                yield Embedded(part[0], np.concatenate(part[1]), part[2])
                part, since = _empty_lists(), time.perf_counter()
    if part[1]:
        yield Embedded(part[0], np.concatenate(part[1]), part[2])


def _empty_lists() -> tuple[list[ImageFile], list[NDArray[np.float32]], dict[ImageFile, str]]:
    return [], [], {}


def _empty(source: Source) -> Embedded:
    return Embedded([], np.zeros((0, source.embed_dim), np.float32), {})


def _unfinished(where: Path, source: Source) -> Iterator[Embedded]:
    """What an interrupted pass of the same source has left; anything else is passed over."""
    for path in sorted(where.glob("part_*.pt")):
        try:
            part = checkpoint.load(path)
        except ValueError:
            continue
        if part["digest"] == source.digest and part["folder"] == str(source.folder):
            yield Embedded(
                [ImageFile(*row) for row in part["images"]],
                part["vectors"].numpy(),
                {ImageFile(*row): why for *row, why in part["unreadable"]},
            )


def _save_part(path: Path, source: Source, part: Embedded) -> None:
    content = {
        "digest": source.digest,
        "folder": str(source.folder),
        "images": [tuple(file) for file in part.files],
        "unreadable": [(*file, why) for file, why in part.unreadable.items()],
        "vectors": torch.from_numpy(part.vectors),
    }
    checkpoint.save(path, content)


def _select(files: Sequence[ImageFile], known: Sequence[Embedded], source: Source) -> Embedded:
    """Of all that is embedded, ``files`` in their order."""
    vectors = np.concatenate([part.vectors for part in known])
    rows = {file: row for row, file in enumerate(file for part in known for file in part.files)}
    faults = {file: why for part in known for file, why in part.unreadable.items()}
    readable = [file for file in files if file in rows]
    unreadable = {file: faults[file] for file in files if file in faults}
    return Embedded(readable, vectors[[rows[file] for file in readable]], unreadable)


def _write_index(where: Path, source: Source, embedded: Embedded) -> None:
    """The embeddings under a new name, then the manifest that names them, then the old ones go."""
    index = faiss.IndexFlatIP(source.embed_dim)
    index.add(np.ascontiguousarray(embedded.vectors))
    mark = hashlib.sha256(embedded.vectors.tobytes()).hexdigest()[:12]
    vectors = where / f"vectors_{mark}.faiss"
    with atomic_path(vectors) as temporary:
        faiss.write_index(index, str(temporary))
    content = {
        "format": FORMAT,
        "folder": str(source.folder),
        "checkpoint": str(source.checkpoint),
        "epoch": source.epoch,
        "digest": source.digest,
        "embed_dim": source.embed_dim,
        "vectors": vectors.name,
        "images": embedded.files,
        "unreadable": [(*file, why) for file, why in embedded.unreadable.items()],
    }
    with atomic_path(where / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    for path in where.glob("vectors_*.faiss"):
        if path != vectors:
            path.unlink()


def _changes(old: Embedded, now: Embedded) -> Changes:
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


# --------------------------------------------------------------------------------------------------
# Embed
# --------------------------------------------------------------------------------------------------
Loaded = tuple[list[int], Tensor, dict[int, str]]


class Files(Dataset):
    """Row of ``paths`` → the row and its input (3, S, S), or why the image cannot be read."""

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, self.transform(read_image(self.paths[row]))
        except OSError as error:
            return row, str(error.__cause__ or error)


def collate(items: Sequence[tuple[int, Tensor | str]]) -> Loaded:
    """The rows that could be read, their images (B, 3, H, W), and the others with the reason."""
    images = {row: item for row, item in items if isinstance(item, Tensor)}
    faults = {row: item for row, item in items if isinstance(item, str)}
    return list(images), torch.stack([*images.values()]) if images else torch.empty(0), faults


@torch.no_grad()
def embed_files(
    trained: Trained,
    transform: Transform,
    paths: Sequence[Path],
    *,
    bs: int,
    workers: int,
    device: torch.device | str,
) -> Iterator[tuple[list[int], NDArray[np.float32], dict[int, str]]]:
    """Embed image files in order, in the precision that the run was evaluated in.

    Yields:
        rows of ``paths``, their (B, D) float32 unit rows, and the rows that cannot be read with
        the reason.

    Raises:
        ValueError: an embedding is not finite.
    """
    device = torch.device(device)
    embedder = trained.embedder.to(device)
    batches = DataLoader(
        Files(paths, transform), bs, num_workers=min(workers, len(paths)), collate_fn=collate
    )
    for rows, images, faults in batches:
        vectors = torch.empty(0, embedder.embed_dim)
        if rows:
            images = devices.send(images, device).contiguous(memory_format=torch.channels_last)
            with autocast(device, trained.flags.get("precision", "fp32")):
                vectors = F.normalize(embedder(images).embeds.float(), dim=1).cpu()
        if not torch.isfinite(vectors).all():
            raise ValueError(
                f"checkpoint {trained.file} gives embeddings that are not finite; take an earlier "
                "one of its run"
            )
        yield rows, vectors.numpy(), faults


# --------------------------------------------------------------------------------------------------
# Query
# --------------------------------------------------------------------------------------------------
def query_index(
    images: Sequence[Path],
    where: Path,
    *,
    k: int = 10,
    run: Path | None = None,
    device: torch.device | str = "cpu",
) -> list[list[Hit]]:
    """The k images of an index that are most alike to each query, exact, by cosine similarity.

    A query that is itself in the index finds itself. Equals come in the order of their paths. There
    are fewer than k where the index has no more.

    Args:
        images: Q image files.
        run: the run that made the index; None for the checkpoint that the index names.

    Raises:
        FileNotFoundError: an image, the index or its checkpoint does not exist.
        ValueError: an image cannot be read, or the checkpoint is not the one that made the index.
    """
    absent = [shown(path) for path in images if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"there is no image {', '.join(absent)} to query with")
    made_by, embedded = read_index(where)
    trained = load_embedder(made_by.checkpoint if run is None else run)
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std)
    source = Source(
        made_by.folder, trained.file.resolve(), trained.epoch, digest(trained, prepare),
        trained.embedder.embed_dim,
    )  # fmt: skip
    refuse_others(made_by, source, where)
    batches = list(
        embed_files(trained, prepare.transform(), images, bs=112, workers=0, device=device)
    )
    faults = {row: why for _, _, found in batches for row, why in found.items()}
    if faults:
        reasons = [f"{shown(images[row])} ({why})" for row, why in faults.items()]
        raise ValueError(f"the query cannot be read: {', '.join(reasons)}; give another image")
    queries = np.concatenate([vectors for _, vectors, _ in batches])  # (Q, D)
    return [
        [
            Hit(rank, similarity, made_by.folder / embedded.files[row].path)
            for rank, (row, similarity) in enumerate(nearest(query, embedded.vectors, k), start=1)
        ]
        for query in queries
    ]


def nearest(
    query: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> list[tuple[int, float]]:
    """Row and cosine of the k rows (all, if there are fewer) most alike to ``query``, best first.

    Of equals the earlier row comes first and is kept, which a search by FAISS leaves open.

    Args:
        query: (D,) of length 1.
        vectors: (N, D) unit rows.
    """
    similarities = vectors @ query  # (N,)
    k = min(k, len(vectors))
    least = np.partition(similarities, -k)[-k]
    rows = np.flatnonzero(similarities >= least)  # k, and more where the last one has equals
    rows = rows[np.argsort(-similarities[rows], kind="stable")][:k]
    # Rounding may leave the range of a cosine.
    return [(int(row), min(max(float(similarities[row]), -1.0), 1.0)) for row in rows]


def table(hits: Sequence[Hit]) -> str:
    """Rank, similarity and path, a line each."""
    lines = [f"{hit.rank:>4}  {hit.similarity:>10.4f}  {shown(hit.path)}" for hit in hits]
    return "\n".join(["rank  similarity  path", *lines])


def contact_sheet(images: Sequence[Path], found: Sequence[Sequence[Hit]], path: Path) -> None:
    """Draw each query, framed, with its neighbours to the right, and write them to a PNG.

    An image that has vanished since it was indexed is an empty tile.
    """
    columns = min(PER_LINE, max(map(len, found)))
    lines = [max(1, -(-len(hits) // columns)) for hits in found]
    width, height = TILE + GAP, TILE + LABEL + GAP
    sheet = Image.new("RGB", (width * (columns + 1) + 2 * GAP, height * sum(lines) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    top = GAP
    for image, hits, n_lines in zip(images, found, lines, strict=True):
        _tile(sheet, draw, font, image, (GAP, top), "query")
        draw.rectangle(
            (GAP - 3, top - 3, GAP + TILE + 2, top + TILE + 2), outline="#1f77b4", width=3
        )
        for place, hit in enumerate(hits):
            line, column = divmod(place, columns)
            corner = (2 * GAP + width * (column + 1), top + height * line)
            _tile(sheet, draw, font, hit.path, corner, f"{hit.rank}.  {hit.similarity:.3f}")
        top += height * n_lines
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: Any,
    path: Path,
    corner: tuple[int, int],
    title: str,
) -> None:
    """An image, whole, in a square; under it a title and as much of its name as has room."""
    left, top = corner
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill="#eeeeee")
    try:
        image = read_image(path)
    except OSError:
        title += "  (gone)"
    else:
        image = ImageOps.contain(image, (TILE, TILE))
        sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
    name = shown(path.name)
    while font.getlength(name) > TILE:
        name = name[:-2] + "…"
    draw.text((left, top + TILE + 3), title, fill="black", font=font)
    draw.text((left, top + TILE + 17), name, fill="#666666", font=font)


def shown(path: Path | str) -> str:
    """A path as text that any console takes: bytes that are no UTF-8 become question marks."""
    return str(path).encode(errors="replace").decode()


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------
def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.retrieve", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)

    index = commands.add_parser("index", help="embed a folder of images, or what changed in it")
    index.add_argument("folder", type=Path, metavar="FOLDER", help="searched through to its end")
    index.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN",
        help="a run folder, whose last.pt is taken, or a checkpoint file",
    )  # fmt: skip
    index.add_argument("--bs", type=int, default=112, help="images at a time (default: 112)")
    index.add_argument(
        "--kernels",
        type=int,
        default=6,
        help="loading processes, at most one per core (default: 6)",
    )

    query = commands.add_parser("query", help="find the images that are most alike")
    query.add_argument("images", type=Path, nargs="*", metavar="IMAGE")
    query.add_argument("--words", nargs="+", help="text instead of images; no run here reads it")
    query.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="(default: the one that the index names)"
    )
    query.add_argument("--k", type=int, default=10, help="neighbours of each query (default: 10)")
    query.add_argument("--save", type=Path, metavar="PNG", help="write a contact sheet")

    for command in (index, query):
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
        command.add_argument("--index", type=Path, required=True, metavar="DIR")
        command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Index or query as the command line says; results go to stdout, all else to stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag, low in (("bs", 1), ("k", 1), ("kernels", 0)):
        if getattr(args, flag, low) < low:
            parser.error(f"--{flag} {getattr(args, flag)} is below {low}; give {low} or more")
    log.set_up()
    try:
        device = devices.choose(args.device)
        (run_index if args.command == "index" else run_query)(args, device)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


def run_index(args: argparse.Namespace, device: torch.device) -> None:
    source, embedded, changes = build_index(
        args.folder,
        load_embedder(args.checkpoint),
        args.index,
        bs=args.bs,
        workers=min(args.kernels, os.cpu_count() or 1),
        device=device,
    )
    count, dimensions = embedded.vectors.shape
    if args.json:
        content = {
            "index": str(args.index), "images": count, "embed_dim": dimensions,
            "bytes": embedded.vectors.nbytes, "digest": source.digest, **changes._asdict(),
            "unreadable": [str(source.folder / file.path) for file in embedded.unreadable],
        }  # fmt: skip
        print(json.dumps(content, indent=2))
        return
    print(
        f"{args.index}: {count:,} images x {dimensions} dimensions, "
        f"{embedded.vectors.nbytes / 1e6:,.3g} MB on disk and in the memory of a query\n"
        f"{changes.new:,} new, {changes.changed:,} changed, {changes.removed:,} removed, "
        f"{changes.unchanged:,} unchanged; {changes.unreadable:,} cannot be read"
    )


def run_query(args: argparse.Namespace, device: torch.device) -> None:
    if args.words:
        raise ValueError(NO_WORDS)
    if not args.images:
        raise ValueError("give at least one IMAGE to query with")
    if args.save and args.save.suffix.lower() != ".png":
        raise ValueError(f"--save {args.save} is no .png; contact sheets are PNG files")
    found = query_index(args.images, args.index, k=args.k, run=args.checkpoint, device=device)
    if args.save:
        contact_sheet(args.images, found, args.save)
        LOG.info("contact sheet: %s", args.save)
    if args.json:
        content = [
            {
                "query": str(image),
                "neighbours": [{**hit._asdict(), "path": str(hit.path)} for hit in hits],
            }
            for image, hits in zip(args.images, found, strict=True)
        ]
        print(json.dumps(content, indent=2))
        return
    for image, hits in zip(args.images, found, strict=True):
        print(f"query: {shown(image)}\n{table(hits)}\n")


if __name__ == "__main__":
    main()
