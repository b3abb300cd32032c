"""Hashes of pictures, and the search for pairs of them, against plain loops."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from datasets.lookalikes import Appearances, appearances, bits_of, most_similar
from tests.datasets.miniature import picture


def made(seed, n, span=2**64):
    rng = np.random.default_rng(seed)
    return Appearances(
        rng.integers(0, span, n, dtype=np.uint64), rng.integers(0, 256, (n, 4), dtype=np.uint8)
    )


def test_the_hash_is_that_of_scipy_s_cosine_transform():
    for seed in range(5):
        grey = np.asarray(picture(seed, 1, 32).convert("L"))
        low = dctn(grey.astype(float), norm="ortho")[:8, :8].ravel()
        expected = low > np.median(low[1:])
        bits = f"{bits_of(grey):064b}"
        assert [bit == "1" for bit in bits] == expected.tolist()


def test_a_flat_picture_has_the_hash_of_its_brightness_alone():
    for level in (1, 128, 255):
        assert bits_of(np.full((32, 32), level, np.uint8)) == 1 << 63
    assert bits_of(np.zeros((32, 32), np.uint8)) == 0


@pytest.mark.parametrize("near", [0, 3, 20, 64])
@pytest.mark.parametrize("block_bytes", [1, 900, 64 << 20])
def test_equals_plain_loops(near, block_bytes):
    """Every pair, bit by bit; small numbers, so that many hashes are near and some are equal."""
    images, others = made(1, 23, span=300), made(2, 31, span=300)
    expected = []
    for row, bits in enumerate(images.hashes.tolist()):
        pairs = []
        for other, seen in enumerate(others.hashes.tolist()):
            distance = bin(bits ^ seen).count("1")
            apart = np.abs(images.thumbnails[row].astype(int) - others.thumbnails[other]).max()
            if distance <= near:
                pairs.append((int(apart), distance, other))
        if pairs:
            apart, distance, other = min(pairs)
            expected.append((row, other, distance, apart))
    assert expected or near == 0
    assert [tuple(match) for match in most_similar(images, others, near, block_bytes)] == expected


def test_the_highest_bit_counts_and_nothing_is_nothing():
    ones = Appearances(np.array([2**64 - 1], np.uint64), np.zeros((1, 4), np.uint8))
    none = Appearances(np.array([0], np.uint64), np.zeros((1, 4), np.uint8))
    assert most_similar(ones, none, 63) == [] and most_similar(ones, none, 64)[0].distance == 64
    empty = Appearances(np.zeros(0, np.uint64), np.zeros((0, 4), np.uint8))
    assert most_similar(empty, ones, 64) == [] and most_similar(ones, empty, 64) == []


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures, and of each a copy that was scaled, pressed or lightened."""
    folders = tmp_path / "train", tmp_path / "test"
    for kind in range(12):
        image = picture(kind, 0, 64)
        changed = {
            0: lambda image: image.resize((200, 200), Image.Resampling.BICUBIC),
            1: lambda image: image,
            2: lambda image: ImageEnhance.Brightness(image).enhance(1.02),
        }[kind % 3](image)
        for folder, content, quality in zip(folders, (image, changed), (95, 60), strict=True):
            folder.mkdir(exist_ok=True)
            content.save(folder / f"{kind:02d}.jpg", quality=quality)
    return [sorted(folder.iterdir()) for folder in folders]


def test_copies_are_found_and_are_the_same_picture(pictures):
    train, test = pictures
    found = most_similar(appearances(test, "test"), appearances(train, "train"), 10)
    assert [(match.row, match.other) for match in found] == [(row, row) for row in range(12)]
    assert all(match.same for match in found)


def test_another_colour_is_another_picture(tmp_path):
    rng = np.random.default_rng(0)
    shade = rng.integers(60, 200, (8, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    red = np.stack([shade, shade // 4, shade // 4], axis=-1)
    for name, pixels in (("red.png", red), ("blue.png", red[..., ::-1])):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name)
    (match,) = most_similar(
        appearances([tmp_path / "red.png"], ""), appearances([tmp_path / "blue.png"], ""), 16
    )
    assert not match.same


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "1.jpg").write_bytes(io.BytesIO(b"none").getvalue())
    with pytest.raises(OSError, match=r"cannot read the image .*1\.jpg"):
        appearances([tmp_path / "1.jpg"], "")
