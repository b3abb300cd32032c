"""Augmentations, view by view, on the worker and on the device."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import datasets
from datasets.colour import Crop, adjust, finish
from datasets.transforms import train_views
from tests.datasets.conftest import noise_images
from utilities.seeding import derive
from utilities.structures import input_size

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def ramps(side=256):
    """Red grows to the right and green downward: a crop shows where it was taken."""
    grid = np.arange(side) * 256 // side
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = grid[None, :], grid[:, None]
    return Image.fromarray(pixels)


def corners(pixels):
    """Left, right, top and bottom of a crop of ``ramps``, as shares of the image."""
    return [
        float(pixels[0, :, 0].mean()),
        float(pixels[0, :, -1].mean()),
        float(pixels[1, 0].mean()),
        float(pixels[1, -1].mean()),
    ]


def crops(augmentation, n=200, side=32):
    """Where n random views were taken: left, right, top and bottom, each (n,)."""
    (transform,) = train_views(side, augmentation)
    torch.manual_seed(0)
    views = [pixels_of(transform(ramps())) for _ in range(n)]
    return np.array([corners(view / 255) for view in views]).T  # (4, n)


def pixels_of(view):
    return view.pixels if isinstance(view, Crop) else view


def area(left, right, top, bottom):
    return np.abs(right - left) * (bottom - top)


def test_a_global_crop_is_at_least_half_of_the_image_and_never_flipped():
    left, right, top, bottom = crops("global_crop")
    assert (right > left).all() and (bottom > top).all()
    assert area(left, right, top, bottom).min() > 0.44  # half, less a pixel on each side
    assert area(left, right, top, bottom).max() > 0.85


def test_a_simclr_crop_is_at_least_a_fifth_and_flipped_half_of_the_time():
    left, right, top, bottom = crops("simclr")
    assert (bottom > top).all()
    assert 0.15 < area(left, right, top, bottom).min() < 0.3
    assert 0.4 < (left > right).mean() < 0.6


@pytest.mark.parametrize(
    ("augmentation", "coloured"),
    [
        ("base", (False, False, False)),
        ("adv", (True, True, True)),
        ("big", (False, False, False)),
        ("global_crop", (False, False, False)),
        ("simclr", (True, True, True)),
        ("slip", (False, True, True)),
    ],
)
def test_each_view_has_a_transform(augmentation, coloured):
    for n_views, size in ((1, (300, 200)), (2, (20, 90)), (3, (32, 32))):
        transforms = train_views(28, augmentation, n_views)
        views = [transform(Image.new("RGB", size)) for transform in transforms]
        assert tuple(isinstance(view, Crop) for view in views) == coloured[:n_views]
        side = input_size(28, augmentation)
        for view in views:
            pixels = pixels_of(view)
            assert pixels.shape == (3, side, side) and pixels.dtype == torch.uint8
            if isinstance(view, Crop):
                assert view.colour.shape == (10,) and view.colour.dtype == torch.float32


def test_the_recipe_s_scale_is_for_the_augmentations_with_labels():
    for augmentation, follows in (("base", True), ("global_crop", False), ("simclr", False)):
        (transform,) = train_views(16, augmentation, scale=(0.01, 0.011))
        torch.manual_seed(0)
        view = pixels_of(transform(ramps()))
        assert (area(*corners(view / 255)) < 0.02) == follows


def test_an_unknown_augmentation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"--augmentation slp is unknown; .* closest first: slip"):
        train_views(56, "slp", 2)


@pytest.fixture
def images(tmp_path):
    return noise_images(tmp_path, 6)


def load(images, augmentation, n_views=2, workers=0, start=0):
    batches = [[(row,) * (n_views - 1) + (5 - row,) for row in some] for some in ((0, 1, 2), (3,))]
    loader = datasets.loader(
        images, train_views(16, augmentation, n_views), batches, workers=workers, seed=1
    )
    loader.batch_sampler.epoch = start
    return list(loader)


def test_a_batch_holds_bytes_and_what_is_left_to_do(images):
    first, last = load(images, "simclr")
    assert [view.shape for view in first.views] == [(3, 3, 16, 16)] * 2
    assert {view.dtype for view in first.views} == {torch.uint8}
    assert [colour.shape for colour in first.colours] == [(3, 10)] * 2
    assert [colour.shape for colour in last.colours] == [(1, 10)] * 2
    assert not torch.equal(*first.colours)  # each view draws its own
    assert first.captions == ("caption 0", "caption 1", "caption 2")


def test_a_batch_without_colours_is_normalised_on_the_device(images):
    for augmentation in ("base", "global_crop"):
        for batch in load(images, augmentation):
            assert batch.colours == ()
            assert {view.dtype for view in batch.views} == {torch.uint8}
            finished = finish(batch, **PLAIN)
            for view, pixels in zip(finished.views, batch.views, strict=True):
                torch.testing.assert_close(view, pixels / 255)
            assert finish(finished, **PLAIN) is finished


@pytest.mark.parametrize("n_views", [1, 2])
@pytest.mark.parametrize("augmentation", ["base", "big", "global_crop"])
def test_the_network_s_input_is_that_of_torchvision_s_pipeline(images, augmentation, n_views):
    """The same draws and operations, image by image in floating point, give the same bits.

    Without AVX2 torchvision resizes in floating point, and may round to the next of 256 levels.
    """
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    side = input_size(16, augmentation)
    scale = (0.5, 1.0) if augmentation == "global_crop" else (0.08, 1.0)
    steps = [v2.PILToTensor(), v2.RandomResizedCrop(side, scale=scale)]
    if augmentation != "global_crop":
        steps.append(v2.RandomHorizontalFlip())
    plain = v2.Compose(steps)

    def normalised(view):
        means, stds = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        return view.sub(255 * means).mul(1 / (255 * stds))

    rows = list(range(6))
    batches = [[(row,) * n_views for row in rows]]
    loader = datasets.loader(
        images, train_views(16, augmentation, n_views), batches, workers=0, seed=1
    )
    (batch,) = loader
    found = finish(batch, mean, std).views
    expected = []
    for row in rows:
        with torch.random.fork_rng():
            torch.manual_seed(derive(1, "augmentation", 0, 0, row))
            expected.append([normalised(plain(images.read(row))) for _ in range(n_views)])
    levels = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1
    near = 1.001 * levels / 255 / torch.tensor(std).view(3, 1, 1)
    for view, of_rows in zip(found, zip(*expected, strict=True), strict=True):
        assert ((view - torch.stack(of_rows)).abs() <= near).all()
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    torch.testing.assert_close(found[0], reference(batch.views[0]))


def test_slip_leaves_the_view_that_text_is_paired_with_uncoloured(images):
    batch = load(images, "slip", n_views=3)[0]
    assert batch.colours[0] is None
    finished = finish(batch, **PLAIN)
    torch.testing.assert_close(finished.views[0], batch.views[0] / 255)
    for view in (1, 2):
        expected = adjust(batch.views[view], batch.colours[view])
        torch.testing.assert_close(finished.views[view], expected)


def test_an_image_that_has_gone_leaves_its_colours_out_too(images):
    whole = load(images, "simclr")[0]
    images.paths[1].unlink()  # row 1, and the partner of row 4
    batch = load(images, "simclr")[0]
    assert batch.rows.tolist() == [0, 2]
    for view in range(2):
        assert torch.equal(batch.views[view], whole.views[view][[0, 2]])
        assert torch.equal(batch.colours[view], whole.colours[view][[0, 2]])
