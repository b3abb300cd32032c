"""Search a folder of images with a trained embedder.

    python -m evaluation.retrieve index FOLDER --checkpoint RUN --index DIR
    python -m evaluation.retrieve query IMAGE ... --index DIR --k 10 --save found.png

Indexing a folder again embeds only new and changed images. ``evaluation.image_index`` describes
the files in DIR.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from architectures.load import load_embedder
from evaluation.contact_sheet import contact_sheet
from evaluation.image_index import check_provenance, printable, read_index
from evaluation.indexing import SearchModel, build_index, search
from evaluation.preprocessing import preprocessing
from utilities import console, faults, log
from utilities import device as devices
from utilities.files import special_kind

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
    index.add_argument("--bs", type=int, default=112, help="images at a time (default: 112)")
    index.add_argument(
        "--kernels",
        type=int,
        default=6,
        help="loading processes, at most one per core (default: 6)",
    )

    query = commands.add_parser("query", help="find the most similar images")
    query.add_argument("images", type=Path, nargs="*", metavar="IMAGE")
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


def load_model(run: Path) -> SearchModel:
    """Load the embedder of a run folder or a checkpoint, as its run evaluated it."""
    trained = load_embedder(run)
    return SearchModel(
        trained.embedder,
        preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std),
        trained.flags.get("precision", "fp32"),
        trained.flags["arch"],
        trained.file.resolve(),
        trained.epoch,
    )


def run_index(args: argparse.Namespace, device: torch.device) -> None:
    (provenance, embedded), changes = build_index(
        *(args.folder, load_model(args.checkpoint), args.index),
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
    if not args.images:
        raise ValueError("give at least one IMAGE to query with")
    if args.save and args.save.suffix.lower() != ".png":
        raise ValueError(f"--save must name a .png file; got {args.save}")
    absent = [printable(path) for path in args.images if not path.exists()]
    if absent:
        raise FileNotFoundError(f"there is no image {', '.join(absent)} to query with")
    for path in args.images:
        if kind := special_kind(path):
            raise ValueError(f"{printable(path)} is a {kind}; give an image to query with")
    index = read_index(args.index)
    model = load_model(args.checkpoint or index.provenance.checkpoint)
    check_provenance(index.provenance, model.provenance(index.provenance.folder), args.index)
    found = search(args.images, index, model, k=args.k, device=device)
    if args.save:
        contact_sheet(args.images, found, args.save)
        LOG.info("contact sheet: %s", args.save)
    if args.json:
        content = [
            {"query": image, "neighbours": [hit._asdict() for hit in hits]}
            for image, hits in zip(args.images, found, strict=True)
        ]
        print(json.dumps(content, indent=2, default=str))
        return
    for image, hits in zip(args.images, found, strict=True):
        print(f"query: {printable(image)}\nrank  similarity  path")
        for hit in hits:
            print(f"{hit.rank:>4}  {hit.similarity:>10.4f}  {printable(hit.path)}")
        print()


if __name__ == "__main__":
    console.outlast()
    main()
