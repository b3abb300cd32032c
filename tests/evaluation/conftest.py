"""Images and embedders of few numbers, whose scores can be worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metrics
from datasets.image_set import ImageSet
from evaluation.report_data import ReportData
from utilities.structures import Embedding


def to_tensor(image):
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


class Colour(nn.Module):
    """Features are an image's mean colour, embeds are without red; notes how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images):
        layout = images.is_contiguous(memory_format=torch.channels_last)
        self.calls.append((len(images), self.training, torch.is_grad_enabled(), layout))
        colour = images.mean(dim=(2, 3))
        return Embedding(colour[:, 1:], colour, images)


@pytest.fixture
def colours(tmp_path):
    """A function of colours and labels: a set of one-coloured images with classes and groups."""

    def make(colours, labels, names=("dog", "wolf", "car"), groups=(), **fields):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        paths = tuple(folder / f"{row}.png" for row in range(len(colours)))
        for path, colour in zip(paths, colours, strict=True):
            Image.new("RGB", (6, 5), colour).save(path)
        return ImageSet("colours.test", paths, np.array(labels), names, groups, **fields)

    return make


def make_report_data(
    sizes=(5, 5, 5, 5, 1), *, folder=None, d=6, before=True, words=True, groups=True, **changes
):
    """Classes of the given sizes around centres of their own, in shuffled order.

    Args:
        folder: for images of noise; without it there are none.
        changes: fields of the data in place of those made here.
    """
    seed = changes.get("seed", 0)
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    n, n_classes = len(labels), len(sizes)
    noise = torch.randn(n, d, generator=rng)
    after = torch.randn(n_classes, d, generator=rng)[labels] + noise
    scores = metrics.per_query(["recall@1", "mAP@R"], metrics.Gallery(after, labels))
    paths = [Path(f"{row}.png") for row in range(n)]
    if folder is not None:
        folder.mkdir(exist_ok=True)
        paths = [folder / f'{row}"><script>alert(3)<script>.png' for row in range(n)]
        pixels = np.random.default_rng(0).integers(0, 255, (n, 30, 40, 3), dtype=np.uint8)
        for path, values in zip(paths, pixels, strict=True):
            Image.fromarray(values).save(path)
    fields = {
        "name": "made.test",
        "paths": paths,
        "labels": labels,
        "class_names": [f"class {label}" for label in range(n_classes)],
        "after": after,
        "recall": scores["recall@1"],
        "average_precision": scores["mAP@R"],
        "before": torch.randn(n, d + 1, generator=rng) if before else None,
        "class_groups": [f"group {c % 2}" for c in range(n_classes)] if groups else (),
        "class_words": torch.randn(n_classes, 3, generator=rng) if words else None,
    }
    return ReportData(**fields | changes)


def with_words(sizes=(4, 4, 4, 4), d=4, **fields):
    """The same, searched by words: a name points near the images of its class, more or less."""
    data = make_report_data(sizes, d=d, **fields)
    rng = torch.Generator().manual_seed(5)
    means = torch.stack([data.after[data.labels == label].mean(0) for label in range(len(sizes))])
    near = means + 0.7 * torch.randn(means.shape, generator=rng)
    return replace(data, word_queries=near, word_gallery=data.after)
