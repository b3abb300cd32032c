"""A store of decoded images: the same values, built once, and never silently wrong."""

import errno
import logging
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import datasets
from datasets import ImageSet, image_cache
from datasets.caption_set import CaptionSet, open_caption_set
from datasets.image_cache import cached
from datasets.transforms import shorter_side
from evaluation.extract import extract
from utilities.structures import Embedding

pytestmark = pytest.mark.usefixtures("own_cache")

SIDE = 40
SIZES = ((120, 90), (90, 130), (400, 350), (50, 40), (40, 70), (30, 20), (17, 99), (64, 64))


@pytest.fixture
def images(tmp_path):
    """Eight images of four classes: wide and high, large and small, JPEG and PNG."""
    paths = []
    for row, size in enumerate(SIZES):
        paths.append(tmp_path / f"{row}.{'png' if row % 3 == 0 else 'jpg'}")
        pixels = np.random.default_rng(row).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return ImageSet(
        "tiny.train",
        tuple(paths),
        np.arange(8) // 2,
        ("a", "b", "c", "d"),
        captions=tuple(f"caption {row}" for row in range(8)),
    )


class Same(nn.Module):
    def forward(self, images):
        return Embedding(images.flatten(1), images.flatten(1), images)


def store_of(images, workers=0):
    return cached(images, SIDE, workers).reader


def contents(store):
    return (store.folder / "pixels.bin").read_bytes(), store._shapes.tolist(), store._sums.tolist()


def stores(own_cache):
    return [path for path in (own_cache / "images").iterdir() if path.is_dir()]


@pytest.mark.parametrize("crop_ratio", [0.8, 1.0])
def test_evaluation_reads_the_same_values_to_the_bit(images, crop_ratio):
    transform = datasets.eval_transform(32, crop_ratio)
    kept = cached(images, shorter_side(32, crop_ratio), workers=0)
    direct, read = (extract(Same(), each, transform, bs=3, workers=0) for each in (images, kept))
    assert torch.equal(read.embeds, direct.embeds) and torch.equal(read.labels, direct.labels)


def test_the_set_stays_the_same_and_small_images_keep_their_size(images):
    kept = cached(images, SIDE, workers=0)
    assert isinstance(kept, ImageSet) and kept.paths == images.paths and len(kept) == 8
    assert [kept.label(row) for row in range(8)] == images.labels.tolist()
    assert kept.caption(3) == "caption 3" and kept.class_names == images.class_names
    assert images.reader is None and images.read(0).size == SIZES[0]
    assert kept.with_reader(None).read(0).size == SIZES[0]
    for row, (width, height) in enumerate(SIZES):
        by = min(1, SIDE / min(width, height))
        assert kept.read(row).size == (int(by * width), int(by * height))
        assert kept.open(row).size == kept.read(row).size
    small = SIZES.index((30, 20))
    assert kept.read(small).tobytes() == images.read(small).tobytes()


def test_a_subset_reads_its_own_rows_here_and_in_a_worker(images):
    kept = cached(images, SIDE, workers=0)
    part = kept.subset([6, 1, 4], "part").subset([2, 0], "less")
    assert part.paths == (images.paths[4], images.paths[6]) and len(part.reader) == 2
    sent = pickle.dumps(part)
    assert len(sent) < 2000  # without pixels
    for each in (part, pickle.loads(sent)):
        for row, whole in enumerate((4, 6)):
            assert each.read(row).tobytes() == kept.read(whole).tobytes()


def test_captioned_images_can_be_kept_too(images, tmp_path):
    root = tmp_path / "pairs" / "cats_2020"
    root.mkdir(parents=True)
    for row, path in enumerate(images.paths[:4]):
        shutil.copy(path, root / path.name)
        (root / f"{row}.txt").write_text(f"caption {row}")
    captioned = open_caption_set(tmp_path / "pairs")
    kept = cached(captioned, SIDE, workers=0)
    assert isinstance(kept, CaptionSet) and kept.fingerprint() == captioned.fingerprint()
    assert list(kept.captions) == list(captioned.captions)
    other = pickle.loads(pickle.dumps(kept))
    labelled = cached(images, SIDE, workers=0)
    for row in range(4):
        assert kept.read(row).tobytes() == labelled.read(row).tobytes()
        assert other.read(row).tobytes() == kept.read(row).tobytes()
    assert captioned.read(0).size == SIZES[0]


def test_workers_change_nothing_in_a_store(images, own_cache, monkeypatch):
    monkeypatch.setattr(image_cache, "BATCH", 3)
    alone = contents(store_of(images))
    shutil.rmtree(own_cache)
    assert contents(store_of(images, workers=2)) == alone


def test_building_a_store_leaves_the_run_s_random_numbers_alone(images):
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    def seeded():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seeded()
    expected = drawn()
    for _ in ("cold", "warm"):
        seeded()
        cached(images, SIDE, workers=0)
        assert drawn() == expected


def test_views_leave_the_store_as_it_is(images):
    kept = cached(images, SIDE, workers=0)
    before = contents(kept.reader)
    kept.open(0).pixels().values.zero_()
    assert contents(kept.reader) == before
    assert np.asarray(cached(images, SIDE, workers=0).read(0)).any()


def test_a_store_is_built_once_for_each_size(images, own_cache, monkeypatch):
    built = []
    fill = image_cache._fill
    monkeypatch.setattr(image_cache, "_fill", lambda *args: (built.append(args[1]), fill(*args)))
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: cached(images, SIDE, workers=0), range(3))
    cached(images, SIDE + 1, workers=0)
    again = cached(first, SIDE, workers=0)  # a set that has a store already
    assert built == [SIDE, SIDE + 1] and len(stores(own_cache)) == 2
    assert {each.reader.folder for each in others} == {again.reader.folder}


# ------------------------------------------------------------------------------------------ faults


def test_unreadable_images_are_recorded_and_left_out(images, caplog):
    images.paths[1].write_bytes(images.paths[1].read_bytes()[:400])
    images.paths[3].write_bytes(b"")
    images.paths[5].unlink()
    with caplog.at_level(logging.WARNING):
        kept = cached(images, SIDE, workers=0)
    assert "3 of 8 images cannot be read" in caplog.text
    for row in (1, 3, 5):
        for read in (kept.read, kept.open):
            with pytest.raises(OSError, match=f"cannot read the image .*{images.paths[row].name}"):
                read(row)
    transform = datasets.eval_transform(SIDE, 1.0)
    assert extract(Same(), kept, transform, workers=0).rows.tolist() == [0, 2, 4, 6, 7]
    part = kept.subset([2, 3], "p")
    (batch,) = datasets.loader(part, [transform], [[(0,), (1,)]], workers=0, seed=0)
    assert batch.rows.tolist() == [0]


def test_no_readable_image_is_an_error_and_leaves_nothing(images, own_cache):
    for path in images.paths:
        path.write_bytes(b"none")
    with pytest.raises(OSError, match=r"no image can be read: .*0.png"):
        cached(images, SIDE, workers=0)
    assert stores(own_cache) == []


def spoil(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def flip(content):
    content[len(content) // 2] ^= 255


def cut(content):
    del content[len(content) // 2 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: spoil(folder / "index.npz", flip),
        lambda folder: spoil(folder / "pixels.bin", cut),
        lambda folder: (folder / "pixels.bin").unlink(),
        lambda folder: (folder / "about.json").unlink(),
    ],
    ids=["index flipped", "pixels cut", "pixels gone", "about gone"],
)
def test_a_damaged_store_is_rebuilt(images, caplog, damage):
    store = store_of(images)
    whole = contents(store)
    damage(store.folder)
    assert contents(store_of(images)) == whole
    assert "is damaged" in caplog.text and str(store.folder) in caplog.text
    caplog.clear()
    cached(images, SIDE, workers=0)
    assert not caplog.text


def test_a_flipped_bit_is_noticed_when_its_image_is_read(images, caplog):
    store = store_of(images)
    whole = contents(store)
    spoil(store.folder / "pixels.bin", flip)
    opened = cached(images, SIDE, workers=0)
    assert len([row for row in range(8) if not sound(opened, row)]) == 1
    again = cached(images, SIDE, workers=0)
    assert "is damaged" in caplog.text and contents(again.reader) == whole
    assert all(sound(again, row) for row in range(8))


def sound(images, row):
    try:
        images.read(row)
    except OSError as error:
        assert "is damaged in the image cache" in str(error)
        return False
    return True


def test_changed_images_are_read_again(images, own_cache, caplog):
    cached(images, SIDE, workers=0)
    images.paths[2].unlink()
    Image.new("RGB", (50, 50), (1, 2, 3)).save(images.paths[3])
    again = cached(images, SIDE, workers=0)
    assert "images have changed" in caplog.text and len(stores(own_cache)) == 1
    assert again.read(3).getpixel((5, 5)) == (1, 2, 3)
    with pytest.raises(OSError, match=images.paths[2].name):
        again.read(2)


def test_a_full_disk_is_named_before_or_while_a_store_is_built(images, own_cache, monkeypatch):
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
        with pytest.raises(
            OSError, match=r"--cache_images: .*need about 0.04 MB .* 0.01 MB are free"
        ):
            cached(images, SIDE, workers=0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"--cache_images: .*make room") as raised:
        cached(images, SIDE, workers=0)
    assert raised.value.errno == errno.ENOSPC
    assert stores(own_cache) == []


def test_an_unwritable_cache_lasts_as_long_as_the_process(images, own_cache, caplog):
    own_cache.parent.mkdir()
    own_cache.write_text("in the way")
    kept = cached(images, SIDE, workers=0)
    assert kept.read(0).size == (53, 40) and "cannot be written" in caplog.text
