"""Images are embedded once, in order, and the embedder is left as it was."""

from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import datasets
from evaluation.extract import extract, predict
from tests.evaluation.conftest import Colour, to_tensor
from utilities.structures import Embedding

extraction = import_module("evaluation.extract")  # evaluation.extract is its function


@pytest.fixture
def image_set(colours):
    """Seven even images, of green 0, 10, ... 60."""
    return colours([(1, 10 * row, 2) for row in range(7)], [1, 0, 1, 0, 2, 2, 1])


GREENS = torch.arange(7) * 10 / 255


@pytest.mark.parametrize(("bs", "workers"), [(3, 0), (7, 0), (100, 2)])
def test_in_order_whatever_the_batches(image_set, bs, workers):
    found = extract(Colour(), image_set, to_tensor, bs=bs, workers=workers)
    assert found.rows.tolist() == list(range(7))
    assert found.labels.tolist() == image_set.labels.tolist()
    torch.testing.assert_close(found.features[:, 1], GREENS)
    torch.testing.assert_close(found.embeds[:, 0], GREENS)
    assert found.embeds.dtype == torch.float32 and not found.embeds.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_evaluates_and_restores_the_mode(image_set, training):
    embedder = Colour().train(training)
    extract(embedder, image_set, to_tensor, bs=4, workers=0)
    assert embedder.calls == [(4, False, False, True), (3, False, False, True)]
    assert embedder.training is training


def test_restores_the_mode_after_an_error(image_set):
    embedder = Colour().train()

    def broken(image):
        raise RuntimeError("no such transform")

    with pytest.raises(RuntimeError, match="no such transform"):
        extract(embedder, image_set, broken, bs=4, workers=0)
    assert embedder.training


def test_half_precision_gives_float32(image_set):
    class Linear(Colour):
        def forward(self, images):
            features = torch.nn.functional.linear(images.mean(dim=(2, 3)), torch.eye(3))
            self.calls.append(features.dtype)
            return Embedding(features, features, images)

    embedder = Linear()
    found = extract(embedder, image_set, to_tensor, bs=7, workers=0, precision="bf16")
    assert embedder.calls == [torch.bfloat16]
    assert found.embeds.dtype == found.features.dtype == torch.float32


def test_an_image_that_vanishes_is_left_out(image_set):
    image_set.paths[2].unlink()
    found = extract(Colour(), image_set, to_tensor, bs=4, workers=0)
    assert found.rows.tolist() == [0, 1, 3, 4, 5, 6]
    assert found.labels.tolist() == [1, 0, 0, 2, 2, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_which_no_image_can_be_read(image_set, workers):
    """Stops an extraction, and is skipped by one of what is readable."""
    for row in (2, 3):
        image_set.paths[row].write_bytes(b"")
    options = {"bs": 2, "workers": workers}
    with pytest.raises(OSError, match="none of the 2 images"):
        extract(Colour(), image_set, to_tensor, **options)
    batches = list(extraction.extract_readable(Colour(), image_set, to_tensor, **options))
    assert [rows.tolist() for rows, _ in batches] == [[0, 1], [4, 5], [6]]
    embeds = torch.cat([embeds for _, embeds in batches])
    torch.testing.assert_close(embeds[:, 0], GREENS[[0, 1, 4, 5, 6]])


def test_predictions_stand_in_their_rows(image_set):
    """A classifier's plain output, by the row of its image."""

    class Reds(nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3))

    image_set.paths[3].unlink()
    logits = predict(Reds(), image_set, to_tensor, bs=3, workers=0)
    assert logits.shape == (7, 3)
    torch.testing.assert_close(logits[:, 1], GREENS * (torch.arange(7) != 3))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_transform_of_evaluation_gives_what_it_gives_for_one_image(image_set, workers):
    """Bytes come from the workers, and are normalised a batch at a time, to the same bits."""

    class Input(Colour):
        def forward(self, images):
            self.calls.append(images.dtype)
            return Embedding(images.flatten(1), images.flatten(1), images)

    for row, path in enumerate(image_set.paths):
        pixels = np.random.default_rng(row).integers(0, 256, (50 + row, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    middle = datasets.eval_transform(32, 0.8)
    embedder = Input()
    found = extract(embedder, image_set, middle, bs=3, workers=workers)
    expected = torch.stack([middle(image_set.read(row)).flatten() for row in range(7)])
    assert torch.equal(found.embeds, expected) and set(embedder.calls) == {torch.float32}


@pytest.mark.parametrize(("bs", "started"), [(3, 3), (4, 2), (7, 0), (100, 0)])
def test_no_more_processes_are_started_than_there_are_batches(image_set, monkeypatch, bs, started):
    """One batch is loaded here: nothing could be done meanwhile."""
    asked = []

    def here(*args, workers, **options):
        asked.append(workers)
        return datasets.loader(*args, workers=0, **options)

    monkeypatch.setattr(extraction, "loader", here)
    extract(Colour(), image_set, to_tensor, bs=bs, workers=6)
    assert asked == [started]
