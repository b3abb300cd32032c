"""Train and test share classes and no image; what is missing is named with where it belongs."""

import json
import logging
import pickle
import urllib.request
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from datasets import library_sets, splits
from datasets.downstream import KNOWN, build, is_ours
from datasets.image_set import ImageSet
from datasets.library_sets import Wrapped, draw
from datasets.loading import loader
from tests.datasets.captioned import pair
from tests.datasets.conftest import fill, save_image

pytestmark = pytest.mark.usefixtures("own_cache")


def identities(images):
    """What tells one image from another: its file, or its row in the dataset behind."""
    return list(images.paths) if isinstance(images, ImageSet) else images.rows.tolist()


def counts(images):
    return np.bincount([images.label(row) for row in range(len(images))]).tolist()


@pytest.fixture
def offline(monkeypatch):
    """No download leaves this machine."""

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def fewer(monkeypatch, name, drawn):
    """Draw that many images of each class for train and for test."""
    small = replace(library_sets.SOURCES[name], drawn=drawn)
    monkeypatch.setitem(library_sets.SOURCES, name, small)


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


# --------------------------------------------------------------------------------------- the draws


def test_drawn_rows_are_disjoint_balanced_and_seeded():
    labels = np.array([0] * 7 + [1] * 4 + [2] * 9)[np.random.default_rng(1).permutation(20)]
    train, test = draw(labels, None, np.random.default_rng(0))
    assert np.bincount(labels[train]).tolist() == [4, 2, 5]
    assert np.bincount(labels[test]).tolist() == [3, 2, 4]
    assert sorted([*train, *test]) == list(range(20))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    train, test = draw(labels, (2, 3), np.random.default_rng(0))
    assert np.bincount(labels[train]).tolist() == [2, 2, 2]
    assert np.bincount(labels[test]).tolist() == [3, 2, 3]
    assert not set(train) & set(test)
    again = draw(labels, (2, 3), np.random.default_rng(0))
    assert np.array_equal(again[0], train) and np.array_equal(again[1], test)
    assert not np.array_equal(draw(labels, (2, 3), np.random.default_rng(1))[0], train)


# ------------------------------------------------------------------------------ digits, the adapter


def test_digits(tmp_path):
    digits = build("digits", tmp_path)
    assert (len(digits.train), len(digits.test), digits.n_classes) == (901, 896, 10)
    assert not set(identities(digits.train)) & set(identities(digits.test))
    assert max(counts(digits.train)) - min(counts(digits.train)) <= 6
    picture = digits.test.read(3)
    assert picture.mode == "RGB" and picture.size == (8, 8)
    assert digits.test.caption(3) is None and digits.val is None and not digits.per_class
    again = build("digits", tmp_path)
    assert identities(again.train) == identities(digits.train)
    assert identities(build("digits", tmp_path, seed=1).train) != identities(digits.train)


@pytest.mark.parametrize("workers", [0, 2])
def test_wrapped_images_in_a_loader(tmp_path, workers):
    images = build("digits", tmp_path).test
    batches = [[(row,) for row in range(start, start + 4)] for start in (0, 4)]
    found = list(loader(images, (to_tensor,), batches, workers=workers, seed=0))
    assert torch.cat([batch.rows for batch in found]).tolist() == list(range(8))
    labels = torch.cat([batch.labels for batch in found]).tolist()
    assert labels == [images.label(row) for row in range(8)]
    torch.testing.assert_close(found[1].views[0][2], to_tensor(images.read(6)))
    assert found[0].captions == ()


def test_wrapped_takes_rows_and_names_what_cannot_be_read():
    items = [(Image.new("L", (2, 3), shade),) for shade in (10, 20, 30)]
    images = Wrapped("x.test", items, np.array([5, 7]), np.array([2, 0]))
    assert len(images) == 2 and images.label(0) == 5
    assert images.read(0).getpixel((0, 0)) == (30, 30, 30)
    with pytest.raises(OSError, match=r"image 0 of y\.test: .*broken"):
        Wrapped("y.test", Broken(), np.array([0])).read(0)


class Broken:
    def __getitem__(self, row):
        raise RuntimeError("broken")


# -------------------------------------------------------------------------------------- torchvision


def test_cifar10_as_torchvision_lays_it_out(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    root = tmp_path / CIFAR10.base_folder
    root.mkdir()
    rng = np.random.default_rng(0)
    files = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name in files:
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (root / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 1, 0, 9]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    cifar = build("cifar10", tmp_path)
    assert (len(cifar.train), len(cifar.test), cifar.val) == (20, 4, None)
    assert [cifar.test.label(row) for row in range(4)] == [3, 1, 0, 9]
    assert cifar.class_names == tuple("abcdefghij") and cifar.test.read(0).size == (32, 32)


def test_dtd_has_published_validation_images(tmp_path):
    root = tmp_path / "dtd" / "dtd"
    (root / "labels").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{label}/{label}_{part}.jpg" for label in ("banded", "dotted")]
        for line in lines:
            save_image(root / "images" / line, seed=number)
        (root / "labels" / f"{part}1.txt").write_text("\n".join(lines) + "\n")
    dtd = build("dtd", tmp_path)
    assert [len(part) for part in (dtd.train, dtd.val, dtd.test)] == [2, 2, 2]
    assert dtd.class_names == ("banded", "dotted") and dtd.val.name == "dtd.val"


def test_eurosat_is_drawn_alike_from_each_class(tmp_path, monkeypatch):
    fewer(monkeypatch, "eurosat", (3, 2))
    for number, label in enumerate(("Forest", "River")):
        for image in range(6):
            save_image(tmp_path / "eurosat/2750" / label / f"{image}.jpg", 10 * number + image)
    sat = build("eurosat", tmp_path)
    assert counts(sat.train) == [3, 3] and counts(sat.test) == [2, 2]
    assert not set(identities(sat.train)) & set(identities(sat.test))


def test_sun397_does_not_depend_on_the_order_of_the_disk(tmp_path, monkeypatch):
    root = tmp_path / "SUN397"
    for number, label in enumerate(("abbey", "alley")):
        for image in range(9):
            save_image(root / "a" / label / f"sun_{image}.jpg", 10 * number + image)
    (root / "ClassName.txt").write_text("/a/abbey\n/a/alley\n")
    fewer(monkeypatch, "sun397", (3, 3))

    def files(images):
        return [str(images.items._image_files[row]) for row in images.rows]

    sun = build("sun397", tmp_path)
    listed = files(sun.train)
    plain = type(root).rglob
    monkeypatch.setattr(
        type(root), "rglob", lambda self, pattern: reversed(sorted(plain(self, pattern)))
    )
    assert files(build("sun397", tmp_path).train) == listed
    assert counts(sun.train) == [3, 3] == counts(sun.test)
    for row in range(6):
        assert sun.class_names[sun.train.label(row)] in listed[row]


def test_clevr_counts_objects(tmp_path, monkeypatch):
    fewer(monkeypatch, "clevr-counts", (2, 1))
    root = tmp_path / "clevr" / "CLEVR_v1.0"
    for part in ("train", "val"):
        scenes = []
        for image in range(9):
            save_image(root / "images" / part / f"{image}.png", image)
            objects = [{}] * (3 + image % 3)
            scenes.append({"image_filename": f"{image}.png", "objects": objects})
        (root / "scenes").mkdir(exist_ok=True)
        (root / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    clevr = build("clevr-counts", tmp_path)
    assert clevr.class_names == ("3 objects", "4 objects", "5 objects")
    assert counts(clevr.train) == [2, 2, 2] and counts(clevr.test) == [1, 1, 1]
    for row in range(6):
        assert clevr.train.label(row) == clevr.train.rows[row] % 3


@pytest.mark.parametrize("name", [*sorted({*KNOWN} - {"digits", "emoji"}), "mine", "mine:groups"])
def test_missing_images_are_named_with_place_and_remedy(name, tmp_path, offline):
    with pytest.raises(FileNotFoundError) as caught:
        build(name, tmp_path / "data")
    message = str(caught.value)
    assert str(tmp_path / "data") in message and "--" in message
    assert "leave" in message or "expected" in message or "laid out as" in message


def test_the_cause_of_a_failed_download_is_told(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=r"food-101, and torchvision could not.*no route"):
        build("food101", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"laid out as|stanford_cars"):
        build("cars196", tmp_path)


# ------------------------------------------------------------------------------------------ folders


def test_own_folder_in_halves(mine, tmp_path):
    mine({"a": 5, "b": 4, "c": 2})
    found = build("mine", tmp_path)
    assert counts(found.train) == [3, 2, 1] and counts(found.test) == [2, 2, 1]
    assert not set(identities(found.train)) & set(identities(found.test))
    assert found.class_names == ("a", "b", "c")
    assert found.train.class_names == found.test.class_names == found.class_names
    assert (found.train.name, found.test.name) == (
        "mine.downstream.train",
        "mine.downstream.test",
    )
    assert identities(build("mine", tmp_path).test) == identities(found.test)


def test_a_class_of_one_image_is_left_out(mine, tmp_path, caplog):
    mine({"a": 2, "lonely": 1, "z": 2})
    with caplog.at_level(logging.WARNING):
        found = build("mine", tmp_path)
    assert found.class_names == ("a", "z") and "lonely" in caplog.text
    assert {path.parent.name for path in found.test.paths} == {"a", "z"}


def test_one_class_is_not_enough(mine, tmp_path):
    mine({"a": 4})
    with pytest.raises(ValueError, match=r"mine: classification needs 2 classes of two .*; got 1"):
        build("mine", tmp_path)


def test_groups_as_classes(described, tmp_path):
    grouped, plain = build("mine:groups", tmp_path), build("mine", tmp_path)
    assert grouped.name == "mine:groups" and grouped.class_names == ("early", "late")
    assert identities(grouped.train) == identities(plain.train)  # the same halves
    for row, path in enumerate(grouped.test.paths):
        group = grouped.class_names[grouped.test.label(row)]
        assert group == ("early" if path.parent.name < "c" else "late")


def test_groups_that_there_are_not(mine, tmp_path):
    mine({"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"mine:groups: the classes of mine have no groups"):
        build("mine:groups", tmp_path)
    with pytest.raises(ValueError, match=r"only :groups or :groups_apart .* mine:groups or"):
        build("mine:group", tmp_path)


def test_groups_apart_share_no_class(mine, tmp_path, caplog):
    group_of = {"a": "early", "b": "early", "c": "early", "d": "late", "e": "late", "f": "alone"}
    root = mine(dict.fromkeys(group_of, 2))
    about = {name: {"name": name, "group": group} for name, group in group_of.items()}
    (root / "classes.json").write_text(json.dumps(about))
    found = build("mine:groups_apart", tmp_path)
    assert found.name == "mine:groups_apart" and found.class_names == ("early", "late")
    classes = {}
    for part in ("train", "test"):
        images = getattr(found, part)
        classes[part] = {path.parent.name for path in images.paths}
        for row, path in enumerate(images.paths):
            assert found.class_names[images.label(row)] == group_of[path.parent.name]
        assert len(images) == 2 * len(classes[part])  # all images of a class stay together
    assert not classes["train"] & classes["test"]
    assert classes["train"] | classes["test"] == set("abcde")
    assert [len(classes[part] & set("abc")) for part in ("train", "test")] == [2, 1]
    assert "skipped 1 groups of one class" in caplog.text and "alone" in caplog.text
    assert identities(build("mine:groups_apart", tmp_path).test) == identities(found.test)


def test_no_group_of_two_classes(mine, tmp_path):
    root = mine({"a": 2, "b": 2})
    about = {name: {"name": name, "group": f"group of {name}"} for name in "ab"}
    (root / "classes.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"no group of mine has two classes; use mine:groups$"):
        build("mine:groups_apart", tmp_path)


def test_cub200_keeps_to_the_classes_that_no_run_trains_on(cub200, tmp_path):
    found = build("cub200", tmp_path)
    assert found.class_names == ("Red winged Blackbird", "Brandt Cormorant", "Common Yellowthroat")


def test_cub2011_by_its_lists(cub200, tmp_path):
    files = sorted((cub200 / "images").glob("*/*"))
    lines = [f"{n} {file.parent.name}/{file.name}" for n, file in enumerate(files, start=1)]
    (cub200 / "images.txt").write_text("\n".join(lines) + "\n")
    split = [f"{n} {int(n % 3 == 1)}" for n in range(1, len(files) + 1)]
    (cub200 / "train_test_split.txt").write_text("\n".join(split) + "\n")
    cub = build("cub2011", tmp_path)
    assert cub.n_classes == 5  # all of them
    assert identities(cub.train) == files[::3]
    assert counts(cub.train) == [1] * 5 and counts(cub.test) == [2] * 5


def test_cub2011_and_cars196_without_lists_in_halves(cub200, cars196, tmp_path):
    assert counts(build("cub2011", tmp_path).train) == [2] * 5
    cars = build("cars196", tmp_path)
    assert counts(cars.train) == [1] * 4 and cars.n_classes == 4


def test_resisc45_is_drawn(tmp_path):
    fill(tmp_path / "resisc45", {"airplane": 3, "beach": 3})
    assert counts(build("resisc45", tmp_path).test) == [1, 1]  # never none
    fill(tmp_path / "resisc45", {"airplane": 72, "beach": 75})
    found = build("resisc45", tmp_path)
    assert counts(found.train) == [70, 70] and counts(found.test) == [2, 5]


@pytest.mark.parametrize("parts", [("train", "val"), ("train", "test"), ("train", "val", "test")])
def test_folders_that_are_split_already(tmp_path, parts):
    for number, part in enumerate(parts):
        for label in ("n01", "n02"):
            save_image(tmp_path / "imagenet" / part / label / "x.jpg", number)
    found = build("imagenet", tmp_path)
    assert {path.parents[1].name for path in found.test.paths} == {parts[-1]}
    assert (found.val is not None) == (len(parts) == 3)


def test_folders_must_agree_on_their_classes(tmp_path):
    for label in ("a", "b"):
        save_image(tmp_path / "mine" / "train" / label / "x.jpg", 0)
    save_image(tmp_path / "mine" / "test" / "a" / "x.jpg", 0)
    with pytest.raises(
        ValueError, match=r"need images of the same classes; in one of them only: b"
    ):
        build("mine", tmp_path)


# ------------------------------------------------------------------------------- how they are read


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_of_other_libraries_are_read_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = Image.linear_gradient("L").resize((31, 23))
    stored = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    stored.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = ImageOps.exif_transpose(image)
        for item in (image, image.convert("RGB")):  # torchvision returns either
            read = Wrapped("x", [(item,)], np.zeros(1, np.int64)).read(0)
            assert read.tobytes() == expected.tobytes() and read.size == expected.size


def test_deep_and_transparent_images_of_other_libraries_are_scaled_and_on_white():
    deep = Image.fromarray(np.array([[0, 25_700]], np.uint16))
    clear = Image.new("RGBA", (1, 1), (9, 9, 9, 0))
    images = Wrapped("x", [(deep,), (clear,)], np.zeros(2, np.int64))
    assert images.read(0).getpixel((1, 0)) == (100, 100, 100)
    assert images.read(1).getpixel((0, 0)) == (255, 255, 255)


def test_folders_inside_a_class_of_a_part_are_of_the_class(tmp_path, caplog):
    for part in ("train", "test"):
        for name in ("a/1.png", "a/deeper/2.png", "b/3.png"):
            save_image(tmp_path / "mine" / part / name, 0)
    (tmp_path / "mine" / "train" / "a" / "4.heic").touch()
    sets = build("mine", tmp_path)
    assert counts(sets.train) == [2, 1]
    assert "skipped in" in caplog.text and ".heic (1)" in caplog.text


# ---------------------------------------------------------- folders named as sets that are built in


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]


@pytest.mark.parametrize("name", ["digits", "mnist", "pets", "cifar10", "dtd", "pcam", "cars196"])
def test_a_folder_of_that_name_goes_first(tmp_path, offline, caplog, name):
    fill(tmp_path / name, {"a": 4, "b": 4})
    with caplog.at_level(logging.INFO):
        found = build(name, tmp_path)
    assert found.class_names == ("a", "b") and not found.per_class
    assert {path.parents[2] for path in found.test.paths} == {tmp_path / name}
    assert f"{name}: images of the folder {tmp_path / name / 'images'}" in lines_of(caplog)
    assert is_ours(name, tmp_path)  # retrieval searches it, too


def test_so_do_a_table_and_folders_that_are_split_already(tmp_path, offline):
    for part in ("train", "test"):
        for label in ("a", "b"):
            save_image(tmp_path / "digits" / part / label / "x.jpg", 0)
    assert build("digits", tmp_path).class_names == ("a", "b")
    fill(tmp_path / "elsewhere", {"a": 4, "b": 4})
    (tmp_path / "mnist").mkdir()
    rows = [f"{path},{path.parent.name}" for path in tmp_path.glob("elsewhere/images/*/*")]
    (tmp_path / "mnist" / "manifest.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    found = build("mnist", tmp_path)
    assert found.class_names == ("a", "b")
    assert {path.parents[2] for path in found.test.paths} == {tmp_path / "elsewhere"}


@pytest.mark.parametrize("name", ["digits", "flowers", "mnist"])
def test_a_folder_of_that_name_in_another_layout_is_not_passed_over(tmp_path, offline, name):
    fill(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "images").rename(tmp_path / name)  # class folders without images/ above them
    with pytest.raises(FileNotFoundError, match=rf"{name} holds no folder `images` .*expected"):
        build(name, tmp_path)


def test_without_a_folder_the_line_names_the_library(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        build("digits", tmp_path)
        test_dtd_has_published_validation_images(tmp_path)  # in torchvision's folder dtd/dtd
    assert lines_of(caplog) == [
        "digits: images of scikit-learn", "dtd: images of torchvision's DTD"
    ]  # fmt: skip
    assert not is_ours("digits", tmp_path) and not is_ours("dtd", tmp_path)


def test_published_cars_go_before_class_folders(cars196, tmp_path, offline):
    (tmp_path / "stanford_cars").mkdir()  # incomplete: torchvision is tried, and says what it needs
    with pytest.raises(FileNotFoundError, match="stanford_cars"):
        build("cars196", tmp_path)


def test_an_own_folder_named_emoji_is_split_and_read_as_any_other(tmp_path, caplog):
    """It was called damaged, to be deleted."""
    counts_of = {"a": 4, "b": 4, "c": 4, "d": 4}
    fill(tmp_path / "emoji", counts_of)
    fill(tmp_path / "mine", counts_of)
    (tmp_path / "emoji" / "images" / "c" / "broken.jpg").write_text("no image")
    train, test = splits.read("emoji", tmp_path)
    assert (train.class_names, test.class_names) == (("a", "b"), ("c", "d"))
    assert len(test) == 8 and "1 of 17 images cannot be read" in caplog.text
    assert f"{tmp_path / 'emoji'} is a folder of your own and is used instead" in caplog.text
    found, other = build("emoji", tmp_path), build("mine", tmp_path)
    assert found.class_names == other.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("mark", ["manifest.json", "SOURCES.md"])
def test_a_built_emoji_set_that_is_damaged_is_not_taken_for_an_own_one(tmp_path, mark):
    fill(tmp_path / "emoji", {"a": 4, "b": 4, "c": 4, "d": 4})
    (tmp_path / "emoji" / "classes.json").write_text("{}")
    (tmp_path / "emoji" / mark).write_text("{}")
    with pytest.raises(ValueError, match="emoji is damaged"):
        splits.read("emoji", tmp_path)


def test_an_own_folder_named_openclipart(tmp_path, caplog):
    for number in range(3):
        pair(tmp_path / "openclipart" / "a", f"{number}.jpg", f"drawing {number}", seed=number)
    train = splits.load("openclipart", tmp_path).train
    assert [*train.captions] == ["drawing 0", "drawing 1", "drawing 2"]
    assert f"{tmp_path / 'openclipart'} is a folder of your own" in caplog.text
    fill(tmp_path / "other" / "openclipart", {"a": 2, "b": 2, "c": 2, "d": 2})
    assert splits.load("openclipart", tmp_path / "other").train.class_names == ("a", "b")


# ------------------------------------------------------------------------------------ odd classes


def test_one_class_of_split_folders_or_one_group_is_not_enough(tmp_path, described):
    for part in ("train", "test"):
        save_image(tmp_path / "one" / part / "a" / "x.jpg", 0)
    with pytest.raises(ValueError, match=r"--evaluation_datasets one: .* 2 classes .*; got 1"):
        build("one", tmp_path)
    about = json.loads((described / "classes.json").read_text())
    for entry in about.values():
        entry["group"] = "all"
    (described / "classes.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"mine:groups: .* 2 classes .*; got 1"):
        build("mine:groups", tmp_path)


def test_one_image_of_each_class_is_not_enough(mine, tmp_path):
    mine({"a": 1, "b": 1, "c": 1})
    with pytest.raises(ValueError, match=r"mine: .* 2 classes of two images or more; got 0"):
        build("mine", tmp_path)


def test_a_group_whose_only_class_has_one_image_is_left_out(mine, tmp_path):
    root = mine({"a": 2, "b": 2, "c": 1})
    about = {name: {"name": name, "group": f"group of {name}"} for name in "abc"}
    (root / "classes.json").write_text(json.dumps(about))
    assert build("mine:groups", tmp_path).class_names == ("group of a", "group of b")
