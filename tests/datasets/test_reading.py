"""Images as they should be seen: upright, in 8 bits of RGB, with bounded work."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageCms, ImageOps

import datasets
from datasets import ImageSet, image_cache, readable, transforms
from datasets.caption_set import open_caption_set
from datasets.readable import fault, find_faults
from datasets.reading import MOST_EXTREME, Jpeg, Pixels, in_rgb, open_image, read_image
from datasets.transforms import shrink, train_views
from evaluation.pictures import thumbnails
from tests.runs import odd_file

pytestmark = pytest.mark.usefixtures("own_cache")

ORIENTATIONS = range(1, 9)
FORMATS = {
    "jpg": {"quality": 95, "subsampling": 0},
    "jfif": {"progressive": True},
    "mpo": {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]},
    "png": {},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
    "webp": {"lossless": True},
    "avif": {},
}


def colours(width=61, height=45):
    """An image without symmetries."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([255 * x // width, 255 * y // height, 127 * x // width + 127 * y // height])
    return Image.fromarray(ramps.transpose(1, 2, 0).astype(np.uint8))


def turned(path, orientation, image=None, **options):
    """A file of an image that is stored turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image or colours()).save(path, exif=exif, **options)
    return path


def seen(path):
    """The oracle: (H, W, 3), by Pillow."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


# ------------------------------------------------------------------------------------ orientation
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_is_read_upright(tmp_path, monkeypatch, ending, orientation):
    path = turned(tmp_path / f"a.{ending}", orientation, **FORMATS[ending])
    expected = seen(path)
    assert expected.shape == ((45, 61, 3) if orientation < 5 else (61, 45, 3))
    for _ in range(2):  # with torchvision's decoder and without
        opened = open_image(path)
        assert opened.size == expected.shape[1::-1]
        values, reduction = opened.pixels()
        assert reduction == 1 and np.array_equal(values.numpy(), expected)
        assert np.array_equal(np.asarray(read_image(path)), expected)
        monkeypatch.delattr(torchvision.io, "decode_jpeg", raising=False)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_mode_is_read_upright(tmp_path, mode, orientation):
    image = colours()
    if mode == "RGBA":
        image.putalpha(colours().getchannel("R"))
    path = turned(tmp_path / "a.png", orientation, image.convert(mode))
    plain = tmp_path / "plain.png"
    with Image.open(path) as stored:
        ImageOps.exif_transpose(stored).save(plain)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(read_image(plain)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(64, 48), (203, 98)])
def test_reduced_jpegs_are_upright(tmp_path, orientation, size):
    path = turned(tmp_path / "a.jpg", orientation, colours(*size), **FORMATS["jpg"])
    for by in (2, 4, 8):
        values, reduction = open_image(path).pixels(by)
        with Image.open(path) as image:
            image.draft(None, (size[0] // by, size[1] // by))
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert reduction == by and np.array_equal(values.numpy(), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_views_of_a_turned_jpeg_are_those_of_its_upright_twin(tmp_path, orientation):
    path = turned(tmp_path / "a.jpg", orientation, colours(403, 298), **FORMATS["jpg"])
    twin = torch.from_numpy(seen(path).copy())
    (crop,) = train_views(32, scale=(0.3, 1.0))
    for view in (crop, datasets.eval_transform(32)):
        for seed in range(5):
            torch.manual_seed(seed)
            part = view.draw(open_image(path).size)
            opened = open_image(path).pixels(view.max_reduction(part))
            assert opened.reduction > 1
            found = view.crop(opened, part).float()
            assert (found - view.crop(Pixels(twin, 1), part).float()).abs().max() < 12


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_who_read_images_see_them_upright(tmp_path, orientation):
    folder = tmp_path / "pairs" / "cats_2020"
    folder.mkdir(parents=True)
    path = turned(folder / "a.jpg", orientation, **FORMATS["jpg"])
    (folder / "a.txt").write_text("colours")
    expected = Image.fromarray(seen(path))
    labelled = ImageSet("one", (path,), np.zeros(1, np.int64), ("a",))
    kept = image_cache.cached(labelled, 100, workers=0)  # whole, since it is smaller
    captioned = open_caption_set(tmp_path / "pairs")
    for images in (labelled, kept, captioned, image_cache.cached(captioned, 100, workers=0)):
        assert images.open(0).size == images.read(0).size == expected.size
        assert images.read(0).tobytes() == expected.tobytes()
    (small,) = thumbnails([path], 32)
    expected.thumbnail((32, 32), Image.Resampling.LANCZOS)
    assert small.tobytes() == expected.tobytes()


def test_xmp_may_tell_the_orientation(tmp_path):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for ending in ("jpg", "webp"):
        path = tmp_path / f"a.{ending}"
        colours().save(path, xmp=xmp, lossless=True)
        assert read_image(path).size == (45, 61)
        assert np.array_equal(np.asarray(read_image(path)), seen(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_does_not_cost_the_image(tmp_path, exif):
    for ending in ("jpg", "png"):
        path = tmp_path / f"a.{ending}"
        colours().save(path, exif=exif)
        assert read_image(path).size == (61, 45) and fault(path) == ""


@pytest.mark.parametrize("value", [0, 9, 42])
def test_an_orientation_that_is_none_is_ignored(tmp_path, value):
    assert read_image(turned(tmp_path / "a.jpg", value)).size == (61, 45)


def test_what_was_kept_of_images_that_were_read_otherwise_is_not_used(tmp_path, monkeypatch):
    path = turned(tmp_path / "a.jpg", 6)
    images = ImageSet("one", (path,), np.zeros(1, np.int64), ("a",))
    with monkeypatch.context() as earlier:
        earlier.setattr(image_cache, "READING", 1)
        earlier.setattr(readable, "READING", 1)
        earlier.setattr(readable, "fault", lambda path: "cannot be read yet")
        before = image_cache.cached(images, 20, workers=0).reader.folder
        assert find_faults([path], tmp_path)
    assert image_cache.cached(images, 20, workers=0).reader.folder != before
    assert not find_faults([path], tmp_path)


# ------------------------------------------------------------------------------------------ modes
def in_mode(mode):
    image = colours()
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    through = {"PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode)
    return image.convert(through).convert(mode) if through else image.convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"],
)
def test_modes_of_eight_bits_keep_their_colours(mode):
    expected = colours().convert("L") if mode in ("L", "LA", "La") else colours()
    found = in_rgb(in_mode(mode))
    assert found.mode == "RGB"
    apart = np.abs(np.asarray(found, float) - np.asarray(expected.convert("RGB"), float))
    assert apart.mean() < (17 if mode[0] == "P" else 2)  # 216 colours of a palette


def deep_file(path, values):
    """A TIFF, PNG, PGM or PFM of grey values."""
    Image.fromarray(values).save(path)
    return path


GREY = np.linspace(0, 255, 60).reshape(6, 10)


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ((GREY * 257).astype(np.uint16), "png"),
        ((GREY * 257).astype(np.uint16), "tif"),
        ((GREY * 257).astype(np.uint16), "pgm"),
        ((GREY * 257).astype(">u2"), "tif"),
        (GREY.astype(np.int32), "tif"),
        ((GREY * 257).astype(np.int32), "tif"),
        ((GREY * 2**31 / 256).astype(np.int32), "tif"),
        (((GREY - 128) * 2**31 / 128).clip(-(2**31), 2**31 - 200).astype(np.int32), "tif"),
        ((GREY / 255).astype(np.float32), "tif"),
        (GREY.astype(np.float32), "tif"),
        ((GREY * 257).astype(np.float32), "tif"),
        ((GREY / 128 - 1).astype(np.float32), "tif"),
        (((GREY - 99) * 1e36).astype(np.float32), "tif"),
        ((GREY / 255).astype(np.float32), "pfm"),
    ],
)
def test_deep_values_are_scaled_by_their_range(tmp_path, values, ending):
    path = deep_file(tmp_path / f"deep.{ending}", values)
    found = np.asarray(read_image(path), float)
    assert np.abs(found - GREY[..., None]).max() <= 1.5
    assert fault(path) == ""


def test_equal_deep_values_of_two_images_stay_equal(tmp_path):
    """While they fit a usual range, an image is not stretched by its own values."""
    for scale, dtype in ((1, np.float32), (257, np.float32), (1, np.int32), (257, np.int32)):
        dark = deep_file(tmp_path / "a.tif", (scale * np.full((2, 2), 40)).astype(dtype))
        both = deep_file(tmp_path / "b.tif", (scale * np.array([[40, 250]])).astype(dtype))
        if scale == 1:
            assert read_image(dark).getpixel((0, 0)) == (40,) * 3
        assert read_image(both).getpixel((0, 0)) == (40,) * 3


def test_values_that_are_not_finite_are_black_or_white(tmp_path):
    values = np.array([[np.nan, np.inf, -np.inf, 0, 0.5, 1]], np.float32)
    path = deep_file(tmp_path / "a.tif", values)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 255, 0, 0, 128, 255]
    for same in (np.full((2, 2), np.nan, np.float32), np.full((2, 2), -3.0, np.float32)):
        assert read_image(deep_file(path, same)).getpixel((0, 0)) == (0, 0, 0)


def test_sixteen_bits_of_colour_are_scaled(tmp_path):
    """Pillow writes none: a PNG of one row, by hand."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    samples = np.array([0, 300, 65535, 32768, 257, 512], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + samples.tobytes()))
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    assert np.asarray(read_image(path)).ravel().tolist() == [0, 1, 255, 128, 1, 2]


# ------------------------------------------------------------------------------- work per picture
@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (9000, 60), (61, 3000), (4000, 100)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_an_extreme_image_is_not_blown_up(tmp_path, monkeypatch, size, ending):
    path = tmp_path / f"long.{ending}"
    colours(*size).save(path, quality=95)
    made = []
    resize = transforms.resize

    def counted(pixels, height, width):
        made.append(height * width)
        return resize(pixels, height, width)

    monkeypatch.setattr(transforms, "resize", counted)
    view = datasets.eval_transform(224)
    part = view.draw(size)
    found = view.crop(open_image(path).pixels(view.max_reduction(part)), part)
    assert found.shape == (3, 224, 224)
    middle = colours(*size).getpixel((size[0] // 2, size[1] // 2))
    assert found.float().mean((1, 2)).tolist() == pytest.approx(middle, abs=40)
    shrink(open_image(path), 50)
    (crop,) = train_views(224)
    torch.manual_seed(0)
    for _ in range(5):
        part = crop.draw(size)
        crop.crop(open_image(path).pixels(crop.max_reduction(part)), part)
    assert max(made) <= MOST_EXTREME * 256 * 256


def test_a_wide_image_within_bounds_is_resized_whole(tmp_path):
    size = (MOST_EXTREME * 60, 60)
    path = tmp_path / "wide.png"
    colours(*size).save(path)
    assert shrink(open_image(path), 30).shape == (30, MOST_EXTREME * 30, 3)
    view = datasets.eval_transform(32)
    values = open_image(path).pixels().values
    resized = transforms.resize(values, *transforms.resized_to(size, view.shorter_side))
    middle = resized.shape[1] // 2
    expected = resized[2:34, middle - 16 : middle + 16].permute(2, 0, 1)
    assert torch.equal(view.crop(Pixels(values, 1), size), expected)


# ------------------------------------------------------------------------- files that are not files
@pytest.mark.parametrize("kind", ["named pipe", "device", "folder", "broken link"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path, kind):
    path = tmp_path / "a.jpg"
    odd_file(path, kind)
    for read in (open_image, read_image):
        with pytest.raises(OSError, match=rf"cannot read the image .*a\.jpg: {kind}"):
            read(path)
    assert fault(path) == kind


def test_a_jpeg_in_memory_knows_its_orientation(tmp_path):
    content = io.BytesIO(turned(tmp_path / "a.jpg", 6).read_bytes())
    opened = open_image(content)
    assert isinstance(opened, Jpeg) and opened.size == (45, 61) and opened.orientation == 6
