"""Labelled images from a table, and the errors of a wrong table."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from datasets import check, downstream
from datasets.caption_index import is_caption_set
from datasets.caption_set import CaptionSet
from datasets.manifest import read_manifest
from datasets.splits import read
from tests.datasets.captioned import pair
from tests.datasets.conftest import fill, load, save_image

pytestmark = pytest.mark.usefixtures("own_cache")

HALVES = ("a", "b", "c", "d")


def table(root: Path, rows, name="manifest.csv", images=True) -> Path:
    """A manifest of these dictionaries, and an image for each path."""
    root.mkdir(parents=True, exist_ok=True)
    delimiter = "\t" if name.endswith(".tsv") else ","
    with (root / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    if images:
        for seed, row in enumerate(rows):
            if row.get("path") and not (root / row["path"]).exists():
                save_image(root / row["path"], seed)
    return root / name


def plain(labels=HALVES, per_class=2, **more):
    return [
        {"path": f"{label}{number}.jpg", "label": label, **more}
        for label in labels
        for number in range(per_class)
    ]


def divided(**splits):
    """``divided(train="aabb", test="cc")``: a row for each letter, which is its label."""
    return [
        {"path": f"{split}{place}.jpg", "label": label, "split": split}
        for split, labels in splits.items()
        for place, label in enumerate(labels)
    ]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "mine"


# ----------------------------------------------------------------------------------- what is read


def test_folders_and_a_manifest_of_them_give_the_same_sets(tmp_path):
    """The same files, named by folders and by a table in another order."""
    folders = fill(tmp_path / "folders", {"001.Red_Fox": 2, "cat": 3, "dog": 2, "owl": 2})
    files = sorted((folders / "images").rglob("*.jpg"), reverse=True)
    rows = [{"label": file.parent.name, "path": str(file)} for file in files]
    table(tmp_path / "listed", rows, images=False)
    for one, other in zip(read("folders", tmp_path), read("listed", tmp_path), strict=True):
        assert one.class_names == other.class_names
        assert dict(zip(one.paths, one.labels, strict=True)) == dict(
            zip(other.paths, other.labels, strict=True)
        )
    assert read("listed", tmp_path)[0].class_names == ("Red Fox", "cat")


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.tsv"])
def test_captions_with_commas_quotes_and_lines(root, name):
    rows = plain(per_class=1, caption='a "fox",\n  red')
    assert read_manifest(table(root, rows, name))["all"].captions == ('a "fox", red',) * 4


def test_parquet_gives_what_csv_gives(tmp_path):
    rows = [dict(row, weight=2) for row in divided(train="aabb", test="cdcd")]
    as_text = read_manifest(table(tmp_path / "mine", rows))
    numbers = {"a": 10, "b": 9, "c": 11, "d": 12}  # labels may be numbers there
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns["label"] = [numbers[label] for label in columns["label"]]
    (tmp_path / "mine" / "manifest.csv").unlink()
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "mine" / "manifest.parquet")
    as_table = read_manifest(tmp_path / "mine" / "manifest.parquet")
    assert list(as_text) == list(as_table) == ["train", "test"]
    assert as_text["train"].paths == as_table["train"].paths
    assert as_table["train"].class_names == ("10", "9")  # in the order of text
    assert list(as_table["train"].labels) == [0, 0, 1, 1]


def test_a_spreadsheet_s_mark_capitals_and_blank_lines_are_no_matter(root):
    file = table(root, plain())
    text = file.read_text().replace("path,label", " Path ,LABEL") + "\n,\n\n"
    file.write_bytes(text.encode("utf-8-sig"))
    assert len(read_manifest(file)["all"]) == 8


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write_under_csv(root, separator, encoding):
    file = table(root, plain(caption="höher, weiter; schneller"))
    rows = list(csv.reader(file.open(encoding="utf-8")))
    with file.open("w", newline="", encoding=encoding) as lines:
        csv.writer(lines, delimiter=separator).writerows(rows)
    images = read_manifest(file)["all"]
    assert images.captions == ("höher, weiter; schneller",) * 8 and images.n_classes == 4


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_ends_of_lines(root, end):
    file = table(root, plain())
    file.write_bytes(file.read_text().replace("\n", end).encode())
    assert len(read_manifest(file)["all"]) == 8


def test_wide_characters_without_their_mark_are_refused(root):
    file = table(root, plain())
    file.write_bytes(file.read_text().encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"manifest.csv cannot be read: it must be in UTF-8, or"):
        read_manifest(file)


def test_a_line_for_each_caption_and_a_list_of_them_give_the_same(tmp_path):
    rows = [
        *plain("ab", 1, caption="one"),
        {"path": "c0.jpg", "label": "c", "caption": "only"},
        *plain("ba", 1, caption=" two\nlines "),
        {"path": "./x/../a0.jpg", "label": "a", "caption": "three"},  # another spelling
    ]
    (tmp_path / "mine" / "x").mkdir(parents=True)
    captions = ("one\ntwo lines\nthree", "one\ntwo lines", "only")
    images = read_manifest(table(tmp_path / "mine", rows))["all"]
    assert images.captions == captions and list(images.labels) == [0, 1, 2]
    columns = {"path": ["a0.jpg", "b0.jpg", "c0.jpg"], "label": ["a", "b", "c"]}
    columns["caption"] = [["one", "two lines", "three", " "], ["one", "two  lines"], ["only"]]
    file = tmp_path / "mine" / "manifest.parquet"
    pyarrow.parquet.write_table(pa.table(columns), file)
    assert read_manifest(file)["all"].captions == captions


@pytest.mark.parametrize("kind", [int, float, str])
def test_numbers_are_the_same_labels_in_every_column(root, kind):
    labels = [kind(label) for label in (1, 1, 2, 3, 10)]
    columns = {"path": [f"{i}.jpg" for i in range(5)], "label": labels}
    for row, path in enumerate(columns["path"]):
        save_image(root / path, row)
    pyarrow.parquet.write_table(pa.table(columns), root / "manifest.parquet")
    assert read_manifest(root / "manifest.parquet")["all"].class_names == ("1", "10", "2", "3")


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("label", float("nan"), "line 1: the label is empty; fill it in"),
        ("label", None, "line 1: the label is empty"),
        ("label", "nan", "line 1: the label 'nan' stands for a missing value"),
        ("label", "<NA>", "line 1: the label '<NA>' stands for a missing value"),
        ("label", "#N/A", "line 1: the label '#N/A' stands for a missing value"),
        ("label", ["a"], "line 1: the label must be a text or a number; got a list"),
        ("path", {"bytes": b""}, "line 1: the path must be a text or a number; got an object"),
        ("caption", 3.5, "line 1: the caption must be a text or a list of texts; got a number"),
        ("caption", ["a", None], "line 1: the caption must be .* got null in a list"),
        ("caption", {"en": "a"}, "line 1: the caption must be .* got an object"),
    ],
)
def test_cells_of_other_types_are_refused_by_line(root, column, cell, message):
    rows = plain(caption="a drawing")
    table(root, rows)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns[column] = [cell] * 8  # a column holds values of one type
    pyarrow.parquet.write_table(pa.table(columns), root / "manifest.parquet")
    with pytest.raises(ValueError, match=message):
        read_manifest(root / "manifest.parquet")


def test_splits_are_what_the_table_says(root):
    table(root, divided(train="aabb", val="aac", test="ddee"))
    data = load(root)
    assert [images.name for images in data] == ["mine.train", "mine.val", "mine.test"]
    assert data.train.class_names == ("a", "b") and list(data.train.labels) == [0, 0, 1, 1]
    assert data.val.class_names == ("a", "c") and list(data.val.labels) == [0, 0, 1]
    assert data.test.class_names == ("d", "e") and data.test.queries is None
    # The flag that asks for validation images takes those that there are.
    assert load(root, use_tv_split=True).val.paths == data.val.paths


def test_train_alone_is_trained_on_for_deployment(root):
    names = [("a0.jpg", "a"), ("a1.jpg", "a"), ("b0.jpg", "b"), ("b1.jpg", "b")]
    table(root, [{"path": path, "label": label, "split": "train"} for path, label in names])
    data = load(root)
    assert data.train.class_names == ("a", "b") and (data.val, data.test) == (None, None)
    with pytest.raises(ValueError, match="--test_classes 0 splits classes, but"):
        load(root, test_classes=0)
    assert len(downstream.labelled(root.name, root.parent)) == 4  # unseen by another run


def test_queries_and_gallery_are_one_test_set(root, caplog):
    table(root, divided(query="cdf", train="aabb", gallery="ddcce"))
    test = load(root).test
    assert list(test.queries) == [True] * 3 + [False] * 5
    assert [test.class_names[label] for label in test.labels] == list("cdfddcce")
    assert list(test.subset([7, 0], "part").queries) == [False, True]
    assert "mine.test: ignored 1 queries without an image of their class" in caplog.text


def test_words_and_groups_come_from_a_file(root):
    table(root, plain())
    groups = {"a": "early", "b": "early", "c": "late", "d": "late"}
    about = {label: {"name": f"the {label}", "group": group} for label, group in groups.items()}
    (root / "classes.json").write_text(json.dumps(about))
    train, test = read("mine", root.parent)
    assert train.class_names == ("the a", "the b") and test.class_groups == ("late", "late")


def test_a_manifest_goes_before_class_folders(root):
    fill(root, dict.fromkeys("wxyz", 2))
    table(root, [dict(row, path=f"images/w/{n % 2}.jpg") for n, row in enumerate(plain("ab", 1))])
    assert set(read_manifest(root / "manifest.csv")["all"].class_names) == {"a", "b"}
    with pytest.raises(ValueError, match=r"manifest.csv holds 2 classes with images \(a, b\)"):
        read("mine", root.parent)


def test_unreadable_images_are_dropped_wherever_they_lie(tmp_path, caplog):
    rows = [{**row, "path": str(tmp_path / "elsewhere" / row["path"])} for row in plain()]
    table(tmp_path / "mine", rows)
    (tmp_path / "elsewhere" / "a0.jpg").write_bytes(b"")
    assert len(read("mine", tmp_path)[0]) == 3
    assert "1 of 8 images cannot be read" in caplog.text


def test_frozen_features_are_judged_on_test(root):
    table(root, divided(train="aabb", test="ccccdddd"))
    assert downstream.is_ours("mine", root.parent)
    judged = downstream.build("mine", root.parent)
    assert judged.class_names == ("c", "d") and len(judged.train.paths) == 4


# ------------------------------------------------------------------------ with or without captions


def test_labels_make_a_labelled_set_and_their_lack_a_caption_set(tmp_path):
    table(tmp_path / "labelled", plain(caption="a drawing"))
    table(tmp_path / "captioned", [{"path": "1.jpg", "caption": "a drawing"}])
    assert not is_caption_set(tmp_path / "labelled") and is_caption_set(tmp_path / "captioned")
    train = load(tmp_path / "labelled").train
    assert train.captions == ("a drawing",) * 4 and train.caption(0) == "a drawing"
    assert isinstance(load(tmp_path / "captioned").train, CaptionSet)


def test_captions_beside_the_images_do_not_hide_the_labels(root):
    for row in plain():
        pair(root, row["path"], "a caption beside it")
    assert is_caption_set(root)
    table(root, plain())
    assert not is_caption_set(root) and read("mine", root.parent)[0].n_classes == 2


def test_another_table_with_labels_is_a_caption_set_still(root):
    rows = [{"path": "1.jpg", "caption": "a drawing", "label": "drawing"}]
    table(root, rows, name="pairs.csv")
    assert is_caption_set(root)


def test_a_misspelt_column_of_labels_is_pointed_at(tmp_path, caplog):
    rows = [{"path": row["path"], "lable": row["label"]} for row in plain()]
    table(tmp_path / "mine", rows)
    with pytest.raises(ValueError, match=r"has the columns path, lable; .* a column `label`"):
        load(tmp_path / "mine")
    fill(tmp_path / "folders", dict.fromkeys("wxyz", 2))
    table(tmp_path / "folders", rows)
    assert read("folders", tmp_path)[0].class_names == ("w", "x")
    assert "manifest.csv, which has no column `label` (it has: path, lable)" in (caplog.text)


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": "a"}], r"manifest.csv has no column `path` \(it has: label\); it needs path"),
        ([], r"manifest.csv lists no images"),
        ([("a0.jpg", "a", "train"), ("a1.jpg", " ", "train")], r"line 3: the label is empty; fill"),
        ([("", "a", "train")], r"line 2: the path is empty"),
        ([("a0.jpg", "a", "tset")], r"line 2: the split 'tset' is unknown; use one of train, val"),
        ([("a0.jpg", "a", "")], r"line 2: the split '' is unknown"),
        (
            [("a0.jpg", "a", "train"), ("a0.jpg", "b", "test")],
            r"line 3: .*a0.jpg is on line 2 already",
        ),
        (
            [("a0.jpg", "a", "train"), ("a1.jpg", "b", "test"), ("a2.jpg", "a", "test")],
            r"line 4: the label 'a' is in test, and on line 2 in train; .*\(shared: a\)",
        ),
        (
            [("a0.jpg", "a", "train"), ("a1.jpg", "b", "val"), ("a2.jpg", "b", "test")],
            r"line 4: the label 'b' is in test, and on line 3 in val",
        ),
        (
            [("a0.jpg", "a", "train"), ("a1.jpg", "b", "query"), ("a2.jpg", "a", "gallery")],
            r"line 4: the label 'a' is in gallery, and on line 2 in train",
        ),
        (
            [("a0.jpg", "a", "train"), ("a1.jpg", "b", "test"), ("a2.jpg", "b", "query")],
            r"line 4: query stands beside test \(1 train, 1 test, 1 query\)",
        ),
        (
            [("a0.jpg", "a", "train"), ("a1.jpg", "b", "query")],
            r"names 1 train, 1 query images; it needs train, and may have test, or both query and",
        ),
        ([("a0.jpg", "a", "test")], r"names 1 test images; it needs train"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_file_line_and_value(root, rows, message):
    names = ("path", "label", "split")
    rows = [row if isinstance(row, dict) else dict(zip(names, row, strict=True)) for row in rows]
    file = table(root, rows or [{"path": "", "label": ""}])
    if not rows:
        file.write_text("path,label\n")
    with pytest.raises(ValueError, match=message):
        read_manifest(file)


def test_images_that_do_not_exist_are_counted(root):
    file = table(root, plain())
    for name in ("a1.jpg", "d0.jpg"):
        (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"line 3: .*no image .*a1.jpg, and 1 more of 8"):
        read_manifest(file)


def test_some_captions_only_are_refused(root):
    rows = plain(per_class=1, caption="one")
    rows[2]["caption"] = " "
    with pytest.raises(ValueError, match=r"line 4: the caption is empty, and so are those of 0"):
        read_manifest(table(root, rows))


def test_a_line_with_too_few_cells_and_a_file_that_is_no_text(root):
    file = table(root, plain(caption="x"))
    text = file.read_text()
    file.write_text(text.replace("a1.jpg,a,x", "a1.jpg,a"))
    with pytest.raises(ValueError, match=r"line 3: 2 cells where the first line has 3"):
        read_manifest(file)
    file.write_bytes(text.replace("x", "ü").encode("latin-1"))
    with pytest.raises(ValueError, match=r"manifest.csv must be in UTF-8"):
        read_manifest(file)
    (root / "manifest.csv").unlink()
    (root / "manifest.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"the manifest .*manifest.parquet cannot be read"):
        read_manifest(root / "manifest.parquet")


def test_folds_do_not_mix_with_validation_images_of_one_s_own(root):
    table(root, divided(train="aabbccdd", val="ee", test="ffgg"))
    with pytest.raises(ValueError, match=r"cv_folds .* the manifest in .*mine names validation"):
        load(root, cv_folds=2)


@pytest.mark.parametrize("other", ["./photo.jpg", "x/../photo.jpg", "link.jpg", "twin.jpg"])
@pytest.mark.parametrize("line", ["a,train", "c,test"])
def test_one_file_under_two_spellings_is_refused(root, other, line):
    file = table(root, divided(train="aabb", test="ccdd"))
    (root / "x").mkdir()
    save_image(root / "photo.jpg", 99)
    (root / "link.jpg").symlink_to("photo.jpg")
    (root / "twin.jpg").hardlink_to(root / "photo.jpg")
    with file.open("a") as lines:
        lines.write(f"photo.jpg,a,train\n{other},{line}\n")
    with pytest.raises(ValueError, match=r"line 11: .* is on line 10 already.*list an image once"):
        load(root)
    assert "is on line 10 already" in check.examine(root.name, root.parent).problems[0]
