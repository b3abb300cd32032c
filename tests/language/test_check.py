"""The check of words from the command line: labelled folders, codes, captions, errors."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from architectures import Classifier
from datasets.image_set import ImageSet
from language import check
from language.check import draw, main
from tests.datasets.miniature import picture

pytestmark = pytest.mark.usefixtures("own_cache")

KINDS = 16
PER_CLASS = 3
COLOURS = ("red", "orange", "green", "blue")
THINGS = ("boot", "shoe", "hat", "bag")


class Colours(torch.nn.Module):
    """Stands for a backbone: its features are the mean colours of an image."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Identity()
        self.pooling = "mean"
        self.mean = self.std = (0.5, 0.5, 0.5)

    def forward(self, images):
        features = images.mean(dim=(2, 3))
        return F.normalize(features, dim=1), features, images


@pytest.fixture(autouse=True)
def built(monkeypatch):
    """No network is loaded; the classifier tells red things from others."""
    asked = []

    def create(name, image_size=None):
        asked.append(name)
        if name.startswith("resnet50"):
            raise FileNotFoundError(f"no ImageNet weights of {name}")
        return Colours()

    class Sure(torch.nn.Module):
        def forward(self, images):
            red = images[:, 0].mean(dim=(1, 2)) > 0.2
            return 20 * F.one_hot(red.long(), 1000).float()

    stand_in = Classifier(Sure(), (0.5,) * 3, (0.5,) * 3, 32, 1.0)
    monkeypatch.setattr(check.architectures, "create", create)
    monkeypatch.setattr(check.architectures, "classifier", lambda name: stand_in)
    labels = ("hot", "cold", *(f"class {number:03d}" for number in range(998)))
    monkeypatch.setattr(check, "imagenet_names", lambda: labels)
    return asked


def colour_of(name):
    place = COLOURS.index(name.split()[0])
    return [(200, 30, 30), (220, 140, 30), (30, 180, 60), (30, 60, 200)][place]


def names():
    return [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]


def folder(source, rename=lambda number, name: name, tested=True):
    """Write classes of one colour each, which half of their names' words tell.

    Classes that are tested on follow in the alphabet, and hold no readable image.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(KINDS)
    for number, at in enumerate(order):
        name = names()[at]
        place = source / "shop" / "images" / rename(number, name)
        place.mkdir(parents=True)
        for image in range(PER_CLASS):
            noise = rng.integers(-20, 20, (24, 24, 3))
            pixels = np.clip(np.array(colour_of(name)) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{image}.png")
    for number in range(KINDS) if tested else ():
        place = source / "shop" / "images" / f"zz test {number:02d}"
        place.mkdir()
        (place / "0.png").write_bytes(b"not read")
    return source


def word_vectors(source):
    """Write vectors by which a thing says nothing and a colour its place in the rainbow."""
    rng = np.random.default_rng(1)
    words = {word: rng.normal(size=6) * 0.1 for word in (*THINGS, "a", "photo", "of", "zz", "test")}
    words |= {
        str(number).zfill(width): rng.normal(size=6) for number in range(99) for width in (2, 3)
    }
    for place, word in enumerate(COLOURS):
        words[word] = np.eye(6)[place] * 3
    words |= {word: rng.normal(size=6) for word in ("class", "hot", "cold", "matchstick")}
    lines = [f"{word} {' '.join(map(str, vector))}\n" for word, vector in words.items()]
    (source / "words.txt").write_text("".join(lines))
    return str(source / "words.txt")


def run(source, capsys, *more, dataset="shop"):
    page = source / "page.html"
    model = word_vectors(source)
    words = [dataset, "--source_path", str(source), "--out", str(page), "--image_size", "16"]
    if "--language_model" not in more:
        words += ["--language_model", model]
    main([*words, *more])
    return capsys.readouterr().out, page.read_text(encoding="utf-8")


def test_names_that_tell_colours_are_advised_and_test_classes_are_not_read(tmp_path, capsys, built):
    out, page = run(folder(tmp_path), capsys)
    assert built == [
        "resnet50_frozen_normalize",
        "efficientnet_lite0",
    ]  # the recipe's, the packaged
    lines = out.splitlines()
    assert lines[0] == (
        "shop: 48 of 48 training images, 16 of 16 training classes; test classes are not used"
    )
    assert lines[1] == "looks by efficientnet_lite0 at 16 px, with ImageNet weights"
    table = [line for line in lines if line.lstrip("* ").startswith("classnames")]
    assert len(table) == 3 and sum(line.startswith("*") for line in table) == 1
    values = [float(re.search(r"(-?[\d.]+) ± ", line)[1]) for line in table]
    assert values == sorted(values, reverse=True) and values[0] > 0.3
    assert "Yes: words predict looks here." in lines
    [flags] = [line for line in lines if line.startswith("--language_distill_w 7.5")]
    assert "--language_words classnames" in flags and "words.txt" in flags
    assert lines[-1].startswith(f"{tmp_path / 'page.html'}, after ")
    assert "Yes: words predict looks here." in page and "red boot" in page and "zz test" not in page


def test_names_that_are_codes_say_nothing(tmp_path, capsys):
    out, _ = run(folder(tmp_path, lambda number, _: f"class_{number:03d}"), capsys)
    assert "No: " in out or "Too few to tell." in out
    assert "16 of 16 names are codes ('class 000', 'class 001', ...)" in out
    assert "--language_words classnames" not in out
    assert "pseudolabels: efficientnet_lite0 is sure of 100% of the images" in out
    assert "pseudolabels  " in out


def test_descriptions_tags_and_captions_are_compared_where_they_are(tmp_path, capsys):
    source = folder(tmp_path, lambda number, _: f"class_{number:03d}", tested=False)
    files = sorted((source / "shop" / "images").glob("*/*.png"))
    train = sorted({file.parent.name for file in files})
    about = {
        name: {"tags": [names()[at].split()[0]], "description": [names()[at], "cold"]}
        for name, at in zip(train, np.random.default_rng(0).permutation(KINDS), strict=True)
    }
    (source / "shop" / "classes.json").write_text(json.dumps(about))
    captions = {
        f"{file.parent.name}/{file.name}": about[file.parent.name]["tags"][0] for file in files
    }
    (source / "shop" / "captions.json").write_text(json.dumps(captions))
    out, page = run(source, capsys)
    assert "8 of 16 training classes" not in out and "8 of 8 training classes" in out
    for words in ("names+tags", "descriptions", "names+descriptions", "captions"):
        assert f"{words}  " in out and words in page
    assert "several mean" in out and "centre" in out


def test_captions_are_judged_by_pairs(tmp_path, capsys):
    pairs = tmp_path / "pairs" / "shop_2020"
    pairs.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(80):
        name = names()[number % KINDS]
        pixels = np.array(colour_of(name)) + rng.integers(-9, 9, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(pairs / f"{number}.jpg")
        (pairs / f"{number}.json").write_text(json.dumps({"caption": name}))
    out, page = run(tmp_path, capsys, dataset="pairs")
    assert out.startswith("pairs: 80 of 80 images with captions\n")
    assert "captions: 16 of 80 differ" in out and "partners: 100% have the same caption" in out
    assert "cosine of captions" in out and "--data_sampler language_pairs" in out
    assert "Yes: words predict looks here." in out and "red boot" in page


def test_too_few_classes_and_unreadable_names_are_told(tmp_path, capsys):
    for number in range(4):
        path = tmp_path / "few" / "images" / f"zzq{number}" / "0.png"
        path.parent.mkdir(parents=True)
        picture(number, 0, 24).save(path)
    out, page = run(tmp_path, capsys, dataset="few")
    assert "Too few to tell: there are 2 training classes." in out
    assert "too few classes to compare" in page
    out, _ = run(folder(tmp_path, lambda _, name: f"q{name.replace(' ', 'x')}"), capsys)
    assert "No: no text encoder reads most of the names." in out
    assert "the encoder knows no word of 16" in out


def test_the_drawn_images_are_a_few_of_each_class_and_the_same_for_a_seed():
    n_classes, each = 30, 9
    labels = np.repeat(np.arange(n_classes), each)
    paths = tuple(check.Path(f"{row}.png") for row in range(len(labels)))
    images = ImageSet("set.train", paths, labels, tuple(map(str, range(n_classes))))
    few = draw(images, most=60, seed=0)  # 15 classes of 4
    assert len(few.images) == 60 and np.bincount(few.labels).tolist() == [4] * 15
    assert few.of == "60 of 270 training images, 15 of 30 training classes"
    assert draw(images, most=60, seed=0).images.paths == few.images.paths
    assert draw(images, most=60, seed=1).images.paths != few.images.paths
    assert len(draw(images, most=10_000, seed=0).images) == 270  # classes are few: all of them
    for row, path in enumerate(few.images.paths):
        name = few.images.class_names[few.labels[row]]
        assert images.class_names[labels[int(path.stem)]] == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder"),
        (["shop", "--image_size", "0"], "--image_size must be >= 1; got 0"),
        (["shop", "--seed", "-1"], "--seed must be >= 0; got -1"),
        (["shop", "--arch", "resnet50"], "no ImageNet weights of resnet50"),
        (
            ["shop", "--language_model", "none.txt"],
            "--language_model none.txt: no such word-vector",
        ),
    ],
)
def test_errors_are_one_line_before_any_work(words, message, tmp_path, capsys):
    folder(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--source_path", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert exit_.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
