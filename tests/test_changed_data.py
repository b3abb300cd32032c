"""Runs whose images or words change between two starts, and checkpoints evaluated on other data."""

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

import main
from tests.runs import ANIMALS, RUN, assert_same_run, killed_at, rows_of, tiny_run, write_animals
from tests.test_main_captions import flags, write_source
from utilities import checkpoint

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")


@pytest.fixture
def source(tmp_path):
    source = write_animals(tmp_path / "source")
    names = {name: {"name": name} for name in ANIMALS}
    (source / "animals" / "classes.json").write_text(json.dumps(names))
    return source


def animals_of(source, name=""):
    return source / "animals" / "images" / name


def picture(path, colour=(9, 90, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 48), colour).save(path)


def interrupted(source, place, *more):
    """Begin a run that is killed after its fourth step; return the words that resume it."""
    words = tiny_run(source, place, "--checkpoint_every", "1", "--resume", *more)
    with killed_at(4):
        main.main(words)
    return words


def add_an_image(source):
    picture(animals_of(source, "barn owl") / "new.png")


def remove_an_image(source):
    next(animals_of(source, "barn owl").iterdir()).unlink()


def rename_an_image(source):
    image = next(animals_of(source, "barn owl").iterdir())
    image.rename(image.with_stem("renamed"))


def replace_an_image_by_one_of_its_size(source):
    path = next(animals_of(source, "barn owl").iterdir())
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def add_a_class(source):
    for number in range(4):
        picture(animals_of(source, "aardvark") / f"{number}.png", (number, 0, 99))


def remove_a_class(source):
    shutil.rmtree(animals_of(source, "barn owl"))


def rename_a_class_folder(source):
    animals_of(source, "barn owl").rename(animals_of(source, "barn owls"))


def edit_classes_json(source):
    file = source / "animals" / "classes.json"
    about = json.loads(file.read_text())
    about["barn owl"]["name"] = "owl"
    file.write_text(json.dumps(about))


def regroup_classes(source):
    groups = {name: {"group": name.split()[-1]} for name in ANIMALS}
    (source / "animals" / "classes.json").write_text(json.dumps(groups))


def edit_word_vectors(source):
    file = source / "words.txt"
    file.write_text(file.read_text().replace("0.", "1.", 1))


CHANGES = [
    (add_an_image, "the class barn owl has 7 images, 6 before"),
    (remove_an_image, "the class barn owl has 5 images, 6 before"),
    (rename_an_image, "images of the class barn owl were replaced or renamed"),
    (replace_an_image_by_one_of_its_size, "images of the class barn owl were replaced"),
    (add_a_class, "the class aardvark is new"),
    (remove_a_class, "the class barn owl is gone"),
    (rename_a_class_folder, "the class barn owls is new"),
    (edit_classes_json, "the class owl is new"),
    (regroup_classes, "the groups of classes have changed"),
    (edit_word_vectors, "--language_model has different content"),
]


@pytest.mark.parametrize(
    ("change", "said"), CHANGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_resuming_on_other_data_is_refused(source, tmp_path, change, said):
    words = interrupted(source, tmp_path, "--language_distill_w", "2")
    kept = (tmp_path / RUN / "last.pt").read_bytes()
    change(source)
    with pytest.raises(ValueError, match="--resume: the data have changed since") as refusal:
        main.main(words)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / RUN / "last.pt").read_bytes() == kept


def test_captions_are_a_part_of_the_data(source, tmp_path):
    root = source / "animals"
    keys = [path.relative_to(root / "images") for path in sorted(root.glob("images/*/*"))]
    captions = {str(key): f"{key.parent} {ANIMALS[n % 7]}" for n, key in enumerate(keys)}
    (root / "captions.json").write_text(json.dumps(captions))
    words = interrupted(
        source, tmp_path, "--language_words", "captions", "--language_distill_w", "2"
    )
    captions[str(keys[0])] = "eagle"
    (root / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(ValueError, match="train: the captions have changed"):
        main.main(words)


@pytest.mark.parametrize("read", ["names+tags", "classnames"])
def test_tags_are_a_part_of_the_data_where_they_guide(source, tmp_path, read):
    file = source / "animals" / "classes.json"
    tags = {name: {"tags": name.split()} for name in ANIMALS}
    file.write_text(json.dumps(tags))
    words = interrupted(source, tmp_path, "--language_words", read, "--language_distill_w", "2")
    for about in tags.values():
        about["tags"].append("eagle")
    file.write_text(json.dumps(tags))
    if read == "names+tags":
        with pytest.raises(ValueError, match="--language_words has different content"):
            main.main(words)
    else:
        main.main(words)


def test_a_file_of_words_is_a_part_of_the_data(source, tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps({name: name for name in ANIMALS}))
    more = ("--language_words", str(file), "--language_distill_w", "2")
    words = interrupted(source, tmp_path, *more)
    file.write_text(json.dumps({name: "tabby" for name in ANIMALS}))
    with pytest.raises(ValueError, match="--language_words has different content"):
        main.main(words)


def test_changed_images_are_accepted_with_the_flag_that_the_refusal_names(source, tmp_path, caplog):
    words = interrupted(source, tmp_path)
    add_an_image(source)
    main.main([*words, "--accept_changed_data"])
    assert "the class barn owl has 7 images, 6 before; continuing" in caplog.text
    assert rows_of(tmp_path / RUN)[-1]["epoch"] == 2


def test_other_training_classes_are_never_accepted(source, tmp_path):
    words = interrupted(source, tmp_path, "--loss", "proxynca")
    remove_a_class(source)
    with pytest.raises(ValueError, match="a run cannot change its training classes"):
        main.main([*words, "--accept_changed_data"])


def test_data_that_only_moved_are_the_same(source, tmp_path):
    words = interrupted(source, tmp_path / "moved")
    main.main(tiny_run(source, tmp_path / "whole", "--checkpoint_every", "1"))
    there = shutil.copytree(source, tmp_path / "elsewhere")  # with other times
    for path in there.rglob("*.jpg"):
        path.touch()
    words[words.index(str(source))] = str(there)
    main.main(words)
    assert_same_run(tmp_path / "moved" / RUN, tmp_path / "whole" / RUN)


def test_a_checkpoint_that_does_not_record_its_data_is_resumed_with_a_warning(
    source, tmp_path, caplog
):
    words = interrupted(source, tmp_path)
    file = tmp_path / RUN / "last.pt"
    parts = checkpoint.load(file)
    del parts["data"]
    checkpoint.save(file, parts)
    main.main(words)
    assert "does not record its data" in caplog.text


@pytest.mark.parametrize(
    ("more", "change", "said"),
    [
        (("--evaluation_datasets", "shades"), "pixels", "shades: images of the class coral"),
        (("--evaluation_datasets", "shades"), "class", "shades: the class coral is gone"),
        (
            ("--evaluations", "knn", "--evaluation_datasets", "shades"),
            "pixels",
            "images of the class coral",
        ),
    ],
)
def test_so_are_the_images_of_evaluation(tmp_path, more, change, said):
    source = tmp_path / "source"
    source.mkdir()
    write_source(source)
    words = flags(source, tmp_path, "--resume", "--checkpoint_every", "1", *more)
    with killed_at(1):
        main.main(words)
    folder = source / "shades" / "images" / "coral"
    if change == "class":
        shutil.rmtree(folder)
    else:
        picture(folder / "0.jpg")
    with pytest.raises(ValueError, match="--resume: the data have changed since") as refusal:
        main.main(words)
    assert said in str(refusal.value)


def test_lines_of_a_manifest_in_another_order_are_seen(source, tmp_path):
    root = source / "animals"
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in root.glob("images/*/*.jpg")]
    manifest = root / "manifest.csv"
    manifest.write_text("\n".join(["path,label", *sorted(lines)]) + "\n")
    words = interrupted(source, tmp_path, "--data_sampler", "random")
    mixed = sorted(lines, key=lambda line: (line.split("_")[-1], line))  # in order within a class
    manifest.write_text("\n".join(["path,label", *mixed]) + "\n")
    with pytest.raises(ValueError, match="the images are in another order"):
        main.main(words)


def test_images_of_a_table_of_captions_are_compared_by_content(source, tmp_path):
    root = tmp_path / "source" / "pairs"
    root.mkdir(parents=True)
    lines = ["path,caption"]
    for number in range(12):
        picture(root / f"{number}.bmp", (number, 9, 9))  # all of one size
        lines.append(f"{number}.bmp,a {ANIMALS[number % 8]}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    words = flags(source, tmp_path, "--resume", "--checkpoint_every", "1", "--dataset", "pairs")
    place = words.index("--evaluation_datasets")
    del words[place : place + 2]
    words += ["--evaluation_datasets", "animals"]
    with killed_at(1):
        main.main(words)
    picture(root / "3.bmp", (200, 9, 9))
    with pytest.raises(ValueError, match="train: images or captions were replaced or renamed"):
        main.main(words)


def test_files_that_nothing_reads_are_not_compared(source, tmp_path, monkeypatch):
    """Words without guidance; a folder that only has the name of an encoder."""
    words = interrupted(source, tmp_path)
    edit_word_vectors(source)
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    main.main([*words, "--language_model", str(source / "words.txt")])
    assert rows_of(tmp_path / RUN)[-1]["epoch"] == 2


@pytest.mark.parametrize("sampler", ["class_random", "random"])
def test_a_smaller_set_is_accepted(source, tmp_path, sampler):
    more = ("--checkpoint_every", "1", "--resume", "--data_sampler", sampler)
    words = tiny_run(source, tmp_path, *more)
    with killed_at(5):
        main.main(words)
    for folder in animals_of(source).iterdir():
        for path in sorted(folder.iterdir())[2:]:
            path.unlink()
    main.main([*words, "--accept_changed_data"])
    assert rows_of(tmp_path / RUN)[-1]["epoch"] == 2


@pytest.mark.parametrize("change", ["caption", "image", "removed", "renamed"])
def test_pairs_of_image_and_caption_are_compared_too(tmp_path, change):
    """Also where the file is overwritten in place, which leaves its directory's time unchanged."""
    source = tmp_path / "source"
    source.mkdir()
    write_source(source)
    words = flags(
        source, tmp_path, "--resume", "--checkpoint_every", "1", length=("--max_steps", "9")
    )
    with killed_at(4):
        main.main(words)
    image = next((source / "drawings").rglob("*.jpg"))
    if change == "caption":
        image.with_suffix(".json").write_text(json.dumps({"caption": "a navy cat"}))
    elif change == "image":
        picture(image)
    else:
        for file in (image, image.with_suffix(".json")):
            file.unlink() if change == "removed" else file.rename(file.with_stem("renamed"))
    with pytest.raises(ValueError, match="--resume: the data have changed since") as refusal:
        main.main(words)
    said = "23 images, 24 before" if change == "removed" else "images or captions were replaced"
    assert f"train: {said}" in str(refusal.value)


# --------------------------------------------------------------------------------------------------
# --evaluate_only
# --------------------------------------------------------------------------------------------------
def evaluate(source, tmp_path, *more):
    [folder] = (tmp_path / "animals").iterdir()
    only = ["--evaluate_only", "--checkpoint", str(folder), "--save_path", str(tmp_path / "again")]
    return main.main([*only, "--source_path", str(source), *more])


def test_classes_added_since_are_left_out_of_an_evaluation(source, tmp_path, caplog):
    """The halves of today's classes would test on three that were trained on."""
    scores = main.main(tiny_run(source, tmp_path))
    for name in ("aardvark", "bee", "crab"):
        for number in range(4):
            picture(animals_of(source, name) / f"{number}.png", (number, len(name), 99))
    again = evaluate(source, tmp_path)
    assert {name: again[name] for name in scores if name.startswith("test/")} == {
        name: value for name, value in scores.items() if name.startswith("test/")
    }
    assert "left out 3 classes that the training did not know: aardvark, bee, crab" in caplog.text


def test_a_class_that_is_gone_is_named(source, tmp_path, caplog):
    main.main(tiny_run(source, tmp_path))
    tested = checkpoint.load(tmp_path / RUN / "last.pt")["data"]["test"]["classes"]
    shutil.rmtree(animals_of(source, tested[0]))
    evaluate(source, tmp_path)
    assert f"test: the class {tested[0]} is gone" in caplog.text


HELD_OUT = [
    ("--use_tv_split", "--tv_split_perc", "0.5", "--bs", "4"),
    ("--use_tv_split", "--tv_split_by_samples", "--tv_split_perc", "0.5"),
    ("--cv_folds", "2", "--cv_fold", "1", "--bs", "4"),
]


@pytest.mark.parametrize("split", HELD_OUT, ids=" ".join)
def test_what_was_held_out_stays_held_out(source, tmp_path, caplog, split):
    scores = main.main(tiny_run(source, tmp_path, *split))
    parts = [name for name in scores if name.startswith(("val/", "test/"))]
    expected = {name: scores[name] for name in parts}
    assert any(name.startswith("val/") for name in parts)
    measured = [line for line in caplog.text.splitlines() if line.startswith("measured on")]
    caplog.clear()
    again = evaluate(source, tmp_path)
    assert {name: again[name] for name in parts} == expected
    assert "differ" not in caplog.text
    assert all(line in caplog.text for line in measured)  # of the same sets, under their names
    add_a_class(source)
    again = evaluate(source, tmp_path)
    assert {name: again[name] for name in parts} == expected


@pytest.mark.parametrize("split", HELD_OUT, ids=" ".join)
def test_trained_images_do_not_validate(source, tmp_path, split):
    main.main(tiny_run(source, tmp_path))
    with pytest.raises(ValueError, match="was trained on images or classes to evaluate: val: "):
        evaluate(source, tmp_path, *split)
    evaluate(source, tmp_path, *split, "--accept_changed_data")


def renamed_class(source):
    tested = animals_of(source, "kit fox")
    tested.rename(source / "away")
    animals_of(source, "barn owl").rename(animals_of(source, "kit fox"))


def moved_images(source):
    for path in list(animals_of(source, "barn owl").iterdir())[:5]:
        path.rename(animals_of(source, "kit fox") / f"moved_{path.name}")


@pytest.mark.parametrize("change", [renamed_class, moved_images])
@pytest.mark.parametrize("name", ["animals", "beasts"])
def test_trained_images_are_not_tested_on_under_any_name(source, tmp_path, change, name):
    """Nor as another --dataset."""
    main.main(tiny_run(source, tmp_path))
    data = checkpoint.load(tmp_path / RUN / "last.pt")["data"]
    assert "barn owl" in data["train"]["classes"] and "kit fox" in data["test"]["classes"]
    change(source)
    (source / "animals").rename(source / name)
    with pytest.raises(ValueError, match="was trained on images or classes to evaluate: test: kit"):
        evaluate(source, tmp_path, "--dataset", name)


def test_other_images_of_a_name_may_be_tested_on_in_another_dataset(source, tmp_path, caplog):
    main.main(tiny_run(source, tmp_path))
    for name in ("aardvark", "ant", "barn owl", "eagle"):  # the last two as trained classes
        for number in range(3):
            colour = (number, len(name), 77)
            picture(source / "beasts" / "images" / name / f"{number}.png", colour)
    scores = evaluate(source, tmp_path, "--dataset", "beasts")
    assert any(name.startswith("test/") for name in scores) and "differ" not in caplog.text


def test_test_classes_alone_are_evaluated(source, tmp_path):
    scores = main.main(tiny_run(source, tmp_path))
    for name in checkpoint.load(tmp_path / RUN / "last.pt")["data"]["train"]["classes"]:
        shutil.rmtree(animals_of(source, name))
    again = evaluate(source, tmp_path)
    parts = [name for name in scores if name.startswith("test/")]
    assert {name: again[name] for name in parts} == {name: scores[name] for name in parts}
    assert not any(name.startswith("train/") for name in again)


def test_trained_classes_are_not_tested_on(source, tmp_path, caplog):
    """With a manifest the split is the user's; one that moves a class to test is refused."""
    root = source / "animals"

    def manifest(tested):
        lines = ["path,label,split"]
        for path in sorted(root.glob("images/*/*.jpg")):
            label = path.parent.name
            split = "test" if label in tested else "train"
            lines.append(f"{path.relative_to(root)},{label},{split}")
        (root / "manifest.csv").write_text("\n".join(lines) + "\n")

    manifest(ANIMALS[:4])
    main.main(tiny_run(source, tmp_path))
    manifest(ANIMALS[:5])
    with pytest.raises(ValueError, match=r"was trained on images or .*: test: snowy owl; evaluate"):
        evaluate(source, tmp_path)
    caplog.set_level(logging.WARNING)
    evaluate(source, tmp_path, "--accept_changed_data")
    assert "the data differ from those" in caplog.text


def test_other_data_of_the_same_name_are_split_anew(source, tmp_path, caplog):
    main.main(tiny_run(source, tmp_path))
    other = tmp_path / "other"
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "crab", "dog"):
        for number in range(3):
            picture(
                other / "animals" / "images" / name / f"{number}.png",
                tuple(rng.integers(0, 255, 3)),
            )
    evaluate(other, tmp_path)
    assert "train: all classes are different; test: all classes are different" in caplog.text
