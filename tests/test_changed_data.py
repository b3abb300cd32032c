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
    folder = tmp_path / RUN
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


def test_held_out_classes_stay_held_out(source, tmp_path):
    split = ("--use_tv_split", "--tv_split_perc", "0.5", "--bs", "4")
    scores = main.main(tiny_run(source, tmp_path, *split))
    add_a_class(source)
    again = evaluate(source, tmp_path)
    parts = [name for name in scores if name.startswith(("val/", "test/"))]
    assert parts and {name: again[name] for name in parts} == {name: scores[name] for name in parts}


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
    with pytest.raises(
        ValueError, match=r"was trained on 1 of the 5 classes to evaluate: snowy owl"
    ):
        evaluate(source, tmp_path)
    caplog.set_level(logging.WARNING)
    evaluate(source, tmp_path, "--accept_changed_data")
    assert "the data have changed since" in caplog.text


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
