"""The published layouts in miniature, and errors of layouts that differ from the published ones."""

import json

import numpy as np
import pytest

from datasets import downstream
from datasets.caption_index import is_caption_set
from datasets.lists import read_inat, read_inshop
from datasets.splits import read
from tests.datasets import miniature
from tests.datasets.conftest import load

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All miniatures; tests that change one make their own."""
    folder = tmp_path_factory.mktemp("source")
    for make in miniature.LAYOUTS.values():
        make(folder)
    return folder


@pytest.mark.parametrize("name", miniature.LAYOUTS)
def test_each_miniature_is_read_and_its_classes_never_meet(folder, name):
    data = load(folder / name)
    assert not is_caption_set(folder / name) and data.val is None
    assert not set(data.train.paths) & set(data.test.paths)
    files = {path for path in (folder / name).rglob("*") if path.suffix.lower() == ".jpg"}
    assert {*data.train.paths, *data.test.paths} == files
    for images in (data.train, data.test):
        assert images.n_classes >= 6 and min(map(len, images.rows_by_class)) >= 5
    assert (data.test.queries is not None) == (name == "inshop")
    held_out = [
        path
        for number in range(3)
        for path in load(folder / name, cv_folds=3, cv_fold=number).val.paths
    ]
    assert sorted(held_out) == sorted(data.train.paths)


def test_names_with_odd_characters_become_words(folder):
    birds = [name for part in read("cub200", folder) for name in part.class_names]
    assert {"Chuck will Widow", "Brewer Blackbird", "American Three toed Woodpecker"} < set(birds)
    cars = [name for part in read("cars196", folder) for name in part.class_names]
    assert "Ram C-V Cargo Van Minivan 2012" in cars and cars[-1] == "smart fortwo Convertible 2012"
    assert "Bentley Continental Supersports Conv. Convertible 2012" in cars


# ----------------------------------------------------------------------------------------- inshop


def test_inshop_by_its_lines(tmp_path):
    """The oracle: a list written by hand, with runs of spaces, and what each line must become."""
    root = miniature.inshop(tmp_path, n_items=2, per_status=1)
    lines = [
        ("img/WOMEN/Tees_Tanks/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "gallery"),
        ("img/MEN/Denim/id_00000080/01_2_side.jpg", "id_00000080", "query"),
        ("img/WOMEN/Dresses/id_00000007/03_1_front.jpg", "id_00000007", "gallery"),
        ("img/WOMEN/Dresses/id_00000007/03_4_full.jpg", "id_00000007", "query"),
    ]
    text = "\n".join(f"{path:<69} {item}    {status} " for path, item, status in lines)
    (root / "list_eval_partition.txt").write_text(
        f"5\nimage_name item_id evaluation_status\n{text}\n"
    )
    train, test = read_inshop(root)
    assert train.paths == (root / lines[0][0],)
    assert train.class_names == train.class_groups == ("women tees tanks",)
    assert [path.name for path in test.paths] == [
        "01_2_side.jpg", "03_4_full.jpg", "01_1_front.jpg", "03_1_front.jpg",
    ]  # fmt: skip
    assert test.queries.tolist() == [True, True, False, False]
    assert test.class_names == ("women dresses", "men denim")
    assert test.labels.tolist() == [1, 0, 1, 0]


def test_inshop_as_its_archives_unpack(tmp_path):
    root = miniature.inshop(tmp_path)
    before = read_inshop(root)
    (root / "Eval").mkdir()
    (root / "Img").mkdir()
    (root / "list_eval_partition.txt").rename(root / "Eval" / "list_eval_partition.txt")
    (root / "img").rename(root / "Img" / "img")
    after = read_inshop(root)
    for one, other in zip(before, after, strict=True):
        assert one.class_names == other.class_names
        assert [p.relative_to(root) for p in one.paths] == [
            p.relative_to(root / "Img") for p in other.paths
        ]
    assert len(read("inshop", tmp_path)[1]) == len(before[1])


def test_inshop_that_is_not_as_published(tmp_path):
    root = miniature.inshop(tmp_path)
    file = root / "list_eval_partition.txt"
    text = file.read_text()
    file.write_text(text.replace("gallery", "galery", 1))
    with pytest.raises(ValueError, match=r"partition.txt, line \d+: .* with a status of train, q"):
        read_inshop(root)
    file.write_text(text.replace("gallery", "query"))
    with pytest.raises(ValueError, match="lists no image as gallery"):
        read_inshop(root)
    file.write_text("0\nimage_name item_id evaluation_status\n")
    with pytest.raises(ValueError, match="lists no images"):
        read_inshop(root)
    (root / "img").rename(root / "pictures")
    with pytest.raises(FileNotFoundError, match=r"holds no folder `img`; expected\n"):
        read_inshop(root)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"the list .*list_eval_partition.txt is missing"):
        read("inshop", tmp_path)


# ------------------------------------------------------------------------------------------- inat


def test_inat_by_its_lists(folder):
    root = folder / "inat"
    for images, split in zip(read_inat(root), ("train", "test"), strict=True):
        lines = (root / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt").read_text().split()
        assert [path.relative_to(root).as_posix() for path in images.paths] == lines
        species = [line.split("/")[2] for line in lines]  # its number
        same = np.array(species)[:, None] == np.array(species)
        assert np.array_equal(same, images.labels[:, None] == images.labels)
        words = [images.class_names[label] for label in images.labels]
        assert words == [line.split("/")[1] for line in lines]  # its super-class
        assert images.class_groups == images.class_names


def test_inat_with_the_names_of_its_species(tmp_path):
    root = miniature.inat(tmp_path)
    names = [
        {"id": int(species.partition("/")[2]), "name": f"Species {species.partition('/')[2]}"}
        for species in miniature.SPECIES
    ]
    (root / "categories.json").write_text(json.dumps(names))
    train, test = read("inat", tmp_path)
    assert "Species 2761" in test.class_names and "Aves" in test.class_groups
    (root / "categories.json").write_text(json.dumps(names[:2]))
    with pytest.raises(ValueError, match=r"categories.json does not name the species .*KeyError"):
        read("inat", tmp_path)
    assert len(train) == 30


def test_inat_with_lists_beside_the_images(tmp_path):
    root = miniature.inat(tmp_path)
    before = read_inat(root)
    for file in (root / "Inat_dataset_splits").iterdir():
        file.rename(root / file.name)
    assert [images.paths for images in read_inat(root)] == [images.paths for images in before]


def test_inat_that_is_not_as_published(tmp_path):
    root = miniature.inat(tmp_path)
    train, test = (
        root / "Inat_dataset_splits" / f"Inaturalist_{split}_set1.txt"
        for split in ("train", "test")
    )
    lines = train.read_text()
    train.write_text("1.jpg\n")
    with pytest.raises(ValueError, match=r"train_set1.txt, line 1: '1.jpg' is not `folder/<super"):
        read_inat(root)
    train.write_text(lines + test.read_text())
    with pytest.raises(ValueError, match=r"both name images of train_val2018/Act.*, and of 5 more"):
        read_inat(root)
    train.unlink()
    with pytest.raises(FileNotFoundError, match=r"the list .*train_set1.txt is missing; expected"):
        read("inat", tmp_path)


# -------------------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize("name", ["inshop", "inat"])
def test_frozen_features_are_judged_on_the_classes_of_test(folder, name):
    assert downstream.is_ours(name, folder)
    judged = downstream.build(name, folder)
    assert judged.n_classes == read(name, folder)[1].n_classes


def test_a_benchmark_may_come_as_a_manifest(tmp_path):
    root = tmp_path / "inshop"
    rows = ["path,label,split"]
    for kind, split in enumerate(("train", "train", "query", "gallery")):
        miniature._save(root / f"{kind}.jpg", kind, 0)
        rows.append(f"{kind}.jpg,{min(kind, 2)},{split}")
    (root / "manifest.csv").write_text("\n".join(rows))
    train, test = read("inshop", tmp_path)
    assert len(train) == 2 and test.queries.tolist() == [True, False]
