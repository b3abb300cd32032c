import math

import pytest
import torch
import torch.nn.functional as F

from criteria import LanguageDistillation
from tests.rounding import rounding


def batch(n=8, dim=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(n, dim, generator=generator, dtype=dtype) * 3  # far from unit length
    words = F.normalize(torch.randn(n // 2, 5, generator=generator, dtype=dtype), dim=1)
    labels = torch.arange(n // 2).repeat_interleave(2)
    return embeds.requires_grad_(), (words @ words.T)[labels][:, labels], labels * 5 + 2


def softmax(row):
    exps = [math.exp(x) for x in row]
    return [x / sum(exps) for x in exps]


def oracle(embeds, language_sims, labels, shift, temp, direction):
    """L_match one entry at a time."""
    n, total = len(embeds), 0.0
    rows = embeds.detach().tolist()
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    for i in range(n):
        image, language = [], []
        for j in range(n):
            if labels[i] == labels[j]:
                image.append((1 + shift) / temp)
                language.append((1 + shift) / temp)
            else:
                dot = sum(x * y for x, y in zip(rows[i], rows[j], strict=True))
                image.append(dot / (norms[i] * norms[j]) / temp)
                language.append((float(language_sims[i, j]) + shift) / temp)
        p, q = softmax(image), softmax(language)
        if direction == "forward":
            p, q = q, p
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    return temp**2 / n * total


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize(("shift", "temp"), [(1.0, 1.0), (0.0, 1.0), (0.5, 0.2), (1.0, 4.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_equation(direction, shift, temp, dtype):
    embeds, sims, labels = batch(dtype=dtype)
    distill = LanguageDistillation(shift=shift, temp=temp, distill_dir=direction)
    expected = oracle(embeds, sims, labels, shift, temp, direction)
    # A mean of log-probabilities, at most log 8 and the spread of the similarities, 2 / temp.
    size = temp**2 * (math.log(8) + 2 / temp)
    close = 1e-10 if dtype == torch.float64 else rounding(8, size)
    assert distill(embeds, sims, labels).item() == pytest.approx(expected, abs=close)


def test_defaults_are_the_papers_direction():
    embeds, sims, labels = batch()
    expected = oracle(embeds, sims, labels, 1.0, 1.0, "backward")
    other = oracle(embeds, sims, labels, 1.0, 1.0, "forward")
    assert LanguageDistillation()(embeds, sims, labels).item() == pytest.approx(expected, abs=1e-9)
    assert abs(expected - other) > 1e-4


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_gradient_goes_through_the_images_only(direction):
    embeds, sims, labels = batch()
    sims.requires_grad_()
    distill = LanguageDistillation(distill_dir=direction)
    distill(embeds, sims, labels).backward()
    assert sims.grad is None
    assert embeds.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: distill(x, sims, labels), (embeds,))


def test_length_of_the_embeddings_does_not_matter():
    embeds, sims, labels = batch()
    distill = LanguageDistillation()
    assert torch.allclose(distill(embeds, sims, labels), distill(embeds * 0.01, sims, labels))


def test_batch_order_does_not_matter():
    embeds, sims, labels = batch()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    distill = LanguageDistillation()
    moved = distill(embeds[order], sims[order][:, order], labels[order])
    assert torch.allclose(distill(embeds, sims, labels), moved)


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_images_that_follow_their_words_give_zero(direction):
    words = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    distill = LanguageDistillation(shift=0.0, distill_dir=direction)
    loss = distill(words, words @ words.T, torch.arange(6))
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_one_class_gives_a_differentiable_zero(direction):
    embeds = torch.randn(2, 4, requires_grad=True)
    distill = LanguageDistillation(distill_dir=direction)
    loss = distill(embeds, torch.ones(2, 2), torch.tensor([9, 9]))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_runs_in_float32_inside_autocast_and_at_low_temperature(direction):
    embeds, sims, labels = batch(dtype=torch.float32)
    low = embeds.detach().bfloat16().requires_grad_()
    distill = LanguageDistillation(temp=0.01, distill_dir=direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distill(low, sims.bfloat16(), labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert low.grad.isfinite().all()
    exact = distill(low.detach().float(), sims.bfloat16().float(), labels)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_wrong_hyperparameters_are_named():
    with pytest.raises(ValueError, match=r"distill_dir must be .*got sideways"):
        LanguageDistillation(distill_dir="sideways")
    with pytest.raises(ValueError, match="temp must be > 0; got 0"):
        LanguageDistillation(temp=0)
