"""Layouts, splits, and the errors of images that are missing or misplaced."""

import argparse
import json

import numpy as np
import pytest

import datasets
from datasets import splits
from datasets.caption_set import CaptionSet
from datasets.folders import clean, read_class_folders
from datasets.splits import draw_classes, fold, hold_out, read
from tests.datasets.captioned import pair
from tests.datasets.conftest import load, save_image

pytestmark = pytest.mark.usefixtures("own_cache")


# --------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("Acura Integra Type R 2001", "Acura Integra Type R 2001"),
        ("014.BMW 3 Series Sedan 2012", "BMW 3 Series Sedan 2012"),
        *[("Bentley Supersports Conv. Convertible 2012",) * 2],
        ("7up", "7up"),
        ("red__panda_", "red panda"),
        ("12.", "12."),
    ],
)
def test_class_names_become_words(folder, words):
    assert clean([folder]) == (words,)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("2.5mm jack", "3.5mm jack"), ("2.5mm jack", "3.5mm jack")),  # no index at all
        (("1.5 V", "9 V", "12.V"), ("1.5 V", "9 V", "V")),
        (("001.jack", "002.jack", "003.plug"), ("001.jack", "002.jack", "003.plug")),
        (("1.Cat", "2.cat"), ("1.Cat", "2.cat")),
        (("001_red_fox", "002_kit_fox"), ("red fox", "kit fox")),
        (("001 fox", "2_crane", "03._tench"), ("fox", "crane", "tench")),
        (("0_fox", "1_crane", "2_tench"), ("fox", "crane", "tench")),
        (("12 oz can", "24 oz bottle"), ("12 oz can", "24 oz bottle")),
        (("100_dollars", "200_euros"), ("100 dollars", "200 euros")),
        (("1-propanol", "2-butanol"), ("1-propanol", "2-butanol")),
        (("2019 ford", "2020 bmw"), ("2019 ford", "2020 bmw")),
        (("3 wheeler", "4 wheeler", "tram"), ("3 wheeler", "4 wheeler", "tram")),
        (("1.花", "2.草"), ("花", "草")),
        (("a_b", "a b", "1.c"), ("a b", "a b", "c")),  # alike before the index is cut
    ],
)
def test_an_index_is_cut_only_where_it_is_one(folders, words):
    assert clean(folders) == words


def test_classes_of_the_same_words_are_named(mine, tmp_path, caplog):
    root = mine({"red_fox": 1, "red fox": 1, "Crane": 1, "crane": 1, "2.5mm": 1, "3.5mm": 1})
    assert read_class_folders(root).class_names == (
        *("2.5mm", "3.5mm", "Crane", "crane", "red fox", "red fox"),
    )
    (warning,) = caplog.messages
    assert "2 names are those of several classes" in warning
    assert "Crane = crane, red fox = red_fox" in warning
    caplog.clear()
    (root / "classes.json").write_text(json.dumps({"2.5mm": "jack", "3.5mm": {"name": "JACK"}}))
    read_class_folders(root)
    assert "3 names are those of several classes" in caplog.text and "2.5mm = 3.5mm" in caplog.text


def test_cub200_trains_on_the_first_half_of_the_sorted_classes(cub200):
    data = load(cub200)
    assert data.train.class_names == ("Black footed Albatross", "Laysan Albatross")
    assert data.test.class_names == (
        *("Red winged Blackbird", "Brandt Cormorant", "Common Yellowthroat"),
    )
    assert data.val is None
    assert (data.train.name, len(data.train)) == ("cub200.train", 6)
    assert (data.test.name, len(data.test)) == ("cub200.test", 9)
    for images in (data.train, data.test):
        for path, label in zip(images.paths, images.labels, strict=True):
            assert clean([path.parent.name]) == (images.class_names[label],)


@pytest.mark.parametrize(
    ("asked", "train", "test"),
    [
        ({}, "abc", "defg"),
        ({"test_fraction": 0.5}, "abc", "defg"),
        ({"test_fraction": 0.3}, "abcd", "efg"),
        ({"test_classes": 2}, "abcde", "fg"),
        ({"test_classes": 5}, "ab", "cdefg"),
        ({"test_classes": 0}, "abcdefg", None),
        ({"test_fraction": 0.0}, "abcdefg", None),
    ],
)
def test_the_last_classes_are_tested_on(mine, asked, train, test):
    data = load(mine(dict.fromkeys("abcdefg", 1)), **asked)
    assert data.train.class_names == tuple(train)
    assert (data.test and data.test.class_names) == (test and tuple(test))


def test_a_share_is_of_the_shuffled_classes_of_emoji(mine, tmp_path, monkeypatch):
    """The test classes of a smaller share are among those of the usual one."""
    monkeypatch.setattr(splits, "is_emoji", lambda root: True)
    root = mine({f"{number:02}": 1 for number in range(20)})
    half, fifth = (load(root, test_fraction=share).test.class_names for share in (0.5, 0.2))
    assert len(fifth) == 4 and set(fifth) < set(half)
    assert half != tuple(f"{number:02}" for number in range(10, 20))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "at least 4 are needed. --test_classes 0 trains on all"),
        ({"test_classes": 1}, "--test_classes 1 leaves 2 classes to train on and 1 to test on; .*"
                              "holds 3 classes with images .a, b, c., .* use --test_classes 0"),
        ({"test_classes": 9}, "--test_classes 9 leaves 0 classes to train on and 9 to test on"),
        ({"test_fraction": 0.6}, "--test_fraction 0.6 leaves 1 classes to train on and 2 to test"),
    ],
)  # fmt: skip
def test_too_few_classes_on_a_side_are_refused(mine, asked, message):
    with pytest.raises(ValueError, match=message):
        load(mine(dict.fromkeys("abc", 2)), **asked)


def test_cars196_keeps_whole_names(cars196):
    data = load(cars196)
    assert data.train.class_names == ("Acura Integra Type R 2001", "BMW 3 Series Sedan 2012")
    assert data.test.class_names == (
        "Bentley Continental Supersports Conv. Convertible 2012",
        "Ram C-V Cargo Van Minivan 2012",
    )


def test_online_products_follows_its_lists_and_is_named_by_super_classes(online_products):
    data = load(online_products)
    names = [path.name for path in data.train.paths][:2]
    assert names == ["111085122871_0.JPG", "111085122871_1.JPG"]
    assert list(data.train.labels) == [0, 0, 1, 1, 2]
    assert data.train.class_names == ("bicycle", "bicycle", "coffee maker")
    assert data.train.class_groups == data.train.class_names
    assert list(data.test.labels) == [0, 0, 1]
    assert data.test.class_names == ("bicycle", "toaster")


def test_names_groups_and_captions_come_from_files(described):
    data = load(described)
    assert data.train.class_names == ("the a", "the b")
    assert data.train.class_groups == ("early", "early")
    assert data.test.class_groups == ("late", "late")
    assert data.train.captions == ("a number 0", "a number 1", "b number 0", "b number 1")
    assert data.test.captions == ("c number 0", "c number 1", "d number 0", "d number 1")


def test_an_empty_class_folder_is_skipped_and_named(cub200, caplog):
    (cub200 / "images" / "150.Sage_Thrasher").mkdir()
    (cub200 / "images" / ".DS_Store").write_bytes(b"")
    data = load(cub200)
    assert data.train.n_classes + data.test.n_classes == 5
    assert "skipped 1 class folders without images: 150.Sage_Thrasher" in caplog.text


def test_classes_with_one_image_are_allowed_and_counted(mine, tmp_path, caplog):
    mine({"a": 1, "b": 3, "c": 2, "d": 2})
    train, test = read("mine", tmp_path)
    assert [len(rows) for rows in train.rows_by_class] == [1, 3]
    assert "mine.train: 1 classes have one image, which retrieval cannot match" in caplog.text
    assert "mine.test" not in caplog.text
    assert len(test) == 4


# ----------------------------------------------------------------------------- images and captions


@pytest.fixture
def captioned(tmp_path):
    root = tmp_path / "captioned"
    for number in range(3):
        pair(root / "drawings", f"{number}.jpg", f"drawing {number}", seed=number)
    return root


def test_all_images_with_captions_are_trained_on(captioned, monkeypatch):
    train, val, test = load(captioned)
    assert isinstance(train, CaptionSet) and (val, test) == (None, None)
    assert (train.name, len(train)) == ("captioned", 3)
    assert list(train.captions) == ["drawing 0", "drawing 1", "drawing 2"]
    for flags, message in (
        (
            {"use_tv_split": True},
            "use_tv_split holds out classes, --dataset captioned has captions",
        ),
        ({"cv_folds": 4}, "cv_folds holds out classes, --dataset captioned has captions"),
    ):
        with pytest.raises(ValueError, match=message):
            load(captioned, **flags)

    monkeypatch.setattr("datasets.splits.openclipart.prepare", lambda source_path: captioned)
    assert len(load(captioned.parent / "openclipart").train) == 3


# --------------------------------------------------------------------------------------- errors


def test_a_missing_folder_is_answered_with_what_is_known_and_present(cub200):
    there = cub200.parent
    with pytest.raises(FileNotFoundError) as caught:
        read("cub20", there)
    for text in (
        f"--dataset cub20: there is no folder {there / 'cub20'}",
        "closest first: cub200",
        f"Datasets in --source_path {there}: cub200",
        f"{there}/cub20/images/<first class>/*.jpg",
    ):
        assert text in str(caught.value)


def test_a_missing_benchmark_shows_its_own_tree(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Datasets in --source_path .*: none;") as caught:
        read("online_products", tmp_path / "nowhere")
    assert "online_products/Info_Files/Ebay_train.txt" in str(caught.value)
    assert "closest first" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (["train/"], FileNotFoundError, r"no folder `images` \(it holds: train\)"),
        (["images/1.jpg"], FileNotFoundError, r"holds 1 images directly.*\n.*<first class>"),
        (["images/a/deeper/"], FileNotFoundError, "holds 1 class folders and no images in them"),
        (["images/a/1.jpg"], ValueError, "holds 1 classes .*at least 4 are needed"),
        ([f"images/{name}/1.jpg" for name in "abc"], ValueError, "holds 3 classes .*at least 4"),
    ],
)
def test_a_wrong_layout_is_refused(tmp_path, entries, error, message):
    for entry in entries:
        if entry.endswith("/"):
            (tmp_path / "mine" / entry).mkdir(parents=True)
        else:
            save_image(tmp_path / "mine" / entry, seed=0)
    with pytest.raises(error, match=message):
        read("mine", tmp_path)


def test_online_products_names_a_missing_list_and_a_wrong_line(online_products):
    file = online_products / "Info_Files" / "Ebay_train.txt"
    file.write_text(file.read_text() + "6,3,4,chair_final/1.JPG\n")
    with pytest.raises(ValueError, match=r"Ebay_train.txt, line 7: '6,3,4,chair_.*' is not"):
        read("online_products", online_products.parent)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"the list .*Ebay_train.txt is missing"):
        read("online_products", online_products.parent)


def test_descriptions_and_tags_are_one_text_or_several(described):
    about = {
        "a": {"description": " a  thing ", "tags": ["x", "y", "x", " "]},
        "b": {"description": ["one", "two"], "tags": None},
        "c": {"tags": "z"},
    }
    (described / "classes.json").write_text(json.dumps(about))
    train, test = read("mine", described.parent)
    assert train.class_descriptions == (("a thing",), ("one", "two"))
    assert train.class_tags == (("x", "y"), ())
    assert test.class_descriptions == ((), ()) and test.class_tags == (("z",), ())
    (described / "classes.json").write_text(json.dumps({"a": {"tags": ""}}))
    assert read("mine", described.parent)[0].class_tags == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_several_captions_and_names_alone(described, encoding):
    captions = json.loads((described / "captions.json").read_text())
    captions |= {"a/0.png": ["one", " two\n lines ", ""], "a/1.png": "one  of\ntwo lines"}
    (described / "captions.json").write_text(json.dumps(captions), encoding=encoding)
    names = {"a": "the  aa", "b": {"group": "x"}, "c": "the c", "d": {"name": "d", "group": "y"}}
    del names["b"]["group"], names["d"]["group"]
    (described / "classes.json").write_text(json.dumps(names), encoding=encoding)
    train = read("mine", described.parent)[0]
    assert train.captions[:3] == ("one\ntwo lines", "one of two lines", "b number 0")
    assert train.class_names == ("the aa", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.json", {"a/0.png": "one"}, "no caption for 7 of 8 images: a/1.png"),
        ("captions.json", {f"{c}/{i}.png": " " for c in "abcd" for i in (0, 1)}, "for 8 of 8"),
        ("captions.json", {"a/0.png": 3}, "captions.json: caption of a/0.png must .* a number"),
        ("captions.json", {"a/0.png": ["x", None]}, "of a/0.png must .* got null in a list"),
        ("captions.json", {"a/0.png": {"en": "x"}}, "of a/0.png must .* got an object"),
        ("classes.json", {"a": {"group": "x"}}, "gives a group to 1 of 4 classes"),
        ("classes.json", [1], "classes.json must hold an object; got a list"),
        ("classes.json", None, "classes.json is not JSON"),
        ("classes.json", {"a": 1}, "classes.json: 'a' must be a name or .* got a number"),
        ("classes.json", {"a": {"name": ["x"]}}, "name of 'a' must be a text; got a list"),
        ("classes.json", {"a": {"name": "x", "group": 1}}, "group of 'a' must .* got a number"),
        ("classes.json", {"a": {"tags": 1}}, "classes.json: tags of 'a' must be .* got a number"),
        ("classes.json", {"a": {"tags": ["x", []]}}, "tags of 'a' must be .* a list in a list"),
        ("classes.json", {"a": {"tags": "['x']"}}, "tags of 'a' .* printed as text, .* write a"),
        ("classes.json", {"a": {"description": {}}}, "description of 'a' must be .* an object"),
    ],
)
def test_words_that_do_not_fit_are_refused_by_file(described, name, content, message):
    (described / name).write_text("{" if content is None else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read("mine", described.parent)


# ------------------------------------------------------------------------------- unreadable images


def test_unreadable_images_are_dropped_once_with_count_and_paths(cub200, caplog):
    albatross = cub200 / "images" / "001.Black_footed_Albatross"
    (albatross / "0.jpg").write_bytes(b"")
    (albatross / "1.jpg").write_bytes(b"<html>404</html>")
    whole = (cub200 / "images" / "002.Laysan_Albatross" / "0.jpg").read_bytes()
    truncated = cub200 / "images" / "002.Laysan_Albatross" / "1.jpg"
    truncated.write_bytes(whole[: len(whole) * 2 // 3])
    data = load(cub200)
    assert len(data.train) == 3 and len(data.test) == 9
    assert "3 of 15 images cannot be read and are skipped" in caplog.text
    for path in (albatross / "0.jpg", albatross / "1.jpg", truncated):
        assert caplog.text.count(f"  {path}: ") == 1
        assert path not in data.train.paths


def test_a_class_left_without_images_goes_and_the_others_are_renumbered(cub200, caplog):
    for path in (cub200 / "images" / "002.Laysan_Albatross").iterdir():
        path.write_bytes(b"")
    data = load(cub200)
    assert data.train.class_names == ("Black footed Albatross", "Red winged Blackbird")
    assert "skipped 1 classes without a readable image" in caplog.text


def test_missing_listed_images_are_dropped_unless_all_are_missing(online_products, caplog):
    images = sorted((online_products / "images").rglob("*.JPG"))
    images[0].unlink()
    assert len(load(online_products).train) == 4
    assert "1 of 8 images cannot be read" in caplog.text
    for path in images[1:]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="none of the 5 images can be read"):
        read("online_products", online_products.parent)


def test_images_are_checked_once_and_again_when_they_change(cub200, own_cache, monkeypatch):
    load(cub200)
    assert not list(cub200.glob(".*"))  # the results are in the cache
    checked = []
    monkeypatch.setattr("datasets.readable.fault", lambda path: checked.append(path) or "")
    load(cub200)
    assert checked == []
    changed = cub200 / "images" / "002.Laysan_Albatross" / "1.jpg"
    changed.write_bytes(b"something else")
    load(cub200)
    assert checked == [changed]
    (record,) = own_cache.glob("checked/cub200-*/tensors.pt")
    record.write_bytes(b"damaged")
    load(cub200)
    assert len(checked) == 16


# ---------------------------------------------------------------------------- train and validation


@pytest.fixture
def twenty(mine, tmp_path):
    """Training images of twenty classes, five each."""
    mine({f"{number:02d}": 5 for number in range(40)})
    return read("mine", tmp_path)[0]


def test_validation_holds_out_whole_classes(twenty):
    train, val = hold_out(twenty, 0.8)
    assert (train.n_classes, val.n_classes) == (16, 4)
    assert (train.name, val.name) == ("mine.train", "mine.val")
    assert not set(train.class_names) & set(val.class_names)
    assert set(train.paths) | set(val.paths) == set(twenty.paths)
    assert sorted(train.class_names) != sorted(twenty.class_names)[:16]  # shuffled


def test_validation_by_samples_holds_out_images_of_every_class(twenty):
    train, val = hold_out(twenty, 0.8, by_samples=True)
    assert train.class_names == val.class_names == twenty.class_names
    assert {len(rows) for rows in train.rows_by_class} == {4}
    assert {len(rows) for rows in val.rows_by_class} == {1}
    assert not set(train.paths) & set(val.paths)


@pytest.mark.parametrize("by_samples", [False, True])
def test_the_split_follows_the_seed(twenty, by_samples):
    first, again, other = (hold_out(twenty, 0.6, by_samples=by_samples, seed=s) for s in (3, 3, 4))
    assert first[1].paths == again[1].paths
    assert first[1].paths != other[1].paths


def test_flags_reach_the_split_and_are_named_in_errors(cub200):
    flags = argparse.Namespace(
        dataset="cub200",
        source_path=str(cub200.parent),
        use_tv_split=True,
        tv_split_perc=0.6,
        tv_split_by_samples=True,
        **{"test_classes": None, "test_fraction": None},
        **{"cv_folds": 0, "cv_fold": 0, "train_classes": 0, "seed": 0},
    )
    data = datasets.build(flags)
    assert data.val is not None and (len(data.train), len(data.val)) == (4, 2)
    flags.cv_folds = 3
    with pytest.raises(
        ValueError, match=r"^--cv_folds 3 leaves fewer than 2 of 2 training classes"
    ):
        datasets.build(flags)


def test_training_classes_are_drawn_by_the_seed_and_contain_each_other(twenty):
    few, more = draw_classes(twenty, 4), draw_classes(twenty, 7)
    assert few.n_classes == 4 and more.n_classes == 7
    assert set(few.class_names) < set(more.class_names) < set(twenty.class_names)
    assert all(len(rows) == 5 for rows in few.rows_by_class) and few.name == twenty.name
    assert draw_classes(twenty, 4).paths == few.paths
    assert draw_classes(twenty, 4, seed=1).class_names != few.class_names
    for n in (1, 21):
        with pytest.raises(ValueError, match=rf"train_classes must be from 2 to 20, .* got {n}"):
            draw_classes(twenty, n)


def test_training_classes_are_drawn_beside_those_held_out(mine, tmp_path):
    mine(dict.fromkeys("abcdefghijkl", 2))
    data = splits.load("mine", tmp_path, use_tv_split=True, tv_split_perc=0.67, train_classes=2)
    assert data.train.n_classes == 2 and data.val.n_classes == 2
    assert not {*data.train.class_names} & {*data.val.class_names, *data.test.class_names}
    assert data.test.class_names == tuple("ghijkl")


def test_a_share_that_empties_a_part_is_refused(twenty):
    with pytest.raises(ValueError, match=r"tv_split_perc 0.97 splits 20 .* into 19 and 1"):
        hold_out(twenty, 0.97)
    with pytest.raises(ValueError, match=r"tv_split_perc 0.95 .*largest class has 5"):
        hold_out(twenty, 0.95, by_samples=True)


def test_a_class_of_one_image_stays_in_train_by_samples(mine, tmp_path):
    mine({"a": 1, "b": 4, "c": 2, "d": 2})
    train, val = hold_out(read("mine", tmp_path)[0], 0.5, by_samples=True)
    assert train.class_names == ("a", "b") and val.class_names == ("b",)
    assert np.array_equal(np.bincount(train.labels), [1, 2])


# ------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("n_folds", [2, 3, 7, 10])
def test_each_class_is_held_out_in_one_fold_and_trained_on_in_the_others(twenty, n_folds):
    held_out = []
    for number in range(n_folds):
        train, val = fold(twenty, n_folds, number)
        assert not set(train.class_names) & set(val.class_names)
        assert set(train.paths) | set(val.paths) == set(twenty.paths)
        assert len(train) + len(val) == len(twenty)
        assert (train.name, val.name) == ("mine.train", f"mine.fold{number}of{n_folds}")
        held_out.append(val.class_names)
    # Runs of the sorted classes, as evenly as can be.
    assert [name for names in held_out for name in names] == list(twenty.class_names)
    sizes = [len(names) for names in held_out]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_folds_leave_test_alone_and_do_not_follow_the_seed(mine):
    root = mine({f"{number:02d}": 2 for number in range(16)})
    whole = load(root)
    folds = [load(root, cv_folds=4, cv_fold=1, seed=seed) for seed in (0, 1)]
    assert folds[0].val.paths == folds[1].val.paths
    assert folds[0].val.class_names == ("02", "03")
    assert folds[0].train.class_names == ("00", "01", "04", "05", "06", "07")
    assert folds[0].test.paths == whole.test.paths and whole.val is None


@pytest.mark.parametrize(
    ("folds", "number", "message"),
    [
        (1, 0, "cv_folds must be at least 2; got 1"),
        (4, 4, "cv_fold must be in 0 to 3; got 4"),
        (4, -1, "cv_fold must be in 0 to 3; got -1"),
        (11, 0, "cv_folds 11 leaves fewer than 2 of 20 training classes .* use 10 or fewer"),
    ],
)
def test_impossible_folds_are_refused(twenty, folds, number, message):
    with pytest.raises(ValueError, match=message):
        fold(twenty, folds, number)
