"""The flags of ``python -m evaluation.serve``."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from evaluation.index_files import refuse_missing
from utilities import faults
from utilities.run_files import checkpoint_file

PORT = 7860  # the usual one of Gradio


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.serve",
        description="Search a folder of images on a page in the browser. Only this machine can "
        "open it, and nothing is sent anywhere.",
    )
    parser.add_argument("--index", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="(default: the one that made the index)"
    )
    parser.add_argument(
        "--map", type=Path, metavar="FILE",
        help="map from words to images (default: the one beside the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--language_model", metavar="NAME",
        help="where the text encoder of the map is now (default: where it was)",
    )  # fmt: skip
    parser.add_argument("--k", type=int, default=24, help="images that are found (default: 24)")
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines open the page (default: 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--port",
        type=int,
        help=f"0 is any free one (default: {PORT}, or a free one if it is taken)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for errors to come, and the flags; exit with an error if one is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        parser.error("the search page needs Gradio; install it: bash requirements.sh --demo")
    if args.k < 1:
        parser.error(f"--k must be at least 1; got {args.k}")
    if args.port is not None and not 0 <= args.port < 1 << 16:
        parser.error(f"--port must be in [0, 65535]; got {args.port}")
    with faults.reported(parser.error):
        refuse_missing(args.index)
        if args.checkpoint:
            checkpoint_file(args.checkpoint)
    return parser, args
