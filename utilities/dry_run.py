"""A run in small, to try all of it in a minute: what ``--dry_run`` changes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 2  # of the optimizer
BATCHES = 2  # of each set that is evaluated
FEWEST_JUDGED = 96  # images that classifiers need for five classes of shots and queries
OF_A_CLASS = 12  # of them

# Follows the words of the command line: what begins late or seldom begins at once.
AT_ONCE = (
    *("--warmup", "0", "--language_delay", "0", "--xbm_start", "0"),
    *("--loss_s2sd_feat_distill_delay", "0"),
    *("--loss_swav_freeze_steps", "0", "--loss_swav_queue_start", "0"),
    *("--miner_parametric_every", "1", "--feedback_images", "100"),
)


def few_rows(sets: Sequence[NDArray[np.int64]], most: int, each: int) -> list[NDArray[np.int64]]:
    """Rows of sets that share their classes, so that a few images are enough for every score.

    Classes are taken in turn, those with most images in all sets first, and ``each`` images of a
    class in a turn: two let every query find another image of its class.

    Args:
        sets: of each set the (N,) labels, in [0, C).
        most: rows of each set, all of them where there are fewer.
        each: images.

    Returns:
        of each set its rows, ascending.
    """
    sizes = np.bincount(np.concatenate(sets))
    turn = np.empty_like(sizes)
    turn[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    chosen = []
    for labels in sets:
        by_class = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=len(sizes))
        place = np.empty_like(labels)  # of an image among those of its class
        place[by_class] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
        order = np.lexsort((turn[labels], place // each))
        chosen.append(np.sort(order[:most]))
    return chosen


class Some:
    """Some rows of a set of images, as a set (``datasets.image_set.Images``)."""

    def __init__(self, images: Any, rows: NDArray[np.int64]) -> None:
        self.images = images
        self.rows = rows.tolist()
        self.name = images.name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Any:
        return self.images.read(self.rows[row])

    def label(self, row: int) -> int:
        return self.images.label(self.rows[row])

    def caption(self, row: int) -> str | None:
        return self.images.caption(self.rows[row])
