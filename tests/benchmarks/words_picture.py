"""Draws docs/words.png: the drawings of this project's own that names find, by a trained run.

    python -m tests.benchmarks.words_picture Training_Results/emoji/RUN

The things of ``readme_picture``, each drawn by eight hands, are searched by their names, through
the run's map from words to images. Names of its training classes are left out. Of the others by
average precision, those at fixed percentiles are drawn, so that the picture shows what is usual as
well as what works.
"""

import argparse
import io
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import evaluation
import language
from architectures.load import load_embedder
from datasets import description
from datasets.folders import read_class_folders
from evaluation import word_map_file
from evaluation.extract import extract
from evaluation.pictures import RIGHT, named, squared, thumbnails
from evaluation.report_data import ReportData, build_report_data
from evaluation.report_words import NameSearch, names_at
from evaluation.word_search import by_words
from tests.benchmarks.readme_picture import draw_all
from utilities.plots import new_figure

METRICS = ["word_recall@1", "word_recall@10", "word_mAP", "named@1"]
PERCENTILES = (90, 70, 50, 30)
N_SHOWN = 8
TILE = 96  # px


def main(argv: Sequence[str] | None = None) -> None:
    """Search the drawings, draw the picture and print its caption."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, or a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("docs/words.png"), help="(%(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        draw_all(Path(folder) / "things")
        data, scores = search(args.run, Path(folder) / "things")
        searches = dict(zip(PERCENTILES, names_at(data, PERCENTILES, N_SHOWN), strict=True))
        picture(data, searches, args.out)
    shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items())
    print(f"{len(data.class_names)} names, {len(data.paths)} drawings: {shares}")
    print(f"saved to {args.out}")


def search(run: Path, folder: Path) -> tuple[ReportData, evaluation.Scores]:
    """Return the classes of a folder that the run was not trained on, and their scores by words."""
    trained = load_embedder(run)
    stored = word_map_file.read(word_map_file.map_file(trained.file))
    images = read_class_folders(folder)
    known = {name.casefold() for name in description.classes(trained.data or {}).get("train", ())}
    new = [c for c, name in enumerate(images.class_names) if name.casefold() not in known]
    images = images.of_classes(np.array(new), "things")
    transform = evaluation.preprocessing_of(trained.embedder, trained.flags).transform()
    features = extract(trained.embedder, images, transform, workers=0)
    encoder = language.build_encoder(stored.language_model, torch.device("cpu"))
    queries = stored.map(language.class_word_embeds(encoder, images.class_names, "{}"))
    scores = by_words(images, features.embeds, features.rows, [queries], METRICS)
    data = build_report_data(
        *(images, features.embeds, features.rows),
        word_queries=queries,
        word_gallery=features.embeds,
    )
    return data, scores


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
