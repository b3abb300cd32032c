"""Builds the openclipart dataset: ``python -m datasets.openclipart``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from datasets.openclipart import PACKAGES, prepare
from utilities import faults, startup
from utilities.files import cache_folder


def main(argv: Sequence[str] | None = None) -> None:
    """Build the dataset and print its folder."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.openclipart", description="Build the openclipart dataset."
    )
    parser.add_argument(
        "--source_path",
        type=Path,
        default=cache_folder() / "datasets",
        help="folder of all datasets (default: %(default)s)",
    )
    parser.add_argument(
        "--packages", nargs="+", choices=PACKAGES, help=f"(default: {', '.join(PACKAGES)})"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with faults.reported(parser.error):
        print(prepare(args.source_path.expanduser(), packages=args.packages))


if __name__ == "__main__":
    startup.begin()
    main()
