"""Colour and blur of a batch, against torchvision's functions on one image at a time."""

import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as V

from datasets import colour
from datasets.colour import BLUR, FACTORS, GREY, ORDER, adjust, blur_size, draw, finish
from tests.rounding import rounding
from utilities.structures import Batch

CLOSE = rounding(2, 6)  # an adjustment adds two numbers; hue counts up to 6 sextants


def random_pixels(n=8, side=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)


def flat_pixels():
    """Black, white, grey, the primaries and their mixtures: where hue and saturation have edges."""
    values = torch.cartesian_prod(*[torch.tensor([0, 128, 255], dtype=torch.uint8)] * 3)
    return values[:, :, None, None].expand(-1, -1, 6, 6).contiguous()  # (27, 3, 6, 6)


def draws(n, seed=0):
    torch.manual_seed(seed)
    return torch.stack([draw() for _ in range(n)])


def by_torchvision(pixels, numbers):
    """One image (3, S, S) uint8 by the ten numbers drawn for it."""
    image = pixels.float() / 255
    steps = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)
    if numbers[GREY] < 0:
        image = V.rgb_to_grayscale(image, num_output_channels=3)
    for number in numbers[ORDER].int().tolist():
        if number >= 0:
            image = steps[number](image, numbers[FACTORS][number].item())
    if numbers[GREY] > 0:
        image = V.rgb_to_grayscale(image, num_output_channels=3)
    if numbers[BLUR]:
        size = blur_size(pixels.shape[-1])
        image = V.gaussian_blur(image, [size, size], [numbers[BLUR].item()] * 2)
    return image


def numbers(order=(-1,) * 4, factors=(1.0, 1.0, 1.0, 0.0), grey=0.0, sigma=0.0):
    return torch.tensor([*order, *factors, grey, sigma])


@pytest.mark.parametrize("pixels", [random_pixels(), flat_pixels()], ids=["random", "flat"])
@pytest.mark.parametrize(
    ("step", "reference", "factors"),
    [
        (colour.brighten, V.adjust_brightness, (0.0, 0.6, 1.0, 1.4, 3.0)),
        (colour.contrast, V.adjust_contrast, (0.0, 0.6, 1.0, 1.4, 3.0)),
        (colour.saturate, V.adjust_saturation, (0.0, 0.6, 1.0, 1.4, 3.0)),
        (colour.rotate_hue, V.adjust_hue, (-0.5, -0.1, 0.0, 0.07, 0.5)),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_adjustment_is_torchvision_s(pixels, step, reference, factors):
    images = pixels.float() / 255
    own = torch.tensor(factors).repeat(len(images))[: len(images)]
    expected = [reference(image, factor.item()) for image, factor in zip(images, own, strict=True)]
    torch.testing.assert_close(step(images, own), torch.stack(expected), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("side", [3, 8, 33, 64, 120])
def test_blur_is_torchvision_s_at_every_image_s_own_width(side):
    images, sigmas = random_pixels(5, side).float() / 255, torch.tensor([0.1, 0.3, 0.9, 1.4, 2.0])
    size = [blur_size(side)] * 2
    expected = [
        V.gaussian_blur(image, size, [sigma.item()] * 2)
        for image, sigma in zip(images, sigmas, strict=True)
    ]
    torch.testing.assert_close(
        colour.blur(images, sigmas), torch.stack(expected), atol=rounding(2 * size[0]), rtol=0
    )


@pytest.mark.parametrize(
    ("side", "size"), [(224, 15), (32, 3), (16, 3), (48, 3), (64, 5), (96, 7), (128, 9), (256, 17)]
)
def test_the_blur_s_kernel_grows_with_the_image(side, size):
    assert blur_size(side) == size


@pytest.mark.parametrize("side", [20, 64])
def test_a_batch_is_torchvision_s_pipeline_image_by_image(side):
    pixels, colours = random_pixels(60, side), draws(60)
    assert (colours[:, ORDER] < 0).any() and (colours[:, GREY] > 0).any()
    expected = [by_torchvision(*each) for each in zip(pixels, colours, strict=True)]
    adjusted = adjust(pixels, colours)
    torch.testing.assert_close(adjusted, torch.stack(expected), atol=4 * CLOSE, rtol=0)
    assert adjusted.dtype == torch.float32 and adjusted.min() >= 0 and adjusted.max() <= 1 + 1e-6


def test_an_image_does_not_depend_on_its_batch():
    pixels, colours = random_pixels(16), draws(16)
    together = adjust(pixels, colours)
    order = torch.randperm(16)
    torch.testing.assert_close(adjust(pixels[order], colours[order]), together[order])
    for row in range(16):
        alone = adjust(pixels[row : row + 1], colours[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


def test_where_nothing_was_drawn_nothing_changes():
    pixels = random_pixels()
    colours = numbers(factors=(1.4, 0.6, 1.4, 0.1)).repeat(8, 1)  # factors without an order
    assert torch.equal(adjust(pixels, colours), pixels.float() / 255)


def test_memory_format_and_pixels_do_not_matter():
    pixels, colours = random_pixels(), draws(8)
    kept = pixels.clone()
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(adjust(channels_last, colours), adjust(pixels, colours))
    assert torch.equal(pixels, kept)


# ------------------------------------------------------------------------------------------- draws


def test_draws_have_the_published_strengths_and_shares():
    n = 4000
    colours = draws(n)
    jittered = colours[:, 0] >= 0
    for share, p in ((jittered, 0.8), (colours[:, GREY] == 1, 0.2), (colours[:, BLUR] > 0, 0.5)):
        assert stats.binomtest(int(share.sum()), n, p).pvalue > 1e-4
    assert set(colours[:, GREY].tolist()) == {0.0, 1.0}
    for values, low, high in (
        (colours[:, 4], 0.6, 1.4),
        (colours[:, 5], 0.6, 1.4),
        (colours[:, 6], 0.6, 1.4),
        (colours[:, 7], -0.1, 0.1),
        (colours[colours[:, BLUR] > 0, BLUR], 0.1, 2.0),
    ):
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-4


def test_every_order_is_drawn_equally_often_or_none_at_all():
    colours = draws(4000)
    orders = [tuple(row) for row in colours[colours[:, 0] >= 0, ORDER].int().tolist()]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-4
    assert (colours[colours[:, 0] < 0, ORDER] == -1).all()


def test_adv_is_roth_et_al_s_greyscale_before_jitter_of_a_fifth():
    torch.manual_seed(0)
    colours = torch.stack([draw(colour.ADV) for _ in range(2000)])
    assert (colours[:, 0] >= 0).all() and (colours[:, BLUR] == 0).all()
    assert set(colours[:, GREY].tolist()) == {0.0, -1.0}
    assert stats.binomtest(int((colours[:, GREY] < 0).sum()), 2000, 0.2).pvalue > 1e-4
    assert colours[:, 4:7].min() >= 0.8 and colours[:, 4:7].max() <= 1.2
    assert -0.2 <= colours[:, 7].min() < -0.19 and 0.19 < colours[:, 7].max() <= 0.2

    pixels, few = random_pixels(60), colours[:60]
    assert (few[:, GREY] < 0).any()
    expected = [by_torchvision(*each) for each in zip(pixels, few, strict=True)]
    torch.testing.assert_close(adjust(pixels, few), torch.stack(expected), atol=4 * CLOSE, rtol=0)


def test_bytes_are_normalised_as_one_image_after_the_other_was():
    """To the bit: (value - 255 mean) times 1 / (255 std)."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    means, stds = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    for pixels in (random_pixels(), random_pixels()[..., :7], random_pixels(1, 1)):
        expected = [image.sub(255 * means).mul(1 / (255 * stds)) for image in pixels]
        for layout in (torch.contiguous_format, torch.channels_last):
            found = colour.normalise_bytes(pixels.contiguous(memory_format=layout), mean, std)
            assert torch.equal(found, torch.stack(expected))
            assert found.is_contiguous(memory_format=torch.channels_last)


def test_draws_are_independent_of_each_other():
    """Jitter, grey and blur in all eight combinations, as often as their shares multiply."""
    n = 4000
    colours = draws(n)
    happens = [colours[:, 0] >= 0, colours[:, GREY] > 0, colours[:, BLUR] > 0]
    observed, expected = [], []
    for case in range(8):
        both = torch.ones(n, dtype=torch.bool)
        share = 1.0
        for bit, (event, p) in enumerate(zip(happens, (0.8, 0.2, 0.5), strict=True)):
            on = bool(case >> bit & 1)
            both &= event == on
            share *= p if on else 1 - p
        observed.append(int(both.sum()))
        expected.append(n * share)
    assert stats.chisquare(observed, expected).pvalue > 1e-4


# ------------------------------------------------------------------------------------------ finish


def batch(views, colours):
    rows = torch.arange(len(views[0]))
    return Batch(views, rows, rows, ("a",) * len(rows), colours)


def test_finish_normalises_what_it_colours_and_leaves_the_rest():
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    ready, pixels, colours = torch.randn(8, 3, 20, 20), random_pixels(), draws(8)
    plain = random_pixels(seed=1)
    finished = finish(batch((ready, pixels, plain), (None, colours, None)), mean, std)
    assert finished.views[0] is ready and finished.colours == ()
    expected = torch.stack([V.normalize(image, mean, std) for image in adjust(pixels, colours)])
    torch.testing.assert_close(finished.views[1], expected)
    torch.testing.assert_close(finished.views[2], V.normalize(plain / 255, mean, std))
    for view in finished.views[1:]:
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert finished.captions == ("a",) * 8 and finished.rows.tolist() == list(range(8))
    assert finish(finished, mean, std) is finished


def test_a_batch_moves_with_its_colours():
    given = batch((random_pixels(), random_pixels(seed=1)), [None, draws(8)])  # a list, once pinned
    moved = given.to(torch.device("cpu"))
    assert isinstance(moved.colours, tuple) and moved.colours[0] is None
    assert torch.equal(moved.colours[1], given.colours[1])
    assert all(torch.equal(*views) for views in zip(moved.views, given.views, strict=True))
    assert moved.views[0].dtype == torch.uint8
