import math

import pytest
import torch

from criteria import LanguageDistillation
from tests.criteria.scalars import cosine, kl, normal, shuffle, softmax, unit_rows
from tests.rounding import rounding

each_direction = pytest.mark.parametrize("direction", ["backward", "forward"])


def batch(n=8, dtype=torch.float64):
    """Embeddings far from unit length, similarities of words (n, n), and labels."""
    embeds, words = 3 * normal(n, 6, dtype=dtype), unit_rows(n // 2, 5, seed=1, dtype=dtype)
    labels = torch.arange(n // 2).repeat_interleave(2)
    return embeds.requires_grad_(), (words @ words.T)[labels][:, labels], labels * 5 + 2


def equation(embeds, language_sims, labels, shift=1.0, temp=1.0, direction="backward"):
    """L_match one entry at a time."""
    rows, total = embeds.tolist(), 0.0
    for i, x in enumerate(rows):
        image, language = [], []
        for j, y in enumerate(rows):
            same = labels[i] == labels[j]
            image.append(((1 + shift) if same else cosine(x, y)) / temp)
            language.append(((1 if same else float(language_sims[i, j])) + shift) / temp)
        p, q = softmax(image), softmax(language)
        total += kl(q, p) if direction == "forward" else kl(p, q)
    return temp**2 / len(rows) * total


@each_direction
@pytest.mark.parametrize(
    ("shift", "temp"), [(1.0, 1.0), (0.0, 1.0), (0.5, 0.2), (1.0, 4.0), (-0.5, 1.0), (-1.0, 0.2)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_equation(direction, shift, temp, dtype):
    embeds, sims, labels = batch(dtype=dtype)
    distill = LanguageDistillation(shift=shift, temp=temp, distill_dir=direction)
    expected = equation(embeds, sims, labels, shift, temp, direction)
    # A mean of log-probabilities, at most log 8 and the spread of the similarities, 2 / temp.
    size = temp**2 * (math.log(8) + 2 / temp)
    close = 1e-10 if dtype == torch.float64 else rounding(8, size)
    assert distill(embeds, sims, labels).item() == pytest.approx(expected, abs=close)


def test_defaults_are_the_papers_direction():
    embeds, sims, labels = batch()
    expected = equation(embeds, sims, labels)
    other = equation(embeds, sims, labels, direction="forward")
    assert LanguageDistillation()(embeds, sims, labels).item() == pytest.approx(expected, abs=1e-9)
    assert abs(expected - other) > 1e-4


@each_direction
def test_gradient_goes_through_the_images_only(direction):
    embeds, sims, labels = batch()
    sims.requires_grad_()
    distill = LanguageDistillation(distill_dir=direction)
    distill(embeds, sims, labels).backward()
    assert sims.grad is None
    assert embeds.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: distill(x, sims, labels), (embeds,))


def test_length_of_the_embeddings_and_batch_order_do_not_matter():
    embeds, sims, labels = batch()
    distill, order = LanguageDistillation(), shuffle(len(labels))
    loss = distill(embeds, sims, labels)
    assert torch.allclose(loss, distill(embeds * 0.01, sims, labels))
    assert torch.allclose(loss, distill(embeds[order], sims[order][:, order], labels[order]))


@each_direction
def test_images_that_follow_their_words_give_zero(direction):
    words = unit_rows(6)
    distill = LanguageDistillation(shift=0.0, distill_dir=direction)
    loss = distill(words, words @ words.T, torch.arange(6))
    assert loss.item() == pytest.approx(0, abs=1e-6)


@each_direction
@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.2])
def test_the_minimum_is_at_the_words_plus_the_shift(direction, shift):
    """A negative shift spreads classes evenly, and keeps the order of their words."""
    n, words = 5, unit_rows(5, 4)
    language_sims = 0.5 * words @ words.T
    target = (language_sims + shift).fill_diagonal_(1)  # positive definite: cosines of some images
    images = torch.linalg.cholesky(target).requires_grad_()
    distill = LanguageDistillation(shift=shift, distill_dir=direction)
    loss = distill(images, language_sims, torch.arange(n))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert images.grad.abs().max() < 1e-6


@each_direction
def test_one_class_gives_a_differentiable_zero(direction):
    embeds = torch.randn(2, 4, requires_grad=True)
    distill = LanguageDistillation(distill_dir=direction)
    loss = distill(embeds, torch.ones(2, 2), torch.tensor([9, 9]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


@each_direction
def test_runs_in_float32_inside_autocast_and_at_low_temperature(direction):
    embeds, sims, labels = batch(dtype=torch.float32)
    low, sims = embeds.detach().bfloat16().requires_grad_(), sims.bfloat16()
    distill = LanguageDistillation(temp=0.01, distill_dir=direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distill(low, sims, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert low.grad.isfinite().all()
    exact = distill(low.detach().float(), sims.float(), labels)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
