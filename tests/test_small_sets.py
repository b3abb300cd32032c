"""The sets of the table of small sets, from miniature packages, and the table itself."""

import numpy as np
import torch
from PIL import Image

import architectures
from evaluation.extract import Features
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


def test_choices_search_half_of_the_classes_with_features_whitened_by_the_others():
    """In which a direction that varies within classes hides the one that tells them apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40).repeat_interleave(6)
    x = torch.randn(240, 16, generator=generator) * 0.1 + 1
    x[:, :4] += torch.randn(40, 4, generator=generator)[labels]
    x[:, 5] += 6 * torch.randn(240, generator=generator)
    embedder = architectures.create("test_resnet", 16, pretrained=False, image_size=32)
    embedder.embedding = torch.nn.Linear(16, 16)
    found = Features(x, x, torch.arange(240), labels)
    plain, much, little = (small_sets.searched(embedder, found, a, 0) for a in (None, 1e9, 1e-3))
    assert little[0] > plain[0] + 0.2 and little[1] > 2 * plain[1]
    assert plain[1] < much[1] < little[1]


def test_the_table_has_the_change_since_the_features(tmp_path):
    for seed, after in enumerate((0.62, 0.64, 0.66)):
        kinds = {"backbone": 0.6, "embeds": 0.5}
        before = {
            f"test/{kind}/{m}": v for kind, v in kinds.items() for m in ("e_recall@1", "mAP@R")
        }
        trained = {"test/embeds/e_recall@1": after, "test/embeds/mAP@R": 0.3}
        leave(tmp_path, "small", seed, [{"epoch": 0, **before}, {"epoch": 12, **trained}])
    table = small_sets.table([tmp_path])
    assert "| small | 3 | Recall@1 | 60.0 | 50.0 | 64.0 | +4.0 ± 5.0 |" in table
    assert "| small | 3 | mAP@R | 60.0 | 50.0 | 30.0 | -30.0 ± 0.0 |" in table
