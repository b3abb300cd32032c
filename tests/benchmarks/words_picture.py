"""Draws docs/words.png: names of classes never trained on, and the images that each finds first.

    python -m tests.benchmarks.words_picture Training_Results/emoji/RUN

Of all test classes by the average precision of their names, those at fixed percentiles are drawn,
so that the picture shows what is usual as well as what works.
"""

import argparse
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

import datasets
import evaluation
import language
import parameters
from architectures.load import evaluation_flags, load_embedder
from evaluation.pictures import RIGHT, named, squared, thumbnails
from evaluation.report_data import ReportData
from evaluation.report_words import NameSearch, names_at
from evaluation.scores import number
from utilities.plots import new_figure

METRICS = ["word_recall@1", "word_recall@10", "word_mAP", "named@1"]
PERCENTILES = (99, 95, 90, 75, 50)
N_SHOWN = 8
TILE = 96  # px


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the run, draw the picture and print its scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, or a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("docs/words.png"), help="(%(default)s)")
    args = parser.parse_args(argv)
    data, scores = evaluate(args.run)
    searches = names_at(data, PERCENTILES, N_SHOWN)
    picture(data, dict(zip(PERCENTILES, searches, strict=True)), args.out)
    for search, percentile in zip(searches, PERCENTILES, strict=True):
        print(
            f"{percentile:g} %: {data.class_names[search.label]}, average precision "
            f"{100 * search.average_precision:.1f}, first right image at {search.first_hit}"
        )
    for name, value in scores.items():
        print(name, number(name, value), [number(name, end) for end in scores.intervals[name]])
    print(f"saved to {args.out}")


def evaluate(run: Path) -> tuple[ReportData, evaluation.Scores]:
    """Return the test classes of a run as its report shows them, and their scores by words."""
    trained = load_embedder(run)
    defaults = vars(parameters.build_parser().parse_args([]))
    asked = {"evaluation_metrics": METRICS, "no_train_metrics": True, "evaluations": ["retrieval"]}
    args = Namespace(**evaluation_flags(trained, defaults, asked))
    datasets.fill_by_recipe(args)
    data = datasets.build_as_trained(args, trained.flags, trained.data, trained.file)
    device = torch.device("cpu")
    preparation = evaluation.preprocessing_of(trained.embedder, vars(args))
    session = evaluation.build(
        *(args, trained.embedder, data, preparation, device, 0, language.names_reader(device))
    )
    scores = session.evaluate_if_due(0)
    return session.report_data(args.seed), scores


def picture(data: ReportData, searches: dict[float, NameSearch], path: Path) -> None:
    """Draw a name to a line, and on its right the images that it finds; hits in a solid frame."""
    from matplotlib.patches import Rectangle

    wanted = [row for search in searches.values() for row in search.found]
    images = dict(zip(wanted, thumbnails((data.paths[row] for row in wanted), TILE), strict=True))
    width, height = 1.06 * N_SHOWN + 2.7, 1.08 * len(searches) + 0.02
    figure = new_figure(0.8 * width, 0.8 * height)
    figure.set_facecolor("white")
    panel = figure.add_axes((0, 0, 1, 1))
    panel.axis("off")
    for line, (percentile, search) in enumerate(searches.items()):
        y = 1.08 * line + 0.05
        name = "\n".join(textwrap.wrap(named(data.class_names[search.label], 60), 21)[:2])
        panel.text(2.45, y + 0.42, name, fontsize=10.5, ha="right", va="center", parse_math=False)
        below = f"better than {percentile:g} % of names"
        panel.text(2.45, y + 0.9, below, fontsize=6.5, ha="right", va="center", color="0.35")
        for place, (row, right) in enumerate(zip(search.found, search.right, strict=True)):
            x = 2.65 + 1.06 * place
            if (image := images[row]) is not None:
                panel.imshow(squared(image), extent=(x, x + 1, y + 1, y), interpolation="lanczos")
            frame = Rectangle(
                (x, y), 1, 1, fill=False, edgecolor=RIGHT if right else "0.75",
                linewidth=2.6 if right else 0.8,
            )  # fmt: skip
            panel.add_patch(frame)
    panel.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
