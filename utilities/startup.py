"""The first step of every program, before it imports anything large."""

import gc

from utilities import console

ALLOCATIONS = 20_000  # between two looks for garbage; Python's default is 700


def begin() -> None:
    """Make printing never fail, and look for garbage seldom.

    Imports leave none: those of main.py take 2.8 s instead of 3.3. A training step leaves a few
    dozen objects and no tensor among them.
    """
    console.outlast()
    gc.set_threshold(ALLOCATIONS)
