import math
from operator import mul

import pytest
import torch

from criteria import LanguageProxies
from tests.criteria.scalars import cosine, normal, softmax, unit_rows
from tests.rounding import rounding

C, D, D_TEXT = 5, 4, 3
LABELS = torch.tensor([0, 0, 3, 1, 4, 3])


def make(free=False, dtype=torch.float64, **options):
    torch.manual_seed(0)
    words = None if free else unit_rows(C, D_TEXT, seed=2, dtype=dtype)
    return LanguageProxies(C, D, words, **options).to(dtype)


def embeds(dtype=torch.float64):
    """Far from unit length."""
    return (3 * normal(len(LABELS), D, dtype=dtype)).requires_grad_()


def equation(proxies, embeds, labels, scale=16.0):
    """L_proxy one image and class at a time."""
    words = torch.eye(C) if proxies.class_words is None else proxies.class_words
    columns = proxies.map.T.tolist()
    vectors = [[sum(map(mul, word, column)) for column in columns] for word in words.tolist()]
    total = 0.0
    for x, label in zip(embeds.tolist(), labels.tolist(), strict=True):
        total -= math.log(softmax([scale * cosine(x, p) for p in vectors])[label])
    return total / len(labels)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_equation(free, dtype):
    proxies, images = make(free, dtype, scale=7.0), embeds(dtype)
    close = 1e-10 if dtype == torch.float64 else rounding(C, 2 * 7.0)
    expected = equation(proxies, images, LABELS, 7.0)
    assert proxies(images, LABELS).item() == pytest.approx(expected, abs=close)


@pytest.mark.parametrize("free", [False, True])
def test_gradients(free):
    proxies, images = make(free), embeds()
    assert torch.autograd.gradcheck(lambda x: proxies(x, LABELS), images)
    proxies(images, LABELS).backward()
    assert proxies.map.grad.abs().sum() > 0 and images.grad.abs().sum() > 0


def test_training_brings_images_and_words_together():
    """Words of classes that no image has are taken along by the map."""
    proxies = make()
    images = embeds()
    optimizer = torch.optim.Adam([images, *proxies.parameters()], lr=0.05)
    first = proxies(images, LABELS).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = proxies(images, LABELS)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first


def test_the_map_alone_is_saved_and_trained():
    proxies = make(lr=0.2)
    assert set(proxies.state_dict()) == {"map"}
    (group,) = proxies.param_groups()
    assert group["params"] == [proxies.map] and group["lr"] == 0.2 and group["weight_decay"] == 0
    assert make(free=True).map.shape == (C, D) and proxies.map.shape == (D_TEXT, D)


def test_half_precision_is_computed_in_float32():
    proxies, images = make(dtype=torch.float32), embeds(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert proxies(images, LABELS) == proxies(images, LABELS).float()
        assert proxies(images, LABELS).item() == pytest.approx(
            equation(proxies, images, LABELS), abs=1e-4
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": 0}, "scale must be finite and > 0; got 0"), ({"lr": -1}, "lr must be .* >= 0")],
)
def test_hyperparameters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_labels_and_words_are_checked():
    with pytest.raises(ValueError, match=r"label 5 is not in \[0, 5\)"):
        make()(embeds(), LABELS + 1)
    with pytest.raises(ValueError, match="3 class_words for 5 classes"):
        LanguageProxies(5, D, unit_rows(3, D_TEXT))
