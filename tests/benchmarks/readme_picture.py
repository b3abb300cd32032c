"""Draws docs/retrieval.png: what training changes, on drawings of this project's own.

    python -m tests.benchmarks.readme_picture

Twenty-six things, each drawn by eight hands in their own colours, lines and slants. Half of the
things are trained on; drawings of the other half are retrieved before and after. Shown are the
three queries, of different things, whose first results improve most.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

import architectures
from architectures.load import load_embedder
from datasets.splits import read
from evaluation.extract import extract
from evaluation.preprocessing import preprocessing
from main import main as train

SIZE = 96  # px of a drawing
Shape = tuple[str, tuple[float, ...]]  # kind and coordinates in percent, first those behind

THINGS: dict[str, tuple[Shape, ...]] = {
    "apple": (("ellipse", (25, 35, 75, 85)), ("line", (50, 35, 55, 18)),
        ("ellipse", (55, 15, 75, 27))),
    "balloon": (("line", (50, 60, 45, 95)), ("ellipse", (28, 8, 72, 62))),
    "boat": (("polygon", (10, 65, 90, 65, 75, 88, 25, 88)), ("line", (50, 65, 50, 12)),
        ("polygon", (53, 15, 53, 58, 85, 58))),
    "bottle": (("box", (42, 8, 58, 40)), ("box", (33, 35, 67, 92)), ("box", (33, 52, 67, 75))),
    "butterfly": (("ellipse", (8, 15, 48, 52)), ("ellipse", (52, 15, 92, 52)),
        ("ellipse", (18, 50, 48, 85)), ("ellipse", (52, 50, 82, 85)), ("line", (50, 18, 50, 85))),
    "cactus": (("box", (42, 15, 58, 90)), ("box", (20, 40, 42, 50)), ("box", (20, 25, 29, 50)),
        ("box", (58, 52, 80, 62)), ("box", (71, 35, 80, 62))),
    "candle": (("box", (40, 40, 60, 92)), ("line", (50, 40, 50, 30)),
        ("ellipse", (43, 8, 57, 32))),
    "car": (("polygon", (28, 48, 38, 28, 68, 28, 78, 48)), ("box", (8, 48, 92, 70)),
        ("ellipse", (18, 60, 38, 80)), ("ellipse", (62, 60, 82, 80))),
    "cat": (("polygon", (22, 45, 26, 10, 48, 30)), ("polygon", (78, 45, 74, 10, 52, 30)),
        ("ellipse", (20, 25, 80, 85)), ("dot", (38, 50)), ("dot", (62, 50))),
    "cherry": (("line", (35, 65, 58, 15)), ("line", (70, 68, 58, 15)),
        ("ellipse", (20, 55, 50, 85)), ("ellipse", (55, 58, 85, 88))),
    "cloud": (("ellipse", (8, 45, 48, 80)), ("ellipse", (52, 45, 92, 80)),
        ("ellipse", (28, 25, 72, 72))),
    "crown": (("polygon", (12, 80, 12, 30, 32, 52, 50, 20, 68, 52, 88, 30, 88, 80)),
        ("box", (12, 70, 88, 82))),
    "fish": (("polygon", (70, 50, 94, 25, 94, 75)), ("ellipse", (8, 25, 78, 75)),
        ("dot", (25, 45))),
    "flower": (("line", (50, 50, 50, 95)), ("ellipse", (38, 8, 62, 35)),
        ("ellipse", (60, 25, 88, 48)), ("ellipse", (12, 25, 40, 48)),
        ("ellipse", (52, 45, 80, 68)), ("ellipse", (20, 45, 48, 68)),
        ("ellipse", (40, 30, 60, 50))),
    "glass": (("polygon", (22, 12, 78, 12, 50, 52)), ("line", (50, 52, 50, 88)),
        ("line", (30, 88, 70, 88))),
    "house": (("box", (22, 45, 78, 90)), ("polygon", (10, 48, 50, 12, 90, 48)),
        ("box", (43, 62, 58, 90))),
    "key": (("ellipse", (10, 32, 46, 68)), ("line", (46, 50, 92, 50)), ("line", (78, 50, 78, 66)),
        ("line", (90, 50, 90, 66))),
    "lamp": (("polygon", (35, 15, 65, 15, 80, 50, 20, 50)), ("line", (50, 50, 50, 85)),
        ("box", (32, 85, 68, 92))),
    "leaf": (("ellipse", (28, 8, 72, 78)), ("line", (50, 12, 50, 95))),
    "mug": (("ellipse", (58, 38, 90, 72)), ("box", (18, 25, 68, 85))),
    "mushroom": (("box", (40, 48, 60, 90)), ("chord", (15, 12, 85, 88))),
    "rocket": (("polygon", (35, 60, 18, 85, 38, 80)), ("polygon", (65, 60, 82, 85, 62, 80)),
        ("ellipse", (33, 8, 67, 92)), ("ellipse", (42, 32, 58, 48))),
    "snail": (("box", (15, 72, 90, 84)), ("ellipse", (30, 28, 80, 78)),
        ("ellipse", (43, 40, 68, 65)), ("line", (18, 72, 12, 48))),
    "sun": (("line", (50, 5, 50, 95)), ("line", (5, 50, 95, 50)), ("line", (18, 18, 82, 82)),
        ("line", (18, 82, 82, 18)), ("ellipse", (28, 28, 72, 72))),
    "tree": (("box", (43, 60, 57, 92)), ("polygon", (18, 68, 50, 30, 82, 68)),
        ("polygon", (25, 45, 50, 8, 75, 45))),
    "umbrella": (("line", (50, 40, 50, 88)), ("line", (50, 88, 38, 82)),
        ("chord", (10, 12, 90, 92))),
}  # fmt: skip
HANDS = (  # ink, fill, paper, width of lines in percent, slant in degrees
    ("#1d3557", "#a8dadc", "#f1faee", 2.5, 0),
    ("#6d2e46", "#d5b9b2", "#ece2d0", 5.0, -12),
    ("#f4f1de", "#e07a5f", "#3d405b", 2.0, 10),
    ("#22223b", "#ffffff", "#ffffff", 1.5, 4),
    ("#2d6a4f", "#95d5b2", "#d8f3dc", 4.0, -6),
    ("#ffffff", "#264653", "#2a9d8f", 3.0, 14),
    ("#000000", "#ffd166", "#ef476f", 6.0, -3),
    ("#5a189a", "#e0aaff", "#ffffff", 2.0, -15),
)
N_QUERIES = 3
N_SHOWN = 6


def draw(thing: str, hand: int) -> Image.Image:
    """Return the drawing of a thing by a hand."""
    ink, fill, paper, width, slant = HANDS[hand]
    big = 4 * SIZE
    rng = np.random.default_rng([sorted(THINGS).index(thing), hand])
    image = Image.new("RGB", (big, big), paper)
    pen = ImageDraw.Draw(image)
    stretch, shift = rng.uniform(0.75, 0.95, 2), rng.uniform(-4, 4, 2)
    line = round(width / 100 * big)
    for kind, coordinates in THINGS[thing]:
        points = (np.reshape(coordinates, (-1, 2)) - 50) * stretch + 50 + shift
        places = [tuple(point) for point in points / 100 * big]
        if kind == "line":
            pen.line(places, ink, line)
        elif kind == "polygon":
            pen.polygon(places, fill, ink, line)
        elif kind == "dot":
            x, y = places[0]
            pen.ellipse((x - line, y - line, x + line, y + line), ink)
        elif kind == "chord":
            pen.chord((*places[0], *places[1]), 180, 360, fill, ink, line)
        else:
            shape = pen.ellipse if kind == "ellipse" else pen.rectangle
            shape((*places[0], *places[1]), fill, ink, line)
    turned = image.rotate(slant, Image.Resampling.BICUBIC, fillcolor=paper)
    return turned.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def draw_all(folder: Path) -> None:
    """Draw every thing by every hand, as a dataset in ``folder``."""
    for thing in THINGS:
        (folder / "images" / thing).mkdir(parents=True)
        for hand in range(len(HANDS)):
            draw(thing, hand).save(folder / "images" / thing / f"{hand}.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, train, retrieve, and save the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("docs/retrieval.png"), help="(%(default)s)"
    )
    parser.add_argument("--n_epochs", default="12", help="(%(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw_all(root / "things")
        arch = "efficientnet_lite0_frozen_normalize"
        scores = train(
            [*("--dataset", "things", "--source_path", folder, "--save_path", f"{folder}/runs"),
             *("--arch", arch, "--image_size", "64", "--language_model", "minilm", "--bs", "26"),
             *("--loss", "multisimilarity", "--language_distill_w", "2", "--language_shift", "0"),
             *("--lr", "3e-4", "--n_epochs", args.n_epochs, "--evaluate_every", "100"),
             *("--evaluation_metrics", "e_recall@1", "mAP@R", "--kernels", "0", "--no_report")]
        )  # fmt: skip
        trained = load_embedder(root / "runs" / "things" / "default_s0")
        _, test = read("things", root)
        torch.manual_seed(0)
        found = {}
        untrained = architectures.create(arch, 128, image_size=64)
        for name, embedder in {"before": untrained, "after": trained.embedder}.items():
            transform = preprocessing(trained.flags, embedder.mean, embedder.std).transform()
            embeds = extract(embedder, test, transform, workers=0).embeds
            found[name] = (embeds @ embeds.T).fill_diagonal_(-1).argsort(dim=1, descending=True)
        shown = {name: f"{value:.3f}" for name, value in scores.items() if "test/" in name}
        print(f"{shown}, saved to {args.out}")
        picture(test.paths, test.labels, found).savefig(args.out, dpi=110)


def improved(labels: np.ndarray, found: dict[str, torch.Tensor]) -> list[int]:
    """Return the queries, of different things, with most hits gained among the first results."""
    hits = {
        name: (labels[ranking[:, :N_SHOWN]] == labels[:, None]).sum(axis=1)
        for name, ranking in found.items()
    }
    chosen: dict[int, int] = {}  # the first query of each thing
    for query in np.argsort(hits["before"] - hits["after"], kind="stable").tolist():
        chosen.setdefault(int(labels[query]), query)
    return list(chosen.values())[:N_QUERIES]


def picture(paths: Sequence[Path], labels: np.ndarray, found: dict[str, torch.Tensor]) -> Figure:
    """Return the queries on the left, and what was found before and after in two columns."""
    figure = Figure(figsize=(9, 2.1), facecolor="white")
    width = (1 + 2 * N_SHOWN + 1.4) * 1.06
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(-0.1, width), ylim=(1.06 * N_QUERIES + 0.1, -0.45))
    panel.axis("off")
    panel.set_aspect("equal")
    for x, title in ((0, "query"), (1.7, "untrained"), (1.7 + 1.06 * N_SHOWN + 0.5, "trained")):
        panel.text(x, -0.12, title, fontsize=9, color="0.25")
    for line, query in enumerate(improved(labels, found)):
        label = labels[query]
        _tile(panel, paths[query], 0, 1.06 * line, "0.6")
        for column, ranking in enumerate(found.values()):
            start = 1.7 + column * (1.06 * N_SHOWN + 0.5)
            for place, row in enumerate(ranking[query, :N_SHOWN].tolist()):
                colour = "#2e8b57" if labels[row] == label else "#d9a5a0"
                _tile(panel, paths[row], start + 1.06 * place, 1.06 * line, colour)
    return figure


def _tile(panel, path: Path, x: float, y: float, colour: str) -> None:
    panel.imshow(Image.open(path), extent=(x, x + 1, y + 1, y), aspect="equal")
    panel.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=2.2))


if __name__ == "__main__":
    main()
