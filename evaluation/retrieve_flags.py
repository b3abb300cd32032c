"""The flags of ``python -m evaluation.retrieve``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evaluation.index_files import SPACES, refuse_missing
from utilities import faults
from utilities.console import printable
from utilities.files import special_kind
from utilities.run_files import checkpoint_file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.retrieve",
        description="Search a folder of images with a trained embedder.",
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
        "--checkpoint",
        type=Path,
        metavar="RUN",
        help="embed with this one, which must be the one that made the index (default: the copy in "
        "the index, or that one)",
    )
    query.add_argument("--k", type=int, default=10, help="neighbours of each query (default: 10)")
    query.add_argument(
        "--leave_out_query",
        action="store_true",
        help="do not find the IMAGE itself or copies of its file; k others are found",
    )
    query.add_argument("--save", type=Path, metavar="PNG", help="write a contact sheet")

    for command in (index, query):
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
        command.add_argument("--index", type=Path, required=True, metavar="DIR")
        command.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for errors to come, and the flags; exit with an error if one is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag, low in (("bs", 1), ("k", 1), ("kernels", 0)):
        if getattr(args, flag, low) < low:
            parser.error(f"--{flag} must be at least {low}; got {getattr(args, flag)}")
    with faults.reported(parser.error):
        if args.command == "query":
            check_query(args)
            refuse_missing(args.index)
        if args.checkpoint and (args.command == "index" or args.images or not args.map):
            checkpoint_file(args.checkpoint)
    return parser, args


def check_query(args: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for a query that cannot be answered."""
    if not args.images and not args.words:
        raise ValueError("give at least one IMAGE or --words to query with")
    if not all(text.strip() for text in args.words):
        raise ValueError("--words must not be blank; give what to look for")
    for flag in ("map", "language_model"):
        if getattr(args, flag) and not args.words:
            raise ValueError(f"--{flag} is read for --words alone; give some, or leave it out")
    if args.leave_out_query and not args.images:
        raise ValueError("--leave_out_query leaves out an IMAGE; give one, or leave the flag out")
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
