"""Reading pairs by row, in this process and in workers, and the scopes of partners."""

import gc
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from datasets import caption_index
from datasets.caption_set import Captions, CaptionSet, open_caption_set
from datasets.loading import loader
from datasets.reading import read_image
from tests.datasets.captioned import image_bytes, pair, samples, shard, write


def of_pairs(root, count=10):
    """Images whose red says which row they are."""
    for row in range(count):
        path = write(root / f"d{row // 4}" / f"{row:02d}.txt", f"caption {row}").with_suffix(".png")
        Image.new("RGB", (16, 16), (20 * row, 0, 0)).save(path)
    return root


def of_shards(root, count=10):
    files = sorted(of_pairs(root.parent / "files", count).glob("*/*"))
    for number in range(0, len(files), 8):
        content = {file.name: file.read_bytes() for file in files[number : number + 8]}
        shard(root / f"{number // 8:05d}.tar", content)
    return root


def of_manifest(root, count=10):
    files = sorted(of_pairs(root / "in", count).glob("*/*.png"))
    lines = [f"{file.relative_to(root)},caption {row}" for row, file in enumerate(files)]
    write(root / "list.csv", "\n".join(["path,caption", *lines]))
    return root


LAYOUTS = pytest.mark.parametrize("fill", [of_pairs, of_shards, of_manifest])


# --------------------------------------------------------------------------------------- by row


@LAYOUTS
def test_image_caption_and_label_of_a_row(tmp_path, fill, monkeypatch):
    monkeypatch.setattr(caption_index, "BATCH", 3)  # several record batches
    images = open_caption_set(fill(tmp_path / "mine"))
    assert images.name == "mine" and len(images) == 10
    assert len(images._batches) > 2
    for row in (9, 0, 5, 4, 4):
        assert images.caption(row) == f"caption {row}"
        assert images.read(row).getpixel((3, 3)) == (20 * row, 0, 0)
        assert images.label(row) == row
        assert images.key(row).endswith(f"{row:02d}.png")
    assert images.caption(np.int64(3)) == "caption 3"
    for row in (-1, 10):
        with pytest.raises(IndexError, match=rf"row {row} of mine, which has 10"):
            images.read(row)
    first = {of_pairs: "d0/00.png", of_shards: "00000.tar/00.png", of_manifest: "in/d0/00.png"}
    assert images.key(0) == first[fill]


@LAYOUTS
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_pairs_of_rows(tmp_path, fill, workers):
    images = open_caption_set(fill(tmp_path / "mine"))
    images.read(0)  # opens a shard here, whose place forked workers then share
    batches = [[(0, 7), (9, 1)], [(3, 3)], [(8, 2), (6, 4), (5, 0)]]
    seen = list(loader(images, [as_tensor, as_tensor], batches, workers=workers, seed=0))
    for batch, rows in zip(seen, batches, strict=True):
        first, second = zip(*rows, strict=True)
        assert batch.rows.tolist() == batch.labels.tolist() == list(first)
        assert batch.captions == tuple(f"caption {row}" for row in first)
        assert batch.views[0][:, 0, 0, 0].tolist() == [20 * row for row in first]
        assert batch.views[1][:, 0, 0, 0].tolist() == [20 * row for row in second]


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def test_an_image_that_went_bad_is_an_oserror_that_names_it(tmp_path):
    whole = image_bytes(size=(64, 64))
    half = whole[: len(whole) // 2]
    shard(tmp_path / "web" / "0.tar", {"a.jpg": half, "a.txt": b"half"} | samples(["whole"]))
    write(write(tmp_path / "mine" / "d" / "a.txt", "half").with_suffix(".jpg"), half)
    for root, name in (("web", "web/0.tar/a.jpg"), ("mine", "mine/d/a.jpg")):
        images = open_caption_set(tmp_path / root)
        with pytest.raises(OSError, match=rf"cannot read the image .*{name}: .*truncated"):
            images.read(0)
    web = open_caption_set(tmp_path / "web")
    assert web.read(1).size == (12, 10)
    (tmp_path / "web" / "0.tar").write_bytes(b"")
    with pytest.raises(OSError, match="cannot read the image"):
        open_again = CaptionSet(web.root, web.index)
        open_again.read(1)


def test_transparent_members_are_laid_on_white_like_files(tmp_path):
    path = write(tmp_path / "scratch.png", b"")
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    shard(tmp_path / "web" / "0.tar", {"a.png": path.read_bytes(), "a.txt": b"clear"})
    image = open_caption_set(tmp_path / "web").read(0)
    assert image.getpixel((0, 0)) == read_image(path).getpixel((0, 0)) == (255, 255, 255)


# ------------------------------------------------------------------------------------- captions


def test_captions_are_a_sequence(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_index, "BATCH", 3)
    captions = open_caption_set(of_pairs(tmp_path / "mine")).captions
    wanted = [f"caption {row}" for row in range(10)]
    assert isinstance(captions, Captions) and len(captions) == 10
    assert list(captions) == wanted
    assert captions[-1] == "caption 9" and captions[np.int64(2)] == "caption 2"
    for cut in ((None,), (2, 8), (7, 2), (-3, None), (9, None, -2), (0, 99, 3), (4, 4)):
        assert captions[slice(*cut)] == wanted[slice(*cut)]
    assert "caption 4" in captions and captions.index("caption 7") == 7
    for place in (10, -11):
        with pytest.raises(IndexError):
            captions[place]
    assert next(captions._chunks(1, 9, size=2)) == wanted[1:3]
    assert max(map(len, captions._chunks(0, 10, size=2))) == 2


def test_a_set_holds_nothing_of_its_own_size(tmp_path):
    """Neither in Python nor by copying out of the file; and it goes to a worker as two paths."""
    root = tmp_path / "mine"
    lines = ["path,caption", *(f"{row}.jpg,a caption of some length {row}" for row in range(1000))]
    write(root / "0.jpg", image_bytes())
    for row in range(1, 1000):
        (root / f"{row}.jpg").symlink_to("0.jpg")
    write(root / "list.csv", "\n".join(lines))
    index = open_caption_set(root).index
    gc.collect()
    before = pa.total_allocated_bytes()
    images = CaptionSet(root, index)
    images.caption(500)
    assert pa.total_allocated_bytes() - before < 1000
    assert all(not hasattr(v, "__len__") or len(v) < 100 for v in vars(images).values())
    assert len(pickle.dumps(images)) < 1000
    # The captions that a batch shows are the file's own bytes.
    data = images._batches[0].column("caption").buffers()[2]
    assert data.is_cpu and not data.is_mutable
    place = index.read_bytes().find(bytes(memoryview(data)))
    assert place > 0


def test_pickling_opens_the_index_again(tmp_path):
    images = open_caption_set(of_shards(tmp_path / "mine"))
    images.read(0)
    again = pickle.loads(pickle.dumps(images))
    assert again.name == "mine" and list(again.captions) == list(images.captions)
    assert again.read(7).tobytes() == images.read(7).tobytes()


def test_a_worker_that_finds_another_index_says_so(tmp_path):
    root = of_pairs(tmp_path / "mine")
    sent = pickle.dumps(open_caption_set(root))
    pair(root / "d0", "0.jpg", "a new first row")
    assert open_caption_set(root).caption(0) == "a new first row"
    with pytest.raises(RuntimeError, match=r"index.arrow was rewritten while in use"):
        pickle.loads(sent)


def test_the_fingerprint_is_of_rows_not_of_how_they_were_built(tmp_path, monkeypatch):
    root = of_pairs(tmp_path / "mine")
    first = open_caption_set(root).fingerprint()
    pair(root / "d9", "a.jpg", "one more")
    second = open_caption_set(root).fingerprint()
    assert len(first) == 16 and first != second
    (root / "index.arrow").unlink()
    monkeypatch.setattr(caption_index, "BATCH", 3)
    assert open_caption_set(root).fingerprint() == second  # other batches, the same rows

    # Where one caption ends and the next begins counts.
    for name, captions in (("a", ("ab", "c")), ("b", ("a", "bc"))):
        for row, caption in enumerate(captions):
            pair(tmp_path / name / "d", f"{row}.jpg", caption)
    prints = [open_caption_set(tmp_path / name).fingerprint() for name in "ab"]
    assert prints[0] != prints[1]


# --------------------------------------------------------------------------------------- scopes

IMAGE = image_bytes()
REDCAPS = {  # directory: subreddit, year
    "pics_2018": ("pics", "2018"),
    "pics_2018_00001": ("pics", "2018"),
    "pics_2019": ("pics", "2019"),
    "absolute_units_2018_abc123": ("absolute_units", "2018"),
    "year_2000_photos_2019": ("year_2000_photos", "2019"),
    "earth_2010_2012": ("earth", "2010"),  # an id that could be a year
}


@pytest.mark.parametrize("layout", ["pairs", "shards", "folders in a shard", "manifest"])
def test_scopes_of_redcaps_directories(tmp_path, layout):
    root = tmp_path / "redcaps"
    key = {
        "pairs": "{}/{}.jpg",
        "shards": "{}.tar/{}.jpg",
        "folders in a shard": "0.tar/{}/{}.jpg",
        "manifest": "data/{}/{}.jpg",
    }[layout]
    expected = {
        key.format(name, image): scope for name, scope in REDCAPS.items() for image in range(2)
    }
    shards = defaultdict(dict)
    for place in map(Path, expected):
        if ".tar" not in place.parts[0]:
            pair(root / place.parent, place.name, "a")
            continue
        member = Path(*place.parts[1:])
        shards[place.parts[0]] |= {f"{member}": IMAGE, f"{member.with_suffix('.txt')}": b"a"}
    for name, files in shards.items():
        shard(root / name, files)
    if layout == "manifest":
        write(root / "list.csv", "\n".join(["path,caption", *(f"{key},a" for key in expected)]))
    images = open_caption_set(root)
    assert len(images) == 12
    truth = [expected[images.key(row)] for row in range(12)]
    for kind, values in (
        ("subreddit", [subreddit for subreddit, _ in truth]),
        ("year", [year for _, year in truth]),
        ("subreddit_year", truth),
    ):
        codes = images.scopes(kind)
        assert codes.shape == (12,) and codes.dtype == np.int64
        numbered = {value: code for code, value in enumerate(sorted(set(values)))}
        assert codes.tolist() == [numbered[value] for value in values]


def test_scopes_need_directories_of_that_form(tmp_path):
    for directory in ("pics_2018", "pics", "pics_1918", "cats-2018"):
        pair(tmp_path / "mine" / directory, "a.jpg", "a")
    images = open_caption_set(tmp_path / "mine")
    with pytest.raises(
        ValueError,
        match=r"mine: the scope 'year' .*<subreddit>_<year>_<id>, and 3 of 4 .*cats-2018, pics",
    ):
        images.scopes("year")
    with pytest.raises(ValueError, match=r"scope must be one of subreddit, .*; got 'month'"):
        images.scopes("month")
