"""The flags of ``python -m evaluation.words``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utilities import faults
from utilities.run_files import checkpoint_file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.words",
        description="Fit the map that lets words find pictures, and keep it beside a checkpoint. A "
        "run whose metrics search by words has one already.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN",
        help="a run folder, whose last.pt is used, or a checkpoint file",
    )  # fmt: skip
    parser.add_argument(
        "--language_model",
        metavar="NAME",
        help="text encoder (default: the run's --evaluation_language_model)",
    )
    parser.add_argument("--source_path", help="folder of the datasets (default: the run's)")
    parser.add_argument(
        "--accept_changed_data",
        action="store_true",
        help="continue although images of the dataset have changed since the run",
    )
    parser.add_argument("--bs", type=int, help="images at a time (default: the run's)")
    parser.add_argument("--kernels", type=int, help="loading processes (default: 6)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for errors to come, and the flags; exit with an error if one is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag, low in (("bs", 1), ("kernels", 0)):
        value = getattr(args, flag)
        if value is not None and value < low:
            parser.error(f"--{flag} must be at least {low}; got {value}")
    with faults.reported(parser.error):
        checkpoint_file(args.checkpoint)
    return parser, args
