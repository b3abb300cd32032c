"""A store of decoded images: the same values, built once, and never silently wrong."""

import errno
import logging
import os
import pickle
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
from evaluation import extract
from utilities.files import cache_folder
from utilities.structures import Embedding

SIDE = 40
SIZES = ((120, 90), (90, 130), (400, 350), (50, 40), (40, 70), (30, 20), (17, 99), (64, 64))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder() / "images"


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


def folder_of(images):
    return images.store.folder


class Same(nn.Module):
    def forward(self, images):
        return Embedding(images.flatten(1), images.flatten(1), images)


@pytest.mark.parametrize("crop_ratio", [0.8, 1.0])
def test_evaluation_reads_the_same_values_to_the_bit(images, crop_ratio):
    middle = datasets.eval_transform(32, crop_ratio)
    kept = cached(images, shorter_side(32, crop_ratio), workers=0)
    direct, read = (extract(Same(), each, middle, bs=3, workers=0) for each in (images, kept))
    assert torch.equal(read.embeds, direct.embeds) and torch.equal(read.labels, direct.labels)


def test_the_shorter_side_is_as_asked_and_nothing_is_enlarged(images):
    kept = cached(images, SIDE, workers=0)
    for row, (width, height) in enumerate(SIZES):
        by = min(1, SIDE / min(width, height))
        assert kept.read(row).size == (int(by * width), int(by * height))
        assert kept.picture(row).size == kept.read(row).size
    small = SIZES.index((30, 20))
    assert kept.read(small).tobytes() == images.read(small).tobytes()


def test_a_set_stays_what_it_is(images):
    kept = cached(images, SIDE, workers=0)
    assert isinstance(kept, ImageSet) and kept.paths == images.paths and len(kept) == 8
    assert [kept.label(row) for row in range(8)] == images.labels.tolist()
    assert kept.caption(3) == "caption 3" and kept.class_names == images.class_names
    assert images.store is None and images.read(0).size == SIZES[0]
    assert kept.with_store(None).read(0).size == SIZES[0]


def test_rows_of_a_subset_are_its_own(images):
    kept = cached(images, SIDE, workers=0)
    part = kept.subset([6, 1, 4], "part").subset([2, 0], "less")
    assert part.paths == (images.paths[4], images.paths[6]) and len(part.store) == 2
    for row, whole in enumerate((4, 6)):
        assert part.read(row).tobytes() == kept.read(whole).tobytes()


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


def contents(store):
    return [
        (store.folder / "pixels.bin").read_bytes(),
        store._shapes.tolist(),
        store._sums.tolist(),
    ]


def test_workers_change_nothing_in_a_store(images, cache, monkeypatch):
    monkeypatch.setattr(image_cache, "BATCH", 3)
    alone = contents(cached(images, SIDE, workers=0).store)
    shutil.rmtree(cache)
    assert contents(cached(images, SIDE, workers=2).store) == alone


def test_training_does_not_depend_on_the_workers(images):
    kept = cached(images, SIDE, workers=0)
    batches = [[(row, row) for row in rows] for rows in ((0, 1, 2), (3, 4), (5, 6, 7))]

    def views(workers):
        loader = datasets.loader(
            kept, datasets.train_views(16, "slip", 2), batches, workers=workers, seed=3
        )
        return torch.cat([view for batch in loader for view in batch.views])

    assert torch.equal(views(0), views(2))


def test_views_leave_the_store_as_it_is(images):
    kept = cached(images, SIDE, workers=0)
    before = contents(kept.store)
    kept.picture(0).pixels().values.zero_()
    kept.store.take([0])
    assert contents(kept.store) == before
    assert np.asarray(cached(images, SIDE, workers=0).read(0)).any()


def test_a_store_is_built_once_for_each_size(images, cache, monkeypatch):
    first = cached(images, SIDE, workers=0)
    cached(images, SIDE + 1, workers=0)
    monkeypatch.setattr(image_cache, "_build", lambda *_: pytest.fail("built again"))
    again = cached(first, SIDE, workers=0)  # one that has a store already, too
    assert folder_of(again) == folder_of(first)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_of_several_that_ask_one_builds(images, monkeypatch):
    built = []
    build = image_cache._build
    monkeypatch.setattr(image_cache, "_build", lambda *args: (built.append(1), build(*args)))
    with ThreadPoolExecutor(3) as pool:
        sets = list(pool.map(lambda _: cached(images, SIDE, workers=0), range(3)))
    assert built == [1] and len({folder_of(each) for each in sets}) == 1


def test_goes_to_a_worker_without_its_pixels(images):
    kept = cached(images, SIDE, workers=0)
    sent = pickle.dumps(kept.subset([2, 3], "part"))
    assert len(sent) < 2000
    assert pickle.loads(sent).read(1).tobytes() == kept.read(3).tobytes()


def test_a_store_that_was_replaced_is_not_opened_for_the_old_one(images, caplog):
    kept = cached(images, SIDE, workers=0)
    sent = pickle.dumps(kept)
    images.paths[0].write_bytes(images.paths[3].read_bytes())
    cached(images, SIDE, workers=0)
    with pytest.raises(RuntimeError, match="built anew while it was in use"):
        pickle.loads(sent)


# ------------------------------------------------------------------------------------------ faults


def test_unreadable_images_are_recorded_and_left_out(images, caplog):
    images.paths[1].write_bytes(images.paths[1].read_bytes()[:400])
    images.paths[3].write_bytes(b"")
    images.paths[5].unlink()
    with caplog.at_level(logging.WARNING):
        kept = cached(images, SIDE, workers=0)
    assert "3 of 8 images cannot be read" in caplog.text
    for row in (1, 3, 5):
        for read in (kept.read, kept.picture):
            with pytest.raises(OSError, match=f"cannot read the image .*{images.paths[row].name}"):
                read(row)
    middle = datasets.eval_transform(SIDE, 1.0)
    assert extract(Same(), kept, middle, workers=0).rows.tolist() == [0, 2, 4, 6, 7]
    (batch,) = datasets.loader(
        kept.subset([2, 3], "p"), [middle], [[(0,), (1,)]], workers=0, seed=0
    )
    assert batch.rows.tolist() == [0]


def test_no_readable_image_is_an_error_and_leaves_nothing(images, cache):
    for path in images.paths:
        path.write_bytes(b"none")
    with pytest.raises(OSError, match=r"no image can be read: .*0.png"):
        cached(images, SIDE, workers=0)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def rewritten(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def flip(content):
    content[len(content) // 2] ^= 255


def cut(content):
    del content[len(content) // 2 :]


DAMAGE = {
    "index flipped": ("index.npz", lambda path: rewritten(path, flip), "damaged"),
    "index cut": ("index.npz", lambda path: rewritten(path, cut), "damaged"),
    "index empty": ("index.npz", lambda path: path.write_bytes(b""), "damaged"),
    "index gone": ("index.npz", lambda path: path.unlink(), "damaged"),
    "index foreign": ("index.npz", lambda path: np.savez(path, other=np.zeros(2)), "damaged"),
    "pixels cut": ("pixels.bin", lambda path: rewritten(path, cut), "damaged"),
    "pixels flipped": ("pixels.bin", lambda path: rewritten(path, flip), "was written to"),
    "pixels gone": ("pixels.bin", lambda path: path.unlink(), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_out_and_repaired(images, caplog, damage):
    name, spoil, said = DAMAGE[damage]
    kept = cached(images, SIDE, workers=0)
    whole = contents(kept.store)
    spoil(folder_of(kept) / name)
    with caplog.at_level(logging.WARNING):
        again = cached(images, SIDE, workers=0)
    assert said in caplog.text and str(folder_of(kept)) in caplog.text
    assert contents(again.store) == whole
    caplog.clear()
    cached(images, SIDE, workers=0)
    assert not caplog.text


def test_a_bit_that_flips_on_the_disk_is_found_out_when_it_is_read(images, caplog):
    """The file's time says nothing of it."""
    kept = cached(images, SIDE, workers=0)
    whole, path = contents(kept.store), folder_of(kept) / "pixels.bin"
    status = path.stat()
    rewritten(path, flip)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    opened = cached(images, SIDE, workers=0)
    wrong = [row for row in range(8) if not sound(opened, row)]
    assert len(wrong) == 1
    with caplog.at_level(logging.WARNING):
        again = cached(images, SIDE, workers=0)
    assert "damaged" in caplog.text and contents(again.store) == whole
    assert all(sound(again, row) for row in range(8))


def sound(images, row):
    try:
        images.read(row)
    except OSError as error:
        assert "is damaged in the image cache" in str(error)
        return False
    return True


@pytest.mark.parametrize("how", ["another picture", "removed"])
def test_changed_images_are_read_anew(images, caplog, how):
    cached(images, SIDE, workers=0)
    if how == "removed":
        images.paths[3].unlink()
    else:
        Image.new("RGB", (50, 50), (1, 2, 3)).save(images.paths[3])
    with caplog.at_level(logging.WARNING):
        again = cached(images, SIDE, workers=0)
    assert "images have changed" in caplog.text
    if how == "removed":
        with pytest.raises(OSError, match=images.paths[3].name):
            again.read(3)
    else:
        assert again.read(3).getpixel((5, 5)) == (1, 2, 3)


def test_a_full_disk_is_said_before_anything_is_written(images, cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(OSError, match=r"--cache_images: .*need about 0.04 MB .* 0.01 MB are free"):
        cached(images, SIDE, workers=0)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(images, cache, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"--cache_images: .*make room") as raised:
        cached(images, SIDE, workers=0)
    assert raised.value.errno == errno.ENOSPC
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(images, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    with pytest.raises(OSError, match=r"--cache_images: .* cannot be written; let XDG_CACHE_HOME"):
        cached(images, SIDE, workers=0)


def test_a_read_only_disk_is_named(images, cache, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(image_cache, "alone", refuse)
    with pytest.raises(OSError, match=r"--cache_images: .* cannot be written; let XDG_CACHE_HOME"):
        cached(images, SIDE, workers=0)


def test_what_a_killed_build_left_is_removed(images, cache):
    kept = cached(images, SIDE, workers=0)
    folder = folder_of(kept)
    shutil.rmtree(folder)
    left = folder.with_name(f".{folder.name}.abc123")
    left.mkdir()
    (left / "pixels.bin").write_bytes(bytes(100))
    cached(images, SIDE, workers=0)
    assert not left.exists() and folder.exists()
