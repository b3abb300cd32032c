"""Which images have captions that say nearly the same: the partners of language-guided sampling.

    python -m language.neighbours --dataset redcaps --source_path DATA --language_model mpnet
    torchrun --nproc_per_node 8 -m language.neighbours --dataset redcaps --source_path DATA
    python -m language.neighbours --dataset redcaps --by visual --checkpoint RUN
    python -m language.neighbours --dataset redcaps --from_json redcaps_all-mpnet-base-v2.json

Captions are embedded into a store on disk (``language.embedding_store``), searched
(``language.nearest``), and the result is a folder that needs no more than numpy to be read:

    partners.npy       (N, k) int64 rows, nearest first; -1 where there is none
    similarities.npy   (N, k) float32 cosines; -inf where there is none
    about.json         what was embedded by what, and what was asked and found

Source: El Banani, Desai and Johnson, Learning Visual Representations via Language-Guided Sampling,
CVPR 2023. Differs in that a row without embedding stays in the table, without a partner, and in the
order of ties (``language.nearest``). Visual neighbours are their ablation.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from language import encoders
from language.embedding_store import Embed, EmbeddingStore, caption_digest, hash_texts, wait_for
from language.nearest import INDICES, Nearest, distinct, nearest
from language.text_encoder import TextEncoder
from utilities import device as devices
from utilities import log
from utilities.files import atomic_folder, atomic_path, cache_folder
from utilities.run_folder import versions

LOG = logging.getLogger(__name__)

SCOPES = ("none", "subreddit", "year", "subreddit_year")
FORMAT = 1  # of about.json; raised whenever an older reader would misunderstand a newer one
PACKAGES = ("numpy", "torch", "faiss-cpu", "transformers", "timm")  # may move a neighbour
EXAMPLES = 5
CHUNK = 1 << 16  # characters of a JSON file read at a time


@dataclass(frozen=True)
class Options:
    """What is asked of the neighbours; another value of any is another folder.

    Raises:
        ValueError: a value out of range; names the flag.
    """

    k: int = 1  # partners of each row
    threshold: float = -1.0  # least cosine of a partner, in [-1, 1)
    scope: str = "none"  # only rows of one scope are partners
    no_identical: bool = False  # rows of one caption are never partners
    index: str = "auto"
    recall: float = 0.95  # @1, wanted where the search is approximate, in (0, 1)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"--k {self.k} is below 1; a row needs at least one partner")
        if not -1 <= self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold} is no cosine in [-1, 1); try 0.7")
        if self.index not in INDICES:
            raise ValueError(f"--index {self.index} is unknown; known: {', '.join(INDICES)}")
        if not 0 < self.recall < 1:
            raise ValueError(f"a recall of {self.recall} is not in (0, 1); use 0.95")


class Neighbours(NamedTuple):
    """The partners of N rows, memory-mapped."""

    partners: NDArray[np.int64]  # (N, k), nearest first; -1 where there is none
    similarities: NDArray[np.float32]  # (N, k) cosine; -inf where there is none
    about: dict[str, Any]
    folder: Path


class Rank(NamedTuple):
    """Which of how many processes this one is; they share nothing but the disk."""

    number: int
    world: int

    @classmethod
    def of_process(cls) -> "Rank":
        """As torchrun says in RANK and WORLD_SIZE; the only one where it says nothing."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


# --------------------------------------------------------------------------------------------------
# Make
# --------------------------------------------------------------------------------------------------
def build(
    name: str,
    captions: Sequence[str],
    encoder: TextEncoder,
    options: Options | None = None,
    *,
    scopes: NDArray[np.int64] | None = None,
    digest: str | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    rank: Rank | None = None,
) -> Neighbours:
    """The neighbours of N captions: read where they are there already, else made.

    Args:
        name: of the dataset; names the folder.
        captions: N; read in slices, so it may be lazy.
        encoder: without a cache of its own at scale: the store is one.
        scopes: (N,) int64; needed where ``options.scope`` is not "none".
        digest: changes with the rows and their captions; by default it is computed from all.
        folder: where to; by default ``neighbours/<name>-<digest of all that is asked>`` in the
            cache, where the embeddings are kept too, for other options.
        device: where neighbours are searched.
        rank: of this process among those that do this work together; by default torchrun's. All
            return when the work is done.

    Raises:
        ValueError: ``folder`` holds other neighbours; scopes are missing or not N.
    """
    known = hash_texts(captions) if digest is None else None
    return _build(
        name, "language", len(captions), encoder.name, encoder.fingerprint,
        digest if digest is not None else caption_digest(hash_texts(captions)),
        lambda store, rank: store.fill_with_texts(captions, encoder, rank=rank[0], world=rank[1]),
        lambda: hash_texts(captions) if known is None else known,
        options or Options(), scopes, folder, device, rank or Rank.of_process(),
    )  # fmt: skip


def build_visual(
    name: str,
    n: int,
    embed: Embed,
    options: Options | None = None,
    *,
    model: str,
    fingerprint: str,
    digest: str,
    captions: Sequence[str] = (),
    scopes: NDArray[np.int64] | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    rank: Rank | None = None,
) -> Neighbours:
    """The neighbours of N images by any embedding; arguments as of ``build``, but for

    Args:
        embed: first row and last + 1 -> (rows, D); a zero row where an image cannot be read.
        model: what embeds, for the reader.
        fingerprint: changes when an embedding may change.
        digest: changes with the images and their order.
        captions: N, needed for ``no_identical`` alone.
    """
    options = options or Options()
    if options.no_identical and len(captions) != n:
        raise ValueError(f"--no_identical needs a caption of each image; {name} has none")
    return _build(
        name, "visual", n, model, fingerprint, digest,
        lambda store, rank: store.fill(embed, rank=rank[0], world=rank[1]),
        (lambda: hash_texts(captions)) if len(captions) == n else None,
        options, scopes, folder, device, rank or Rank.of_process(),
    )  # fmt: skip


def of_images(
    images: Any,
    options: Options,
    *,
    by: str = "language",
    language_model: str = "minilm",
    checkpoint: str | None = None,
    folder: Path | None = None,
    bs: int = 112,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Neighbours:
    """The neighbours of a caption set, or of labelled images with captions, as in ``build``.

    Args:
        images: a ``CaptionSet`` or an ``ImageSet``.
        by: "language", the captions; or "visual", the images (an ablation of El Banani et al.).
        language_model: what reads the captions.
        checkpoint: with "visual", a run or an architecture of timm, whose features are compared.
        bs, workers: with "visual", images at a time and loading processes.

    Raises:
        ValueError: there are no captions, or no scopes, and they are needed; also as ``build``.
    """
    device = torch.device(device)
    captions = images.captions
    if by == "language" and not len(captions):
        raise ValueError(
            f"{images.name} has no captions, which neighbours are found by; give it a "
            "captions.json, put <id>.txt or <id>.json beside each image, or find neighbours by the "
            "images (visual)"
        )
    scopes = None
    if options.scope != "none":
        if not hasattr(images, "scopes"):
            raise ValueError(f"scope {options.scope}: {images.name} has classes and no scopes")
        scopes = images.scopes(options.scope)
    if by == "language":
        encoder = encoders.build(language_model, device, None)
        return build(
            images.name, captions, encoder, options, scopes=scopes, digest=identity(images),
            folder=folder, device=device,
        )  # fmt: skip
    assert checkpoint is not None
    embed, model, fingerprint = _image_embedder(checkpoint, images, bs, workers, device)
    return build_visual(
        images.name, len(images), embed, options, model=model, fingerprint=fingerprint,
        digest=identity(images), captions=captions, scopes=scopes, folder=folder, device=device,
    )  # fmt: skip


def _build(
    name: str,
    by: str,
    n: int,
    model: str,
    fingerprint: str,
    content: str,
    fill: Callable[[EmbeddingStore, Rank], None],
    hashes: Callable[[], NDArray[np.uint64]] | None,
    options: Options,
    scopes: NDArray[np.int64] | None,
    folder: Path | None,
    device: torch.device | str,
    rank: Rank,
) -> Neighbours:
    if n < 1:
        raise ValueError(f"{name} has no images, and so no neighbours")
    if options.scope == "none":
        scopes = None
    elif scopes is None or len(scopes) != n:
        raise ValueError(
            f"--scope {options.scope} needs the scope of each of the {n} rows of {name}, got "
            f"{'none' if scopes is None else len(scopes)}"
        )
    encoder = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    asked = {
        "by": by, "encoder": encoder, "content": content, "rows": n, **asdict(options),
        "scopes": None if scopes is None else hashlib.sha256(scopes.tobytes()).hexdigest()[:16],
    }  # fmt: skip
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    folder = folder or cache_folder() / "neighbours" / f"{name}-{mark}"
    if _is_there(folder):
        there = read(folder, n=n)
        if there.about["options"] != mark:
            raise ValueError(f"{folder} holds other neighbours: {_difference(there, asked)}; give "
                             "another folder, or delete this one")  # fmt: skip
        return there

    since = time.perf_counter()
    where = cache_folder() / "embeddings" / f"{name}-{_mark(by, encoder, content)}"
    kind = "text" if by == "language" else "img"
    store = EmbeddingStore(where, n, encoder=encoder, content=content, kind=kind)
    fill(store, rank)
    store.wait()
    embedded = time.perf_counter()

    first, last = rank.number * n // rank.world, (rank.number + 1) * n // rank.world
    codes = None
    if hashes is not None and (options.no_identical or rank.number == 0):
        codes = distinct(hashes())
    part = folder.with_name(f".{folder.name}.{mark}") / f"{rank.number:04d}-{rank.world:04d}.npz"
    if not part.is_file():
        found = nearest(
            store, options.k, index=options.index, scopes=scopes,
            texts=codes if options.no_identical else None, threshold=options.threshold,
            rows=(first, last), recall=options.recall, device=device,
        )  # fmt: skip
        if rank.world > 1:
            _write_part(part, found)
    if rank.world > 1:
        if rank.number:
            wait_for(lambda: not _is_there(folder), "folder of neighbours, by rank 0")
            return read(folder, n=n)
        files = [part.with_name(f"{r:04d}-{rank.world:04d}.npz") for r in range(rank.world)]
        wait_for(lambda: sum(not file.is_file() for file in files), "ranges of rows")
        found = _joined(files)
    about = {
        **asked, "options": mark, "name": name, "encoder": model, "fingerprint": encoder,
        "embeddings": str(where), "searched_by": found.method, "recall@1": round(found.recall, 4),
        "distinct_captions": None if codes is None else int(codes.max()) + 1,
        "distinct_vectors": found.n_distinct, "zero_rows": found.n_zero,
        "seconds_embedding": round(embedded - since, 1),
        "seconds_searching": round(time.perf_counter() - embedded, 1), "processes": rank.world,
    }  # fmt: skip
    made = write(folder, found.partners, found.similarities, about)
    if rank.world > 1:
        shutil.rmtree(part.parent, ignore_errors=True)
    return made


def _mark(*values: str) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _difference(there: Neighbours, asked: dict[str, Any]) -> str:
    about = {**there.about, "encoder": there.about.get("fingerprint")}
    differ = [f"{key} {about.get(key)} (now {asked[key]})" for key in asked
              if about.get(key) != asked[key]]  # fmt: skip
    return ", ".join(differ) or "of an older version"


def _write_part(file: Path, found: Nearest) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **found._asdict())


def _joined(files: Sequence[Path]) -> Nearest:
    """The ranges of all ranks as one; the recall is their mean, by rows."""
    parts = []
    for file in files:
        with np.load(file) as part:
            parts.append(Nearest(
                part["partners"], part["similarities"], str(part["method"]),
                float(part["recall"]), int(part["n_distinct"]), int(part["n_zero"]),
            ))  # fmt: skip
    return Nearest(
        np.concatenate([part.partners for part in parts]),
        np.concatenate([part.similarities for part in parts]),
        parts[0].method,
        float(np.average([p.recall for p in parts], weights=[len(p.partners) + 1 for p in parts])),
        max(part.n_distinct for part in parts),
        sum(part.n_zero for part in parts),
    )


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------
def write(
    folder: Path,
    partners: NDArray[np.int64],
    similarities: NDArray[np.float32],
    about: dict[str, Any],
) -> Neighbours:
    """Write a folder of neighbours, whole or not at all, and read it.

    ``about`` gains the format, k, the number of rows, of rows without a partner, the mean cosine of
    the nearest partners, and versions.
    """
    near = similarities[:, 0][partners[:, 0] >= 0]
    about = {
        "format": FORMAT, **about, "rows": len(partners), "k": partners.shape[1],
        "without_partner": int((partners[:, 0] < 0).sum()),
        "mean_similarity": round(float(near.mean()), 4) if len(near) else None,
        "versions": versions(PACKAGES),
    }  # fmt: skip
    with atomic_folder(folder) as temporary:
        np.save(temporary / "partners.npy", partners.astype(np.int64, copy=False))
        np.save(temporary / "similarities.npy", similarities.astype(np.float32, copy=False))
        (temporary / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return read(folder)


def read(folder: Path, *, n: int | None = None, digest: str | None = None) -> Neighbours:
    """The neighbours in a folder.

    Args:
        n: rows of the set that they are for.
        digest: of that set, as ``build`` was given it.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, or of another set; says which.
    """
    if not _is_there(folder):
        raise FileNotFoundError(
            f"{folder} holds no neighbours; make them: python -m language.neighbours --dataset "
            f"NAME --out {folder}"
        )
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if about["format"] > FORMAT:
            raise ValueError(f"format {about['format']} is newer than this version's {FORMAT}")
        partners = np.load(folder / "partners.npy", mmap_mode="r")
        similarities = np.load(folder / "similarities.npy", mmap_mode="r")
        shape = (about["rows"], about["k"])
        if partners.shape != shape or similarities.shape != shape:
            raise ValueError(f"{partners.shape} partners and {similarities.shape} similarities "
                             f"instead of {shape}")  # fmt: skip
    except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError) as error:
        raise ValueError(
            f"the neighbours in {folder} cannot be read ({error}); delete the folder"
        ) from error
    if n is not None and about["rows"] != n:
        raise ValueError(
            f"{folder} holds the neighbours of {about['rows']} rows of {about.get('name')}, but "
            f"there are {n} now; make them again into another folder"
        )
    if digest is not None and about.get("content") != digest:
        raise ValueError(
            f"{folder} holds the neighbours of other images or captions (digest "
            f"{about.get('content')}, now {digest}); make them again into another folder"
        )
    return Neighbours(partners, similarities, about, folder)


def _is_there(folder: Path) -> bool:
    return (folder / "about.json").is_file()


# --------------------------------------------------------------------------------------------------
# The released files
# --------------------------------------------------------------------------------------------------
class Imported(NamedTuple):
    """What a released file says of the rows of a set."""

    partners: NDArray[np.int64]  # (N, k)
    similarities: NDArray[np.float32]  # (N, k)
    n_pairs: int  # in the file
    n_unknown: int  # pairs of the file with an image that is not in the set


def from_released_json(file: Path, keys: Sequence[str]) -> Imported:
    """The neighbours that El Banani et al. released, for the rows of a set.

    Their file is one list of ``[[directory, id], [directory, id], similarity]``, a fourth entry
    (a ratio) is passed over. It is read in pieces. An image that the file gives several partners
    has several here, nearest first.

    Args:
        keys: (N,) the path of each image, ending in ``<directory>/<id>`` and any suffix; a
            directory may be a shard, ``<directory>.tar``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of that form, or none of its images is in the set.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--from_json {file} does not exist")
    row_of = {_short(key): row for row, key in enumerate(keys)}
    found: dict[int, list[tuple[float, int]]] = {}
    n_pairs = n_unknown = 0
    example = ""
    for number, entry in enumerate(_entries(file)):
        try:
            (directory, image), (other_directory, other), similarity = entry[:3]
            cosine = float(similarity)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"--from_json {file}: entry {number} is {str(entry)[:80]}, expected "
                "[[directory, id], [directory, id], similarity]"
            ) from error
        n_pairs += 1
        example = f"{directory}/{image}"
        row, partner = row_of.get(example), row_of.get(f"{other_directory}/{other}")
        if row is None or partner is None:
            n_unknown += 1
        elif row != partner:
            found.setdefault(row, []).append((cosine, partner))
    if not found:
        raise ValueError(
            f"--from_json {file}: none of its {n_pairs} pairs is of images of this set; its last "
            f"is of {example or 'nothing'}, and the set begins with {next(iter(row_of), 'nothing')}"
        )
    k = max(map(len, found.values()))
    partners = np.full((len(keys), k), -1, np.int64)
    similarities = np.full((len(keys), k), -np.inf, np.float32)
    for row, pairs in found.items():
        pairs.sort(key=lambda pair: -pair[0])
        similarities[row, : len(pairs)], partners[row, : len(pairs)] = zip(*pairs, strict=True)
    return Imported(partners, similarities, n_pairs, n_unknown)


def _short(key: str) -> str:
    """``<directory>/<id>`` of a path; as released, an id ends at its first dot."""
    directory, _, file = key.replace("\\", "/").rpartition("/")
    return f"{directory.rpartition('/')[2].removesuffix('.tar')}/{file.partition('.')[0]}"


def _entries(file: Path) -> Iterator[Any]:
    """The entries of a JSON list, decoded one by one: the whole list would take ten times as much
    memory as the file."""
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8") as stream:
        text = stream.read(CHUNK).lstrip()
        if not text.startswith("["):
            raise ValueError(f"--from_json {file} is no JSON list of pairs")
        text = text[1:]
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                entry, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                more = stream.read(CHUNK)
                if not more:
                    raise ValueError(f"--from_json {file} is cut short or no JSON") from error
                text += more
                continue
            yield entry
            text = text[end:]


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------
def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m language.neighbours", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--dataset", required=True, help="openclipart, or a folder of <source_path>")
    add("--source_path", type=Path, help="folder of the datasets (default: the user's cache)")
    add("--language_model", default="minilm", help="what reads the captions (default: minilm)")
    add("--by", choices=("language", "visual"), default="language")
    add("--checkpoint", metavar="RUN", help="with --by visual: a run, or an architecture of timm")
    add("--k", type=int, default=Options.k, help="partners of each image (default: 1)")
    add("--threshold", type=float, default=Options.threshold, help="least cosine of a partner")
    add("--scope", choices=SCOPES, default=Options.scope, help="only images of one are partners")
    add("--no_identical", action="store_true", help="images of one caption are never partners")
    add("--index", choices=INDICES, default=Options.index, help="(default: by the size of the set)")
    add("--recall", type=float, default=Options.recall, help="@1, of ivf and hnsw (default: 0.95)")
    add("--out", type=Path, metavar="DIR", help="where to (default: the user's cache)")
    add("--from_json", type=Path, metavar="FILE", help="take the released neighbours of this file")
    add("--kernels", type=int, default=6, help="loading processes, with --by visual (default: 6)")
    add("--bs", type=int, default=112, help="images at a time, with --by visual (default: 112)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)")
    add(
        "--gpu",
        type=int,
        default=0,
        help="which of several; torchrun gives each process its own",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make or import neighbours as the command line says, and say what they are like."""
    parser = build_parser()
    args = parser.parse_args(argv)
    log.set_up()
    if (args.by == "visual") != (args.checkpoint is not None):
        parser.error("--by visual needs --checkpoint RUN or an architecture, and nothing else does")
    for flag, low in (("bs", 1), ("kernels", 0)):
        if getattr(args, flag) < low:
            parser.error(f"--{flag} {getattr(args, flag)} is below {low}; give {low} or more")
    rank = Rank.of_process()
    try:
        options = Options(
            args.k, args.threshold, args.scope, args.no_identical, args.index, args.recall
        )
        images, captions = _open(args)
        if args.from_json:
            made = _import(args, images, captions)
        else:
            made = of_images(
                images,
                options,
                by=args.by,
                language_model=args.language_model,
                checkpoint=args.checkpoint,
                folder=args.out,
                bs=args.bs,
                workers=min(args.kernels, os.cpu_count() or 1),
                device=devices.choose(args.device, args.gpu),
            )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    if rank.number == 0:
        print(summary(made, captions))


def _open(args: argparse.Namespace) -> tuple[Any, Sequence[str]]:
    """The images of ``--dataset`` and their captions."""
    from datasets import caption_set, openclipart, splits
    from datasets.caption_index import is_caption_set

    source_path = (args.source_path or cache_folder() / "datasets").expanduser()
    root = source_path / args.dataset
    if args.dataset == "openclipart":
        root = openclipart.prepare(source_path)
    if is_caption_set(root):
        pairs = caption_set.open_caption_set(root)
        return pairs, pairs.captions
    images, _ = splits.read(args.dataset, source_path)
    return images, images.captions


def identity(images: Any) -> str:
    """Changes with the images, their order and their captions."""
    if hasattr(images, "fingerprint"):
        return images.fingerprint()
    both = hash_texts([*map(str, images.paths), *images.captions])
    return caption_digest(both)


def _import(args: argparse.Namespace, images: Any, captions: Sequence[str]) -> Neighbours:
    keys = (
        [images.key(row) for row in range(len(images))]
        if hasattr(images, "key")
        else [path.as_posix() for path in images.paths]
    )
    found = from_released_json(args.from_json, keys)
    LOG.info(
        "%s: %d pairs, %d of them of images that %s does not have",
        *(args.from_json, found.n_pairs, found.n_unknown, images.name),
    )
    content = identity(images)
    mark = _mark("json", content, hashlib.sha256(args.from_json.read_bytes()).hexdigest())
    folder = args.out or cache_folder() / "neighbours" / f"{images.name}-{mark}"
    about = {
        "by": "file", "options": mark, "name": images.name, "content": content,
        "searched_by": f"imported from {args.from_json.name}",
        "distinct_captions": int(distinct(hash_texts(captions)).max()) + 1 if captions else None,
        "pairs_of_unknown_images": found.n_unknown,
    }  # fmt: skip
    return write(folder, found.partners, found.similarities, about)


def _image_embedder(
    checkpoint: str, images: Any, bs: int, workers: int, device: torch.device
) -> tuple[Embed, str, str]:
    """Rows to pooled features (rows, F), what gives them, and its fingerprint.

    Pooled features, before the embedding layer: both halves train them, and of an architecture
    without a run that layer is random.
    """
    import architectures
    from architectures.load import load_embedder
    from evaluation.extract import extract
    from evaluation.preprocessing import Preprocessing, preprocessing

    if Path(checkpoint).exists():
        trained = load_embedder(Path(checkpoint))
        embedder, model = trained.embedder, f"{trained.file}, epoch {trained.epoch}"
        prepare = preprocessing(trained.flags, embedder.mean, embedder.std)
    else:
        embedder, model = architectures.create(checkpoint), checkpoint
        prepare = Preprocessing(
            embedder.image_size, embedder.crop_ratio, embedder.mean, embedder.std
        )
    weights = hashlib.sha256(repr(tuple(prepare)).encode())
    for name, value in embedder.backbone.state_dict().items():
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(value.cpu().contiguous().numpy().tobytes())
    embedder = embedder.to(device).eval()
    transform = prepare.transform()

    def embed(start: int, stop: int) -> NDArray[np.float32]:
        found = extract(
            embedder, _Span(images, start, stop), transform, bs=bs, workers=workers, device=device
        )
        rows = np.zeros((stop - start, found.features.shape[1]), np.float32)
        rows[found.rows.numpy()] = found.features.numpy()  # an unreadable image stays zero
        return rows

    return embed, model, weights.hexdigest()


class _Span:
    """The images ``start`` to ``stop`` of a set."""

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


def summary(made: Neighbours, captions: Sequence[str]) -> str:
    """What was found, for the reader, with some pairs of captions."""
    about = made.about
    seconds = [about.get("seconds_embedding"), about.get("seconds_searching")]
    lines = [
        f"{about['name']}: {about['rows']:,} images"
        + (f", {about['distinct_captions']:,} distinct captions" if about.get("distinct_captions")
           else "") + f"; partners by {about.get('encoder', 'file')}, k {about['k']}",
        f"searched by {about['searched_by']}"
        + (f", recall@1 {about['recall@1']:.3f}" if "recall@1" in about else "")
        + (f"; {seconds[0]:g} s of embedding, {seconds[1]:g} s of searching" if None not in seconds
           else ""),
        f"{about['without_partner']:,} have no partner"
        + (f" ({about['zero_rows']:,} cannot be embedded)" if "zero_rows" in about else "")
        + f"; mean similarity of the nearest {about['mean_similarity']}",
    ]  # fmt: skip
    paired = np.flatnonzero(made.partners[:, 0] >= 0)
    if len(captions):
        for row in np.random.default_rng(0).permutation(paired)[:EXAMPLES].tolist():
            partner = int(made.partners[row, 0])
            lines.append(
                f"  {made.similarities[row, 0]:.2f}  {_cut(captions[row])}  |  "
                f"{_cut(captions[partner])}"
            )
    return "\n".join([*lines, str(made.folder)])


def _cut(text: str, most: int = 60) -> str:
    shown = " ".join(text.encode(errors="replace").decode().split())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


if __name__ == "__main__":
    main()
