"""Reading single images, and batches that do not depend on who loads them."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import datasets
from datasampler.pairs import AugmentedPairs, RandomPairs
from datasets import ImageSet, transforms
from datasets.loading import Item, Views, collate
from datasets.readable import fault
from datasets.reading import Jpeg, Pixels, open_image, read_image
from datasets.transforms import train_views
from tests.datasets.conftest import noise_images

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def images(tmp_path):
    return noise_images(tmp_path, 8)


def row_of(view: torch.Tensor) -> torch.Tensor:
    return (view[:, 0].float().mean((1, 2)) / 30).round().long()


# ---------------------------------------------------------------------------------------- images


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def by_pil(path: Path) -> np.ndarray:
    """PIL's pixels in RGB, 16 bits scaled to 8 and transparent images on white."""
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            return np.repeat(np.asarray(image)[..., None] // 256, 3, axis=-1).astype(np.uint8)
        if image.mode == "RGBA":
            white = Image.new("RGBA", image.size, "white")
            return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def test_transparent_images_are_laid_on_white(tmp_path):
    half = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (2, 0, 4, 2))
    for path in (
        save(tmp_path / "rgba.png", half),
        save(tmp_path / "palette.gif", half),
        save(tmp_path / "palette.png", half.quantize()),
    ):
        image = read_image(path)
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == (255, 0, 0) and image.getpixel((3, 0)) == (255,) * 3
    grey = save(tmp_path / "grey.png", Image.new("LA", (2, 2), (0, 128)))
    assert read_image(grey).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_another_file_is_an_oserror_that_names_it(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"cannot read the image .*broken.png"):
        read_image(path)
    assert fault(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_found_out(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut.{suffix}", Image.fromarray(pixels))
    assert fault(path) == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert fault(path)


# ------------------------------------------------------------------------ no more than is needed


def smooth(width, height, wave=40):
    """Slow waves of colour: an image that looks the same at a fraction of its size."""
    y, x = np.mgrid[:height, :width] / wave
    waves = np.stack([np.sin(x), np.sin(y), np.sin(x + y)], axis=-1)
    return Image.fromarray((127 + 100 * waves).astype(np.uint8))


def file_of_kind(folder, kind):
    """An image file of one of many kinds, 61 x 45."""
    rgb = smooth(61, 45)
    second = rgb.rotate(180)
    if kind.startswith("jpeg"):
        mode = "L" if "grey" in kind else "CMYK" if "cmyk" in kind else "RGB"
        options = {
            "progressive": "progressive" in kind,
            "subsampling": 0 if "444" in kind else 2,
        }
        return save(folder / f"{kind}.jpg", rgb.convert(mode), quality=90, **options)
    if kind == "mpo":
        return save(folder / "two.mpo", rgb, save_all=True, append_images=[second])
    if kind == "gif":
        return save(folder / "two.gif", rgb, save_all=True, append_images=[second])
    if kind == "deep":
        values = np.arange(61 * 45, dtype=np.uint16).reshape(45, 61) * 20
        return save(folder / "deep.png", Image.fromarray(values))
    if kind == "clear":
        clear = rgb.convert("RGBA")
        clear.putalpha(128)
        return save(folder / "clear.png", clear)
    return save(folder / f"{kind}.png", rgb.convert({"palette": "P", "bits": "1"}.get(kind, "RGB")))


JPEGS = ("jpeg", "jpeg_444", "jpeg_progressive", "jpeg_grey", "jpeg_grey_444")
OTHERS = ("jpeg_cmyk", "mpo", "gif", "deep", "clear", "palette", "bits", "png")


@pytest.mark.parametrize("kind", [*JPEGS, *OTHERS])
def test_whole_pixels_are_those_of_pil(tmp_path, monkeypatch, kind):
    path = file_of_kind(tmp_path, kind)
    opened, expected = open_image(path), by_pil(path)
    values, reduction = opened.pixels(1 if kind in JPEGS else 8)  # only a JPEG is reduced
    assert reduction == 1 and opened.size == (61, 45)
    assert np.array_equal(values.numpy(), expected)
    assert np.array_equal(np.asarray(read_image(path)), expected)
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    assert np.array_equal(open_image(path).pixels().values.numpy(), expected)


@pytest.mark.parametrize("size", [(64, 48), (61, 45), (9, 200), (2, 3), (1, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_reduced_to_the_mean_of_its_blocks(tmp_path, size, mode):
    path = save(tmp_path / "a.jpg", smooth(*size).convert(mode), quality=95, subsampling=0)
    width, height = size
    whole = open_image(path).pixels().values.float()
    for most, by in ((1, 1), (2, 2), (3, 2), (4, 4), (8, 8), (100, 8)):
        values, reduction = open_image(path).pixels(most)
        assert reduction == min(by, 2 ** (min(size).bit_length() - 1))
        assert values.shape == (-(-height // reduction), -(-width // reduction), 3)
        rows, columns = height // reduction, width // reduction
        blocks = whole[: rows * reduction, : columns * reduction]
        blocks = blocks.view(rows, reduction, columns, reduction, 3).mean(dim=(1, 3))
        if blocks.numel():
            assert (values[:rows, :columns] - blocks).abs().max() < 4


def test_a_part_is_never_reduced_below_the_view(monkeypatch):
    """The pixels that are resized to a view are at least as many, in both directions."""
    seen = []
    monkeypatch.setattr(
        transforms, "resize", lambda part, *size: (seen.append(part.shape), part[:1, :1])[1]
    )
    random = np.random.default_rng(0)
    (view,) = train_views(32)
    torch.manual_seed(0)
    reductions = []
    for width, height in random.integers(20, 900, (300, 2)).tolist():
        part = view.draw((width, height))
        by = view.max_reduction(part)
        assert by == 8 or min(part.height, part.width) // (2 * by) < 32  # as far as it goes
        reduced = torch.zeros(-(-height // by), -(-width // by), 3, dtype=torch.uint8)
        view.crop(Pixels(reduced, by), part)
        for length, left in zip((part.height, part.width), seen[-1][:2], strict=True):
            assert left >= min(length, 32) and abs(left - length / by) <= 1
        reductions.append(by)
    assert set(reductions) == {1, 2, 4, 8}


@pytest.mark.parametrize("size", [(1000, 700), (333, 901)])
def test_reduced_views_are_those_of_the_whole_image(tmp_path, size):
    path = save(tmp_path / "large.jpg", smooth(*size, wave=150), quality=95)
    whole = np.asarray(read_image(path))
    for view in (train_views(32, scale=(0.3, 1.0))[0], datasets.eval_transform(32)):
        for seed in range(10):
            torch.manual_seed(seed)
            part = view.draw(size)
            opened = open_image(path).pixels(view.max_reduction(part))
            assert opened.reduction > 1
            found = view.crop(opened, part).float()
            expected = view.crop(Pixels(torch.from_numpy(whole.copy()), 1), part).float()
            # A part begins at the nearest pixel that is left: half of one at most is 6 levels here.
            assert (found - expected).abs().mean() < 3
            assert (found - expected).abs().max() < 8


def test_an_image_is_reduced_as_far_as_the_most_demanding_of_its_views_allows(
    tmp_path, monkeypatch
):
    path = save(tmp_path / "large.jpg", smooth(800, 800))
    images = ImageSet("one", (path,), np.zeros(1, dtype=np.int64), ("a",))
    asked = []
    read = Jpeg.pixels

    def pixels(self, max_reduction=1):
        asked.append(max_reduction)
        return read(self, max_reduction)

    monkeypatch.setattr(Jpeg, "pixels", pixels)
    small, large = (datasets.eval_transform(side, 1.0, **PLAIN) for side in (50, 300))
    Views(images, [small])[Item((0,), 0)]
    Views(images, [small, large])[Item((0, 0), 0)]
    Views(images, [small, lambda image: torch.zeros(3, *image.size)])[Item((0, 0), 0)]
    assert asked == [8, 2, 1]


@pytest.mark.parametrize("most", [1, 8])
def test_a_jpeg_that_is_cut_short_is_left_out(tmp_path, caplog, most):
    path = save(tmp_path / "cut.jpg", smooth(800, 800))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match=r"cannot read the image .*cut.jpg.*truncated"):
        open_image(path).pixels(most)
    images = ImageSet("one", (path,), np.zeros(1, dtype=np.int64), ("a",))
    side = 600 // most
    assert Views(images, [datasets.eval_transform(side, 1.0, **PLAIN)])[Item((0,), 0)] is None
    assert "cut.jpg" in caplog.text


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_too_large_to_be_true_is_refused_unread(tmp_path, monkeypatch, suffix):
    path = save(tmp_path / f"bomb.{suffix}", smooth(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL refuses twice as many
    for read in (open_image, read_image):
        with pytest.raises(OSError, match=r"cannot read the image .*bomb.*decompression bomb"):
            read(path)


# ------------------------------------------------------------------------------------- transforms


def test_evaluation_takes_the_middle_at_the_crop_ratio():
    image = Image.new("RGB", (400, 200), "white")
    image.paste((0, 0, 0), (100, 0, 300, 200))  # the middle square, 200 px
    view = datasets.eval_transform(100, 1.0, **PLAIN)(image)
    assert view.shape == (3, 100, 100) and view.max() < 0.5
    # A shorter side of 100 / 0.5: the crop shows half of it.
    half = datasets.eval_transform(100, 0.5, **PLAIN)(Image.new("RGB", (200, 400)).resize((50, 60)))
    assert half.shape == (3, 100, 100)


# ---------------------------------------------------------------------------------------- batches


def test_each_view_comes_from_its_own_row_through_its_own_transform(images):
    transforms = [
        datasets.eval_transform(8, 1.0, **PLAIN),
        datasets.eval_transform(16, 1.0, **PLAIN),
    ]
    batches = [[(0, 5), (7, 7)], [(3, 2)]]
    first, second = datasets.loader(images, transforms, batches, workers=0, seed=0)
    assert [view.shape for view in first.views] == [(2, 3, 8, 8), (2, 3, 16, 16)]
    assert row_of(first.views[0]).tolist() == [0, 7] and row_of(first.views[1]).tolist() == [5, 7]
    assert first.rows.tolist() == [0, 7] and first.labels.tolist() == [0, 3]
    assert first.captions == ("caption 0", "caption 7")
    assert first.labels.dtype == first.rows.dtype == torch.int64
    assert second.rows.tolist() == [3] and second.labels.tolist() == [1]


def passes(images, workers, augmentation="adv", seed=0, epochs=2, start=0):
    batches = [[(row, row) for row in range(4)], [(row, row) for row in range(4, 8)], [(0, 0)]]
    views = train_views(8, augmentation, 2)
    loader = datasets.loader(images, views, batches, workers=workers, seed=seed)
    assert len(loader) == 3
    loader.batch_sampler.epoch = start
    finished = [[datasets.finish(batch, **PLAIN) for batch in loader] for _ in range(epochs)]
    return torch.stack(
        [torch.cat([torch.cat(batch.views) for batch in epoch]) for epoch in finished]
    )


@pytest.mark.parametrize("augmentation", ["base", "adv", "simclr", "slip"])
def test_the_number_of_workers_does_not_change_the_data(images, augmentation):
    alone = passes(images, 0, augmentation)
    assert torch.equal(alone, passes(images, 0, augmentation))
    assert torch.equal(alone, passes(images, 2, augmentation))


def test_augmentation_differs_by_view_epoch_and_seed_and_can_be_continued(images):
    both = passes(images, workers=0)
    assert not torch.equal(both[0, :4], both[0, 4:8])  # two views of the same rows
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, passes(images, workers=0, seed=1))
    assert torch.equal(both[1], passes(images, workers=0, epochs=1, start=1)[0])


def captions_of(images, *, workers=0, seed=0, epochs=6, start=0, rank=0, world_size=1):
    """(epochs, 10) captions of two batches of rows, the second of which repeats row 0."""
    batches = [[(row, row) for row in (0, 1, 2, 3)], [(0, 0), (5, 5), (6, 6), (7, 7)]]
    share = 4 // world_size
    batches = [batch[rank * share :][:share] for batch in batches]
    views = train_views(8, "base", 2)
    loader = datasets.loader(images, views, batches, workers=workers, seed=seed, rank=rank)
    loader.batch_sampler.epoch = start
    return [[c for batch in loader for c in batch.captions] for _ in range(epochs)]


def test_one_of_several_captions_is_drawn_in_each_epoch(images):
    """Whoever loads it, by the seed, the epoch and the row; and the views stay as they are."""
    several = replace(images, captions=tuple(f"a {row}\nb {row}\nc {row}" for row in range(8)))
    drawn = captions_of(several)
    assert all("\n" not in caption for epoch in drawn for caption in epoch)
    assert {epoch[1] for epoch in drawn} == {"a 1", "b 1", "c 1"}
    assert all(epoch[0] == epoch[4] for epoch in drawn)  # one caption of an image in an epoch
    assert len({caption[0] for caption in drawn[0]}) > 1  # not the same place of all images
    assert captions_of(several, workers=2) == drawn
    assert captions_of(several, epochs=2, start=4) == drawn[4:]  # resumed
    assert captions_of(several, seed=1) != drawn
    halves = [captions_of(several, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a[:2] + b[:2] + a[2:] + b[2:] for a, b in zip(*halves, strict=True)] == drawn
    assert torch.equal(passes(several, 0), passes(images, 0))


def test_loading_leaves_the_global_generator_alone(images):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Views(images, train_views(8, "slip", 2))[Item((0, 0), 3)]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("augmentation", ["adv", "simclr"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shares_of_several_processes_are_what_one_process_sees(
    images, augmentation, world_size
):
    transforms = train_views(8, augmentation, 2)
    batches = [[(row, (row + 1) % 8) for row in range(start, start + 4)] for start in (0, 4)]
    share = 4 // world_size

    def load(rank, batches):
        loader = datasets.loader(images, transforms, batches, workers=0, seed=5, rank=rank)
        return [list(loader), list(loader)]  # two epochs

    whole = load(0, batches)
    parts = [
        load(rank, [batch[rank * share :][:share] for batch in batches])
        for rank in range(world_size)
    ]
    for epoch in range(2):
        for number, batch in enumerate(whole[epoch]):
            shares = [part[epoch][number] for part in parts]
            for field in ("views", "colours"):
                joined = zip(*(getattr(share, field) for share in shares), strict=True)
                for view, expected in zip(joined, getattr(batch, field), strict=True):
                    assert torch.equal(torch.cat(view), expected)
            assert torch.equal(torch.cat([share.rows for share in shares]), batch.rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_preview_is_how_training_begins_and_changes_nothing(images, workers):
    def loaded():
        sampler = RandomPairs(len(images), 4, seed=1)
        views = train_views(8, "simclr", 2)
        return datasets.loader(images, views, sampler, workers=workers, seed=2)

    plain, seen = loaded(), loaded()
    for _ in range(2):
        shown, tuples = datasets.preview(seen, 3)
        assert len(tuples) == 3 and shown.rows.tolist() == [i for i, _ in tuples]
        expected, batches = list(plain), list(seen)
        for field in ("views", "colours"):
            for view, first in zip(getattr(shown, field), getattr(expected[0], field), strict=True):
                assert torch.equal(view, first[:3])
        for batch, same in zip(batches, expected, strict=True):
            assert torch.equal(batch.rows, same.rows)
            assert all(map(torch.equal, batch.views, same.views))


def test_a_preview_leaves_out_what_cannot_be_read(images):
    images.paths[3].unlink()
    views = train_views(8, "simclr", 2)
    batches = datasets.loader(images, views, AugmentedPairs(len(images), 8), workers=0, seed=2)
    shown, tuples = datasets.preview(batches, 8)
    assert sorted(tuples) == [(i, i) for i in range(8) if i != 3]
    assert len(shown.rows) == 7


def test_an_image_of_several_views_is_read_once(images):
    class Counting:
        n_read = 0
        label, caption = staticmethod(images.label), staticmethod(images.caption)

        def read(self, row):
            self.n_read += 1
            return images.read(row)

    counting = Counting()
    views = Views(counting, [datasets.eval_transform(8, 1.0, **PLAIN)] * 3)
    same = views[Item((3, 3, 3), 0)]
    assert counting.n_read == 1
    assert [row_of(view[None]).item() for view in same.views] == [3, 3, 3]
    pair = views[Item((3, 3, 6), 0)]
    assert counting.n_read == 3
    assert [row_of(view[None]).item() for view in pair.views] == [3, 3, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_has_gone_is_left_out_of_its_batch(images, caplog, workers):
    images.paths[2].unlink()
    images.paths[5].write_bytes(b"")
    batches = [[(1,), (2,), (3,)], [(4,), (5,)]]
    transform = datasets.eval_transform(8, 1.0, **PLAIN)
    batches = list(datasets.loader(images, [transform], batches, workers=workers, seed=0))
    assert [batch.rows.tolist() for batch in batches] == [[1, 3], [4]]
    assert row_of(batches[0].views[0]).tolist() == [1, 3]
    if workers == 0:
        assert str(images.paths[2]) in caplog.text and str(images.paths[5]) in caplog.text
        assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_batch_of_which_nothing_can_be_read_is_an_error():
    with pytest.raises(OSError, match="none of the 2 images of a batch can be read any more"):
        collate([None, None])
