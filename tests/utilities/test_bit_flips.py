"""A byte that the disk flips in anything that is kept is noticed: no number comes from it."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import caption_index
from datasets.caption_set import CaptionSet
from datasets.image_cache import cached
from datasets.image_set import ImageSet
from datasets.readable import find_faults
from evaluation import image_index
from evaluation.feature_cache import cached_features
from language import pairing, partner_folder
from tests.datasets.captioned import pair
from tests.evaluation.conftest import Colour, to_tensor
from tests.language.letters import Letters

pytestmark = pytest.mark.usefixtures("own_cache")

PLACES = (0.0, 0.3, 0.6, 0.999)  # in a file, of its length


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    rng = np.random.default_rng(0)
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
    return ImageSet("tiny", tuple(paths), np.arange(4) // 2, ("a", "b"))


def features(images, cache):
    found = cached_features(Colour(), images, to_tensor, cache=cache / "features", workers=0)
    return [part.tolist() for part in found]


def pixels(images, cache):
    try:
        return _pixels(images)
    except OSError as error:  # ends the run; the next one builds them anew
        assert "is damaged in the image cache" in str(error)
        return _pixels(images)


def _pixels(images):
    store = cached(images, 5, 0).reader
    return [store.open(row).pixels(1).values.tolist() for row in range(len(images))]


def checked(images, cache):
    return find_faults(images.paths, images.paths[0].parent)


def neighbours(images, cache):
    captions = ["a fox", "the red fox", "a cat", "cats"]
    found = pairing.find(pairing.Rows("toy", 4, "toy", captions, None), Letters())
    return found.partners.tolist(), found.similarities.tolist()


def flips(folder):
    """Yield each file of a folder with a byte flipped, at each of ``PLACES``, then put back."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    assert "entry.json" in [file.name for file in files] and len(files) > 1
    for file in files:
        whole = file.read_bytes()
        for place in PLACES:
            flipped = bytearray(whole)
            flipped[int(place * len(whole))] ^= 1
            file.write_bytes(flipped)
            yield file
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "make"),
    [("features", features), ("images", pixels), ("checked", checked), ("neighbours", neighbours)],
)
def test_a_cache_is_made_anew(images, own_cache, monkeypatch, kind, make):
    monkeypatch.delenv("RANK", raising=False)
    expected = make(images, own_cache)
    (folder,) = (own_cache / kind).glob("*/")
    for _ in flips(folder):
        assert make(images, own_cache) == expected


def same_or_refused(folder, read, expected):
    """Assert that what is read is as it was, unless it is refused; return how often it was."""
    refused = 0
    for file in flips(folder):
        try:
            assert read() == expected, file
        except ValueError as error:
            assert re.search(r"cannot (be )?read.*delete", str(error)) and str(folder) in str(error)
            refused += 1
    return refused


def test_an_index_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(9, 4)))).float()
    files = [image_index.ImageFile(f"{number}.png", number, number) for number in range(9)]
    embedded = image_index.EmbeddedFiles(files, vectors.numpy(), {})
    provenance = image_index.Provenance(tmp_path, tmp_path / "last.pt", 1, "abc", 4)
    image_index.write_index(tmp_path, image_index.ImageIndex(provenance, embedded))

    def read():
        found = image_index.read_index(tmp_path)
        return found.provenance, found.embedded.files, found.embedded.vectors.tolist()

    expected = provenance, files, vectors.tolist()
    assert same_or_refused(tmp_path / image_index.INDEX, read, expected) >= 2 * len(PLACES)


def test_partners_in_a_folder_of_ones_own_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    rows = pairing.Rows("toy", 3, "toy", ["a fox", "the fox", "a cat"], None)
    made = pairing.find(rows, Letters(), folder=tmp_path / "out")

    def read():
        found = partner_folder.read(tmp_path / "out")
        return found.partners.tolist(), found.similarities.tolist(), found.about

    expected = made.partners.tolist(), made.similarities.tolist(), made.about
    assert same_or_refused(tmp_path / "out", read, expected) >= 3 * len(PLACES)


@pytest.mark.parametrize("writable", [True, False])
def test_an_index_of_captions_is_made_anew(tmp_path, monkeypatch, caplog, writable):
    """Beside the images, or in the cache if their folder cannot be written."""
    root = tmp_path / "drawings"
    for number in range(40):
        pair(root / "a", f"{number}.jpg", f"caption {number}", seed=number)
    if not writable:
        monkeypatch.setattr(caption_index.os, "access", lambda path, mode: False)
    index = caption_index.build(root)
    whole, noticed = index.read_bytes(), 0
    assert (index.parent == root) == writable
    for place in range(8, len(whole) - 8, 97):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        index.write_bytes(flipped)
        again = caption_index.build(root)
        assert again.read_bytes() in (whole, flipped)
        found = CaptionSet(root, again)  # a gap in the file may hold anything
        assert sorted(found.captions) == sorted(f"caption {number}" for number in range(40))
        noticed += again.read_bytes() == whole
    assert noticed > 20 and "is damaged; making it again" in caplog.text
