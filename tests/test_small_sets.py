"""The sets of the table of small sets, from miniature packages, and the table itself."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import architectures
from datasets import splits
from evaluation.extract import Features
from metrics import bootstrap
from tests.benchmarks import small_sets
from tests.utilities.test_results import leave


def write(path, seed, size=(64, 400)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 4), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def names(classes):
    return {name: sorted(path.name for path in paths) for name, paths in classes.items()}


def test_stamps_are_of_folders_without_cartoons_and_signs(tmp_path):
    root = tmp_path / small_sets.STAMPS
    for file in ("animals/birds/owl", "hobbies/music/string/lute", "food/cartoon/pie", "symbols/a"):
        write(root / f"{file}.png", 0)
    assert names(small_sets.stamps(tmp_path)) == {
        "birds": ["owl.png"],
        "music string": ["lute.png"],
    }


def test_topics_are_read_as_words(tmp_path):
    write(tmp_path / small_sets.ART4APPS / "fruit_n_veg" / "pear.png", 0)
    (tmp_path / small_sets.ART4APPS / "fruit_n_veg" / "list.txt").touch()
    assert names(small_sets.kids(tmp_path)) == {"fruit and veg": ["pear.png"]}


def test_pictures_are_small_distinct_and_four_to_a_class(tmp_path):
    paths = [tmp_path / f"{number} x.png" for number in range(7)]
    for number, path in enumerate(paths):
        write(path, seed=min(number, 4), size=(40, 400) if number == 0 else (64, 400))
    few = tmp_path / "few.png"
    write(few, seed=9)
    small_sets.write_pictures({"many": paths, "few": [few]}, tmp_path / "out")
    written = sorted((tmp_path / "out" / "images").rglob("*.jpg"))
    # The first is too thin, the last two are the fifth again.
    assert [path.name for path in written] == [f"{n:03d}_{n + 1}_x.jpg" for n in range(4)]
    assert written[0].parent.name == "many" and Image.open(written[0]).size == (320, 51)


def test_clip_art_is_of_folders_with_drawings_enough(tmp_path):
    for number in range(20):
        for place in ("animals/big_cats", "signs") if number < 5 else ("animals/big_cats",):
            svg = tmp_path / "svg" / place / f"{number}.svg"
            svg.parent.mkdir(parents=True, exist_ok=True)
            svg.touch()
            (tmp_path / f"{place.replace('/', '_')}_{number}.jpg").touch()
    found = small_sets.clipart(tmp_path / "svg", tmp_path)
    assert found.keys() == {"animals big cats"} and len({*found["animals big cats"]}) == 12
    assert found == small_sets.clipart(tmp_path / "svg", tmp_path)


def test_halves_are_exchanged(tmp_path, own_cache):
    for label in "abcde":
        for number in range(2):
            write(tmp_path / "set" / "images" / label / f"{number}.png", number)
    small_sets.exchange("set", tmp_path)
    first = splits.split(*splits.read_layout("set", tmp_path))
    second = splits.split(*splits.read_layout("set_exchanged", tmp_path))
    assert first.train.class_names == second.test.class_names
    assert first.test.class_names == second.train.class_names
    names = {path.resolve() for path in first.train.paths}
    assert names == {path.resolve() for path in second.test.paths} and len(names) == 4


@pytest.mark.parametrize("root", [False, True])
def test_choices_search_half_of_the_classes_with_a_layer_fitted_to_the_others(root):
    """In which a direction that varies within classes hides the one that tells them apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40).repeat_interleave(6)
    x = torch.randn(240, 16, generator=generator) * 0.1 + 1
    x[:, :4] += torch.randn(40, 4, generator=generator)[labels]
    x[:, 5] += 6 * torch.randn(240, generator=generator)
    embedder = architectures.create("test_resnet", 16, pretrained=False, image_size=32)
    embedder.embedding = torch.nn.Linear(16, 16)
    found = Features(x, x, torch.arange(240), labels)
    starts = None, (root, 1e9), (root, 1e-3)
    plain, much, little = (small_sets.searched(embedder, found, start, 0) for start in starts)
    assert embedder.root == root
    assert little[0] > plain[0] + 0.2 and little[1] > 2 * plain[1]
    assert plain[1] < much[1] < little[1]


def leave_classes(parent, group, dataset, seed, scores):
    """Write what ``table`` reads of a run: its scores by class."""
    rows = [{"epoch": 1}]
    folder = leave(parent, f"{group}_{dataset}", seed, rows, dataset=dataset)
    config = json.loads((folder / "config.json").read_text())
    config["flags"]["group"] = group
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"embeds/{score}" for score in small_sets.SCORES]
    with (folder / "classes_test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "group", "images", *names])
        for label, n_images in (("a", 10), ("b", 30)):
            writer.writerow([f"{dataset} {label}", "", n_images, *[scores[label]] * len(names)])


def test_the_table_compares_both_halves_by_class_with_the_features(tmp_path):
    """Means are over images, seeds first; the interval is that of brute force over classes."""
    for half, plus in (("kids", 0.0), ("kids_exchanged", 0.1)):
        leave_classes(tmp_path, "features", half, 0, {"a": 0.2, "b": 0.4 + plus})
        for seed, more in enumerate((0.1, 0.3)):
            trained = {"a": 0.2 + more, "b": 0.4}
            leave_classes(tmp_path, "small", half, seed, trained)
    (line,) = small_sets.table(tmp_path).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["kids", "4", "small", "2"]
    features, trained = (20 * 0.2 + 30 * 0.4 + 30 * 0.5) / 80, (20 * 0.4 + 60 * 0.4) / 80
    assert cells[4:6] == cells[7:9] == [f"{100 * features:.1f}", f"{100 * trained:.1f}"]
    changes = torch.tensor([0.2, 0.0, 0.2, -0.1]).double()
    labels = torch.arange(4).repeat_interleave(torch.tensor([10, 30, 10, 30]))
    low, high = bootstrap({"e_recall@1": changes[labels]}, labels)["e_recall@1"]
    assert cells[6] == f"{100 * (trained - features):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def test_a_set_of_which_one_half_is_missing_has_no_line(tmp_path):
    leave_classes(tmp_path, "features", "kids", 0, {"a": 0.2, "b": 0.4})
    leave_classes(tmp_path, "small", "kids", 0, {"a": 0.2, "b": 0.4})
    assert len(small_sets.table(tmp_path).splitlines()) == 2
