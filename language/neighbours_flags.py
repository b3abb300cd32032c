"""The flags of ``python -m language.neighbours``; defaults as in ``language.search.Options``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from language import SCOPES

LOOKS = 10  # visual neighbours of an image, which its partner is among or not


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m language.neighbours",
        description="Find the partners of images by their captions, and print what they are like.",
    )
    add = parser.add_argument
    add("--dataset", required=True, help="openclipart, or a folder of <source_path>")
    add("--source_path", type=Path, help="folder of the datasets (default: the user's cache)")
    add("--language_model", default="minilm", help="encoder of the captions (default: minilm)")
    add("--by", choices=("language", "visual"), default="language", help="captions or images")
    add("--checkpoint", metavar="RUN", help="with --by visual: a run, or a timm architecture")
    add("--k", type=int, default=1, help="partners of each image (default: 1)")
    add("--threshold", type=float, default=-1.0, help="least cosine of a partner")
    add("--scope", choices=SCOPES, default="none", help="only images of one are partners")
    add("--distinct", "--no_identical", action="store_true", help="no partner of the same caption")
    add(
        "--csls", type=int, default=0, metavar="M",
        help="rank by cosine less half the partner's mean cosine with its M nearest captions "
        "(Conneau et al., 2018); 0: by cosine",
    )  # fmt: skip
    add("--index", default="auto", help="auto (by the size of the set), flat or ivf")
    add("--recall", type=float, default=0.95, help="recall@1 of ivf (default: 0.95)")
    add("--out", type=Path, metavar="DIR", help="folder to write (default: in the user's cache)")
    add("--from_json", type=Path, metavar="FILE", help="import the released neighbours of a file")
    add(
        "--quality", metavar="RUN",
        help=f"a run, or a timm architecture: report how many partners are among the {LOOKS} "
        "nearest by its features",
    )  # fmt: skip
    add("--kernels", type=int, default=6, help="processes that load images (default: 6)")
    add("--bs", type=int, default=112, help="images at a time (default: 112)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)")
    add("--gpu", type=int, default=0, help="which GPU; torchrun gives each process its own")
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for errors to come, and the flags; exit with an error if one is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if (args.by == "visual") != (args.checkpoint is not None):
        parser.error("--by visual needs --checkpoint RUN or an architecture, and nothing else does")
    for flag, low in (("bs", 1), ("kernels", 0)):
        if getattr(args, flag) < low:
            parser.error(f"--{flag} must be >= {low}; got {getattr(args, flag)}")
    return parser, args
