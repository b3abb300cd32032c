"""Search a folder of images with a trained embedder.

    python -m evaluation.retrieve index FOLDER --checkpoint RUN --index DIR
    python -m evaluation.retrieve query IMAGE ... --index DIR --k 10 --save found.png
    python -m evaluation.retrieve query --words "red panda" --index DIR

Words are read by the map beside the checkpoint, or by the text side that a run trained on captions:
index for that with ``--space words``. Indexing a folder again embeds only new and changed images.
``evaluation.image_index`` describes the files in DIR.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import criteria
import language
import parameters
from architectures.load import Trained, load_embedder
from evaluation import word_map_file
from evaluation.contact_sheet import contact_sheet
from evaluation.image_index import SPACES, ImageIndex, check_provenance, printable, read_index
from evaluation.indexing import SearchModel, build_index, embed_queries, search
from evaluation.preprocessing import preprocessing
from evaluation.queries import queries_of, vectors_of
from evaluation.tower_search import AmongTexts
from language import readability
from utilities import checkpoint, console, faults, log
from utilities import device as devices
from utilities.files import special_kind
from utilities.run_files import checkpoint_file

LOG = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.retrieve", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)

    index = commands.add_parser("index", help="embed a folder of images, or what changed in it")
    index.add_argument("folder", type=Path, metavar="FOLDER", help="searched recursively")
    index.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN",
        help="a run folder, whose last.pt is used, or a checkpoint file",
    )  # fmt: skip
    index.add_argument(
        "--space", choices=SPACES, default="embeds",
        help="; ".join(f"{name}: {what}" for name, what in SPACES.items()) + " (default: embeds)",
    )  # fmt: skip
    index.add_argument("--bs", type=int, default=112, help="images at a time (default: 112)")
    index.add_argument(
        "--kernels",
        type=int,
        default=6,
        help="loading processes, at most one per core (default: 6)",
    )

    query = commands.add_parser("query", help="find the images most similar to others or to words")
    query.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help="each is a query")
    query.add_argument(
        "--words", action="append", default=[], metavar="TEXT",
        help='what to look for, such as "red panda"; each is a query. With IMAGEs, each IMAGE is '
        "mixed with each TEXT",
    )  # fmt: skip
    query.add_argument(
        "--words_weight", type=float, metavar="W",
        help="of a TEXT beside an IMAGE, in [0, 1]: the query is (1 - W) times the unit vector of "
        "the IMAGE plus W times that of the TEXT (default: 0.5)",
    )  # fmt: skip
    query.add_argument(
        "--map", type=Path, metavar="FILE",
        help="map from words to images (default: the one beside the checkpoint, such as "
        "last.words.safetensors, which evaluation.words makes)",
    )  # fmt: skip
    query.add_argument(
        "--language_model", metavar="NAME",
        help="where the text encoder of the map is now (default: where it was)",
    )  # fmt: skip
    query.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="(default: the one that made the index)"
    )
    query.add_argument("--k", type=int, default=10, help="neighbours of each query (default: 10)")
    query.add_argument("--save", type=Path, metavar="PNG", help="write a contact sheet")

    for command in (index, query):
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
        command.add_argument("--index", type=Path, required=True, metavar="DIR")
        command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; results go to stdout, everything else to stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag, low in (("bs", 1), ("k", 1), ("kernels", 0)):
        if getattr(args, flag, low) < low:
            parser.error(f"--{flag} must be at least {low}; got {getattr(args, flag)}")
    log.set_up()
    with faults.reported(parser.error, "lower --bs or --kernels"):
        device = devices.choose(args.device)
        (run_index if args.command == "index" else run_query)(args, device)


def load_model(run: Path, space: str = "embeds") -> SearchModel:
    """Load the embedder of a run folder or a checkpoint, as its run evaluated it.

    Raises:
        ValueError: the space is "words", and the run trained no text side.
    """
    trained = load_embedder(run)
    flags = trained.flags
    return SearchModel(
        trained.embedder if space == "embeds" else among_texts(trained),
        preprocessing(flags, trained.embedder.mean, trained.embedder.std),
        flags.get("precision", "fp32"),
        flags["arch"],
        trained.file.resolve(),
        trained.epoch,
        space,
    )


def among_texts(trained: Trained) -> AmongTexts:
    """Return an embedder into the space that a run on captions shares with its text side."""
    args = argparse.Namespace(**vars(parameters.build_parser().parse_args([])) | trained.flags)
    readers = language.caption_readers(args, (), torch.device("cpu"))
    criterion = criteria.load_text_side(args, trained, readers)
    if criterion is None:
        raise ValueError(
            f"--space words is of runs that train a text side, which --loss {args.loss} of "
            f"{trained.file} does not; leave it out"
        )
    return AmongTexts(trained.embedder, criterion)


def run_index(args: argparse.Namespace, device: torch.device) -> None:
    (provenance, embedded), changes = build_index(
        *(args.folder, load_model(args.checkpoint, args.space), args.index),
        bs=args.bs, workers=devices.at_most_the_cores(args.kernels), device=device,
    )  # fmt: skip
    count, dimensions = embedded.vectors.shape
    if args.json:
        content = {
            "index": str(args.index), "images": count, "embed_dim": dimensions,
            "bytes": embedded.vectors.nbytes, "digest": provenance.digest, **changes._asdict(),
            "unreadable": [str(provenance.folder / file.path) for file in embedded.unreadable],
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
    check_query(args)
    index = read_index(args.index)
    none = np.zeros((0, index.provenance.embed_dim), np.float32)
    among_words = index.provenance.space == "words"
    if among_words and (args.map or args.language_model):
        raise ValueError(
            f"the index {args.index} is of the space of its run's own words, which needs no --map "
            "and no --language_model; leave them out"
        )
    # Words come first: they are read in less time than an embedder is loaded, and may not need one.
    words = read_words(args, index, device) if args.words and not among_words else none
    images = none
    if args.images or among_words:
        model = load_model(args.checkpoint or index.provenance.checkpoint, index.provenance.space)
        check_provenance(index.provenance, model.provenance(index.provenance.folder), args.index)
        if args.images:
            images = embed_queries(args.images, model, device=device)
        if args.words and among_words:
            words = read_among_texts(args.words, model.embedder.criterion)
    queries = queries_of(args.images, args.words)
    weight = 0.5 if args.words_weight is None else args.words_weight
    found = search(vectors_of(queries, images, words, weight), index, k=args.k)
    if args.save:
        contact_sheet(queries, found, args.save)
        LOG.info("contact sheet: %s", args.save)
    if args.json:
        content = [
            {
                "query": query.image,
                "words": query.words,
                "neighbours": [hit._asdict() for hit in hits],
            }
            for query, hits in zip(queries, found, strict=True)
        ]
        print(json.dumps(content, indent=2, default=str))
        return
    for query, hits in zip(queries, found, strict=True):
        print(f"query: {query}\nrank  similarity  path")
        for hit in hits:
            print(f"{hit.rank:>4}  {hit.similarity:>10.4f}  {printable(hit.path)}")
        print()


def check_query(args: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for a query that cannot be answered."""
    if not args.images and not args.words:
        raise ValueError("give at least one IMAGE or --words to query with")
    if not all(text.strip() for text in args.words):
        raise ValueError("--words must not be blank; give what to look for")
    for flag in ("map", "language_model"):
        if getattr(args, flag) and not args.words:
            raise ValueError(f"--{flag} is read for --words alone; give some, or leave it out")
    if args.words_weight is not None:
        if not args.images or not args.words:
            raise ValueError(
                "--words_weight mixes --words with an IMAGE; give both, or leave it out"
            )
        if not 0 <= args.words_weight <= 1:
            raise ValueError(f"--words_weight must be in [0, 1]; got {args.words_weight:g}")
    if args.save and args.save.suffix.lower() != ".png":
        raise ValueError(f"--save must name a .png file; got {args.save}")
    absent = [printable(path) for path in args.images if not path.exists()]
    if absent:
        raise FileNotFoundError(f"there is no image {', '.join(absent)} to query with")
    for path in args.images:
        if kind := special_kind(path):
            raise ValueError(f"{printable(path)} is a {kind}; give an image to query with")


def read_words(
    args: argparse.Namespace, index: ImageIndex, device: torch.device
) -> NDArray[np.float32]:
    """Return (W, D) unit rows: the queries of an index that ``--words`` make."""
    file = args.map
    if not file:
        made_by = checkpoint_file(args.checkpoint or index.provenance.checkpoint)
        file = word_map_file.map_file(made_by)
        if not file.is_file():
            content = checkpoint.load(made_by)
            why = word_map_file.why_none(made_by, content.get("data"))
            if "captions" in criteria.CRITERIA[content["flags"].get("loss", "margin")].needs:
                why = f"{made_by} has a text side of its own; index the folder with --space words"
            raise FileNotFoundError(f"--words: {why}")
    stored = word_map_file.read(file)
    stored.check_embedder(
        *(index.provenance.digest, file, f"those that made the index {args.index}"),
        "index the folder again into another index, or give --map a map that was fitted to them",
    )
    name = args.language_model or stored.language_model
    encoder = language.build_encoder(name, device)
    stored.check_encoder(encoder.encode([*stored.probes]), name, file)
    return stored.map(language.query_embeds(encoder, args.words)).numpy()


@torch.no_grad()
def read_among_texts(words: Sequence[str], criterion: Any) -> NDArray[np.float32]:
    """Return (W, D) unit rows of words by the text side that a run has trained."""
    embeds: Tensor = criterion.embed_texts(words)
    readability.check_queries(criterion.text_reader, words, embeds.cpu())
    return embeds.cpu().numpy()


if __name__ == "__main__":
    console.outlast()
    main()
