"""Indexes the image-caption pairs of a folder: ``python -m datasets.caption_index FOLDER``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from datasets.caption_index import build
from utilities import faults, startup


def main(argv: Sequence[str] | None = None) -> None:
    """Look at every file, and print the path of the index."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.caption_index",
        description="Index the image-caption pairs of a folder, looking at every file.",
    )
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with faults.reported(parser.error):
        print(build(args.folder.expanduser(), recheck=True))


if __name__ == "__main__":
    startup.begin()
    main()
