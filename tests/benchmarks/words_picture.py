"""Draws docs/words.png: names of classes never trained on, and the images that each finds first.

    python -m tests.benchmarks.words_picture Training_Results/emoji/RUN

Of all test classes by the average precision of their names, those at fixed percentiles are drawn,
so that the picture shows what is usual as well as what works.
"""

import argparse
import io
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import datasets
import evaluation
import language
import parameters
from architectures.load import evaluation_flags, load_embedder
from evaluation.pictures import RIGHT, named, squared, thumbnails
from evaluation.report_data import ReportData
from evaluation.report_words import NameSearch, names_at
from evaluation.scores import number
from evaluation.word_search import PERMUTED, WORDS
from main import set_up
from utilities.plots import new_figure

METRICS = ["word_recall@1", "word_recall@10", "word_mAP", "named@1"]
PERCENTILES = (99, 95, 90, 75, 50)
N_SHOWN = 8
TILE = 96  # px


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the run, draw the picture and print its caption."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, or a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("docs/words.png"), help="(%(default)s)")
    args = parser.parse_args(argv)
    data, scores = evaluate(args.run)
    searches = dict(zip(PERCENTILES, names_at(data, PERCENTILES, N_SHOWN), strict=True))
    picture(data, searches, args.out)
    print(f"{caption(scores)}\nsaved to {args.out}")


def evaluate(run: Path) -> tuple[ReportData, evaluation.Scores]:
    """Return the test classes of a run as its report shows them, and their scores by words."""
    trained = load_embedder(run)
    defaults = vars(parameters.build_parser().parse_args([]))
    asked = {"evaluation_metrics": METRICS, "no_train_metrics": True, "evaluations": ["retrieval"]}
    args = Namespace(**evaluation_flags(trained, defaults, asked))
    device, _ = set_up(args)
    data = datasets.build_as_trained(args, trained.flags, trained.data, trained.file)
    embedder = trained.embedder.to(device)
    preparation = evaluation.preprocessing_of(embedder, vars(args))
    words = language.NamesReader(device), lambda _: None, lambda: None
    session = evaluation.build(args, embedder, data, preparation, device, 0, *words)
    scores = session.evaluate_if_due(0)
    shown = session.report_data(args.seed)
    if session.chosen_by != "test" or shown.word_queries is None or shown.names_seen:
        raise ValueError(
            f"{run} has no test classes that unseen names search; give a run on a labelled "
            "dataset, without validation classes"
        )
    return shown, scores


def caption(scores: evaluation.Scores) -> str:
    """Return what the picture shows, and the scores over all names."""

    def share(metric: str) -> str:
        name = f"test/{WORDS}/{metric}"
        low, high = (number(name, end) for end in scores.intervals[name])
        by_chance = number(name, scores[f"test/{PERMUTED}/{metric}"])
        return f"{number(name, scores[name])} % [{low}, {high}] ({by_chance} % with permuted words)"

    at = ", ".join(f"{percentile}" for percentile in PERCENTILES)
    return (
        f"Names of classes never trained on, with the {N_SHOWN} drawings that each finds first, "
        f"hits framed green: names at the percentiles {at} of average precision. Of all names, "
        f"{share('word_recall@1')} find a right drawing first, {share('word_recall@10')} among "
        f"the first ten; the mean average precision is {share('word_mAP')}."
    )


def picture(data: ReportData, searches: Mapping[int, NameSearch], path: Path) -> None:
    """Draw each name in a line with the images that it finds."""
    from matplotlib.patches import Rectangle

    wanted = [row for search in searches.values() for row in search.found]
    images = dict(zip(wanted, thumbnails((data.paths[row] for row in wanted), TILE), strict=True))
    width, height = 2.65 + 1.06 * N_SHOWN + 0.04, 1.08 * len(searches) + 0.04
    figure = new_figure(0.8 * width, 0.8 * height, facecolor="white")
    panel = figure.add_axes((0, 0, 1, 1))
    panel.axis("off")
    for line, (percentile, search) in enumerate(searches.items()):
        y = 1.08 * line + 0.05
        name = "\n".join(textwrap.wrap(named(data.class_names[search.label], 60), 21)[:2])
        aligned: dict[str, Any] = {"ha": "right", "parse_math": False}
        panel.text(2.5, y + 0.52, name, fontsize=11, va="bottom", linespacing=1, **aligned)
        below = f"better than {percentile} % of names"
        panel.text(2.5, y + 0.62, below, fontsize=7, va="top", color="0.35", **aligned)
        for place, (row, right) in enumerate(zip(search.found, search.right, strict=True)):
            x = 2.65 + 1.06 * place
            if (image := images[row]) is not None:
                inside = (x + 0.05, x + 0.95, y + 0.95, y + 0.05)
                panel.imshow(squared(image), extent=inside, interpolation="lanczos")
            colour, thick = (RIGHT, 2.6) if right else ("0.8", 0.8)
            panel.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=thick))
    panel.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    image = Image.open(drawn).convert("RGB")
    image.quantize(palette=image.quantize(256)).save(
        path, optimize=True
    )  # dithered: a quarter of the bytes


if __name__ == "__main__":
    main()
