"""The flags of ``python -m architectures.export``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utilities import faults
from utilities.run_files import checkpoint_file

FORMATS = ("onnx", "safetensors", "torch_export")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m architectures.export",
        description="Write a trained embedder for use elsewhere, once what is written agrees with "
        "it on pictures.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN",
        help="run folder, whose last.pt is read, or a checkpoint file",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=(*FORMATS, "all"), default="all",
        help="onnx: images to embeddings, for any batch size; torch_export: the same for "
        "torch.export.load; safetensors: backbone for timm, linear layer, and a program that "
        "embeds pictures with them (default: all)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--pictures", type=Path, nargs="+", default=(), metavar="PATH",
        help="files or folders to compare with (default: pictures of the run's dataset)",
    )  # fmt: skip
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for errors to come, and the flags; exit with an error if one is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder; got the file {args.out}")
    with faults.reported(parser.error):
        checkpoint_file(args.checkpoint)
    return parser, args
