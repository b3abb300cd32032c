"""What each augmentation makes of an image, view by view, on the worker and on the device."""

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasets import ImageSet
from datasets.colour import Crop, adjust, finish
from datasets.transforms import train_views

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
    """Of n draws of a view: where it was taken."""
    (transform,) = train_views(side, augmentation, **PLAIN)
    torch.manual_seed(0)
    views = [transform(ramps()) for _ in range(n)]
    pixels = [view.pixels / 255 if isinstance(view, Crop) else view for view in views]
    return np.array([corners(image) for image in pixels]).T  # (4, n)


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
        ("adv", (False, False, False)),
        ("big", (False, False, False)),
        ("global_crop", (False, False, False)),
        ("simclr", (True, True, True)),
        ("slip", (False, True, True)),
    ],
)
def test_each_view_has_a_transform(augmentation, coloured):
    for n_views in (1, 2, 3):
        transforms = train_views(28, augmentation, n_views)
        views = [transform(ramps(40)) for transform in transforms]
        assert tuple(isinstance(view, Crop) for view in views) == coloured[:n_views]
        side = datasets.input_size(28, augmentation)
        for view in views:
            if isinstance(view, Crop):
                assert view.pixels.shape == (3, side, side) and view.pixels.dtype == torch.uint8
                assert view.colour.shape == (10,) and view.colour.dtype == torch.float32
            else:
                assert view.shape == (3, side, side) and view.dtype == torch.float32


def test_the_recipe_s_scale_is_for_the_augmentations_with_labels():
    for augmentation, follows in (("base", True), ("global_crop", False), ("simclr", False)):
        (transform,) = train_views(16, augmentation, scale=(0.01, 0.011), **PLAIN)
        torch.manual_seed(0)
        view = transform(ramps())
        pixels = view.pixels / 255 if isinstance(view, Crop) else view
        assert (area(*corners(pixels)) < 0.02) == follows


def test_an_unknown_augmentation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"--augmentation slp is unknown; .* closest first: slip"):
        train_views(56, "slp", 2)


@pytest.fixture
def images(tmp_path):
    """Six images with captions."""
    paths = []
    for row in range(6):
        paths.append(tmp_path / f"{row}.png")
        pixels = np.random.default_rng(row).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return ImageSet(
        name="tiny",
        paths=tuple(paths),
        labels=np.arange(6),
        class_names=tuple("abcdef"),
        captions=tuple(f"caption {row}" for row in range(6)),
    )


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


def test_a_batch_without_colours_is_as_it_always_was(images):
    for augmentation in ("base", "adv", "global_crop"):
        for batch in load(images, augmentation):
            assert batch.colours == ()
            assert {view.dtype for view in batch.views} == {torch.float32}
            assert finish(batch, **PLAIN) is batch


def test_slip_leaves_the_view_that_text_is_paired_with_uncoloured(images):
    batch = load(images, "slip", n_views=3)[0]
    assert batch.colours[0] is None
    finished = finish(batch, **PLAIN)
    assert finished.views[0] is batch.views[0]
    for view in (1, 2):
        expected = adjust(batch.views[view], batch.colours[view])
        torch.testing.assert_close(finished.views[view], expected)


@pytest.mark.parametrize("augmentation", ["simclr", "slip"])
def test_views_depend_neither_on_the_workers_nor_on_what_was_loaded_before(images, augmentation):
    def epoch(**how):
        return [finish(batch, **PLAIN) for batch in load(images, augmentation, **how)]

    alone = epoch()
    for others, same in ((epoch(workers=1), True), (epoch(workers=2), True), (epoch(), True),
                         (epoch(start=1), False)):  # fmt: skip
        for batch, other in zip(alone, others, strict=True):
            assert all(
                torch.equal(*views) == same for views in zip(batch.views, other.views, strict=True)
            )


def test_an_image_that_has_gone_leaves_its_colours_out_too(images):
    whole = load(images, "simclr")[0]
    images.paths[1].unlink()  # row 1, and the partner of row 4
    batch = load(images, "simclr")[0]
    assert batch.rows.tolist() == [0, 2]
    for view in range(2):
        assert torch.equal(batch.views[view], whole.views[view][[0, 2]])
        assert torch.equal(batch.colours[view], whole.colours[view][[0, 2]])
