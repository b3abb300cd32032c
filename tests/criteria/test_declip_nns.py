from collections import deque

import pytest
import torch

from criteria import DeCLIPNNS
from tests.criteria.caption_losses import batch, clip, views

WORDS = ("sun", "moon", "star", "planet", "comet", "dust", "sky", "cloud", "rain", "snow", "ice")


def declip(dtype=torch.float64, **chosen):
    def make(name, embed_dim):
        assert (name, embed_dim) == ("clip", 3)
        return clip(dtype=dtype)

    return DeCLIPNNS(make, 3, **{"queue_size": 10, **chosen}).to(dtype)


def captions_of(i):
    return tuple(WORDS[(5 * i + j) % len(WORDS)] for j in range(4))


def step(criterion, i, captions=None, dtype=torch.float64):
    return criterion.compute(views(seed=i, n=4, dtype=dtype), batch(captions or captions_of(i)))


@pytest.mark.parametrize("weight", [{}, {"weight": 0.0}, {"weight": 0.7}, {"weight": 1.0}])
@pytest.mark.parametrize("size", [1, 3, 4, 10, 100])
def test_a_queue_and_its_nearest_text_written_as_loops(weight, size):
    """The weights are 0.8 and 0.2 by default; a batch finds texts of earlier ones alone."""
    criterion, alone = declip(queue_size=size, **weight), clip()
    w = weight.get("weight", 0.2)
    memory = deque(maxlen=size)
    for i in range(6):
        given = views(seed=i, n=4)
        images, texts = alone.project(given, batch(captions_of(i)))
        expected = alone.contrast(images, texts)
        if memory:
            nearest = [max(memory, key=lambda q, t=t: float(q @ t)) for t in texts.detach()]
            of_neighbours = alone.contrast(images, torch.stack(nearest).detach())
            expected = (1 - w) * expected + w * of_neighbours
        loss = criterion.compute(given, batch(captions_of(i)))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12), i
        memory.extend(texts.detach())
        assert torch.equal(criterion.queue.rows[-len(memory) :], torch.stack(tuple(memory)))


def test_neighbours_move_the_images_and_not_the_texts():
    """Also where the backward pass comes after a write over all that it read."""
    criterion, given = declip(weight=1.0, queue_size=4), views(n=4)
    step(criterion, 1)
    loss = criterion.compute(given, batch(captions_of(2)))
    step(criterion, 3)
    loss.backward()
    assert given[0].features.grad.any()
    assert criterion.clip.log_scale.grad.any()
    assert not criterion.clip.reader.projection.weight.grad.any()
    assert not criterion.queue.rows.requires_grad


def test_an_opposite_text_is_nearer_than_an_empty_place():
    criterion, given = declip(weight=1.0), views(n=2)
    images, texts = criterion.clip.project(given, batch(("fox", "fox")))
    criterion.queue.push(-texts[:1])
    expected = criterion.clip.contrast(images, -texts)
    loss = criterion.compute(given, batch(("fox", "fox")))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_evaluation_leaves_the_queue():
    criterion = declip()
    step(criterion, 0)
    rows, filled = criterion.queue.rows.clone(), criterion.queue.filled
    step(criterion.eval(), 1)
    assert torch.equal(criterion.queue.rows, rows)
    assert criterion.queue.filled == filled


def test_captions_without_an_embedding_are_not_stored():
    criterion = declip()
    step(criterion, 0, ("", "fox", "", "sea"))
    assert criterion.queue.filled == 2
    expected = torch.tensor([0.0] * 8 + [1.0] * 2).double()
    torch.testing.assert_close(criterion.queue.rows.norm(dim=1), expected)


def test_half_precision_compares_and_stores_in_float32():
    criterion = declip(torch.float32)
    for i in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = step(criterion, i, dtype=torch.bfloat16)
    loss.backward()
    assert loss.dtype == criterion.queue.rows.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in criterion.parameters())


def test_the_temperature_is_limited_as_clips():
    criterion = declip()
    with torch.no_grad():
        criterion.clip.log_scale.fill_(9.0)
    criterion.after_step(torch.nn.Identity())
    assert criterion.clip.log_scale.exp().item() == pytest.approx(100)
