"""The flags of ``python -m datasets.check``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

NEAR = 8  # bits


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check",
        description="Check a dataset: layout, names, counts, unreadable and skipped files, classes "
        "of one image, extreme shapes, images in both train and test, captions. The exit status is "
        "1 if there are problems.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="as for main.py's --dataset")
    parser.add_argument(
        "--source_path", type=Path, metavar="DIR", help="folder of all datasets, as for main.py"
    )
    parser.add_argument(
        "--near",
        type=int,
        default=NEAR,
        metavar="BITS",
        help="compare a train and a test image if their 64-bit hashes differ by at most this many "
        f"bits; -1 compares none, which is faster (default: {NEAR})",
    )
    parser.add_argument(
        "--language_model",
        metavar="NAME",
        help="also find class names or captions that this text encoder cannot read, such as minilm",
    )
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for errors to come, and the flags; exit with an error if one is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not -1 <= args.near <= 64:
        parser.error(f"--near must be in 0 to 64, or -1 to compare no images; got {args.near}")
    return parser, args
