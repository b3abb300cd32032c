"""Kept features are those of the same model, transform and images, and are never used damaged."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import architectures
from datasets.image_set import ImageSet
from datasets.library_sets import Wrapped
from evaluation import feature_cache
from evaluation.extract import extract
from evaluation.feature_cache import (
    cached_features,
    digest_of_embedder,
    digest_of_images,
    digest_of_transform,
)
from tests.evaluation.conftest import Colour, to_tensor
from utilities.disk_cache import TENSORS


class Scaled(Colour):
    """Counts in a list, which is not part of its settings."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))


@pytest.fixture
def images(colours):
    return colours([(9 * row, 3, 7) for row in range(6)], [0, 0, 1, 1, 2, 2])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


def to_pixels(image):
    return torch.from_numpy(np.asarray(image.resize((32, 32)))).permute(2, 0, 1) / 255


def kept(embedder, images, folder, transform=to_tensor, **options):
    return cached_features(embedder, images, transform, cache=folder, workers=0, **options)


def test_a_second_call_reads_the_same(images, folder):
    embedder = Scaled()
    first = kept(embedder, images, folder)
    calls = len(embedder.calls)
    second = kept(embedder, images, folder)
    assert all(one.equal(two) for one, two in zip(first, second, strict=True))
    assert len(list(folder.glob("*/"))) == 1 and len(embedder.calls) == calls


def test_another_model_transform_set_or_precision_is_another_entry(images, folder):
    embedder = Scaled()
    kept(embedder, images, folder)
    with torch.no_grad():
        embedder.scale += 1e-7
    kept(embedder, images, folder)
    kept(embedder, images.subset([0, 2, 4], "colours.test"), folder)
    kept(embedder, images, folder, lambda image: to_tensor(image) * 2)
    kept(embedder, images, folder, precision="bf16")
    assert len(list(folder.glob("*/"))) == 5


def with_other_layers(seeds, name="test_resnet_normalize"):
    """Embedders with the same backbone."""
    torch.manual_seed(0)
    first = architectures.create(name, 5, pretrained=False, image_size=32)
    for seed in seeds:
        torch.manual_seed(seed)
        embedder = copy.deepcopy(first)
        embedder.embedding.reset_parameters()
        yield embedder.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["test_resnet_normalize", "test_vit_root"])
def test_embedders_that_share_a_backbone_share_features(colours, folder, precision, name):
    """And each has its own embeddings, to the bit as without a cache."""
    images = colours([(row, 3, 7) for row in range(0, 250, 10)], [0, 1, 2, 1, 0] * 5)
    options = {"precision": precision, "bs": 7}
    transform = to_pixels
    found = []
    for embedder in with_other_layers((1, 2), name):
        expected = extract(embedder, images, transform, workers=0, **options)
        found.append(kept(embedder, images, folder, transform, **options))
        assert all(one.equal(two) for one, two in zip(found[-1], expected, strict=True))
    assert len(list(folder.glob("*/"))) == 1
    assert found[0].features.equal(found[1].features)
    assert not found[0].embeds.equal(found[1].embeds)


def test_other_backbones_and_other_pooling_share_nothing(images, folder):
    (embedder,) = with_other_layers([1])
    kept(embedder, images, folder, to_pixels)
    (double,) = with_other_layers([1], "test_resnet_normalize_double")
    kept(double, images, folder, to_pixels)
    with torch.no_grad():
        next(embedder.backbone.parameters()).add_(1e-6)
    kept(embedder, images, folder, to_pixels)
    assert len(list(folder.glob("*/"))) == 3


def test_embeddings_that_an_earlier_version_kept_are_not_used(images, folder, monkeypatch):
    one, two = with_other_layers((1, 2))
    monkeypatch.setattr(feature_cache, "_has_layer", lambda embedder: False)
    monkeypatch.setattr(feature_cache, "digest_of_backbone", lambda embedder: "the same")
    kept(one, images, folder, to_pixels)
    monkeypatch.setattr(feature_cache, "_has_layer", lambda embedder: True)
    found = kept(two, images, folder, to_pixels)
    assert found.embeds.equal(extract(two, images, to_pixels, workers=0).embeds)
    assert len(list(folder.glob("*/"))) == 1


def test_damage_is_noticed_and_repaired(images, folder, caplog):
    embedder = Scaled()
    first = kept(embedder, images, folder)
    (file,) = folder.glob(f"*/{TENSORS}")
    whole = file.read_bytes()
    place = whole.index(first.features.numpy().tobytes())
    file.write_bytes(whole[:place] + b"else" + whole[place + 4 :])
    second = kept(embedder, images, folder)
    assert "damaged" in caplog.text and str(file.parent) in caplog.text
    assert second.features.equal(first.features)
    caplog.clear()
    assert kept(embedder, images, folder).features.equal(first.features)
    assert not caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(images, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = kept(Scaled(), images, blocked / "features")
    assert len(found.rows) == len(images) and "cannot be written" in caplog.text


def test_embedder_digest_is_of_weights_buffers_and_settings():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1))
    plain = digest_of_embedder(model)
    assert digest_of_embedder(model.eval()) == plain  # whatever the mode
    model[1].running_mean += 1
    moved = digest_of_embedder(model)
    model[1].eps = 1e-3
    changed = digest_of_embedder(model)
    assert len({plain, moved, changed}) == 3
    assert digest_of_embedder(model.to(torch.bfloat16)) != changed


def test_transform_digest_is_of_what_it_does():
    assert digest_of_transform(lambda i: to_tensor(i)) == digest_of_transform(to_tensor)
    assert digest_of_transform(lambda i: to_tensor(i)[:, :50]) != digest_of_transform(to_tensor)


def test_images_digest_is_of_files_labels_and_how_they_are_read(images, monkeypatch):
    first = digest_of_images(images)
    assert digest_of_images(images) == first
    with monkeypatch.context() as earlier:
        earlier.setattr(feature_cache, "READING", 1)
        assert digest_of_images(images) != first
    swapped = ImageSet(images.name, images.paths, images.labels[::-1], images.class_names)
    assert digest_of_images(swapped) != first
    Image.new("RGB", (50, 5), (9, 0, 0)).save(images.paths[1])
    rewritten = digest_of_images(images)
    images.paths[2].unlink()
    assert len({first, rewritten, digest_of_images(images)}) == 3


def test_images_digest_without_files_is_of_pixels():
    def wrapped(shade):
        return Wrapped("x", [(Image.new("L", (2, 2), shade),)] * 5, np.arange(5))

    assert digest_of_images(wrapped(3)) == digest_of_images(wrapped(3))
    assert digest_of_images(wrapped(3)) != digest_of_images(wrapped(4))
