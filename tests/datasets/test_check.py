"""Checks of a dataset before it is trained on."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import check, emoji
from datasets.check import PUBLISHED, examine, main, report
from tests.datasets import miniature
from tests.datasets.captioned import pair, shard, write

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parents[2]


def own(folder, classes=6, per_class=4, name="mine"):
    """Class folders of one's own, of pictures that differ."""
    for kind in range(classes):
        for number in range(per_class):
            path = folder / name / "images" / f"class {kind}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([kind, number])
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(path)
    return folder / name


def test_published_totals():
    totals = {
        name: (counts.get("images"), counts.get("classes")) for name, counts in PUBLISHED.items()
    }
    assert totals == {
        "cub200": (11_788, 200),
        "cars196": (16_185, 196),
        "online_products": (120_053, 22_634),
        "inshop": (52_712, 7_982),
        "inat": (461_939, 8_142),
        "emoji": (10_922, 1_244),
        "openclipart": (None, None),
    }
    inshop = PUBLISHED["inshop"]
    assert inshop["queries"] + inshop["gallery images"] == inshop["test images"]


def test_a_set_without_faults(tmp_path, capsys):
    own(tmp_path)
    assert main(["mine", "--source_path", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"mine in {tmp_path / 'mine'}",
        "                 found",
        "  images            24",
        "  classes            6",
        "  train images      12",
        "  train classes      3",
        "  test images       12",
        "  test classes       3",
        "no problems found",
    ]


def test_a_benchmark_with_the_published_counts_passes_and_others_do_not(tmp_path, monkeypatch):
    root = miniature.inshop(tmp_path)
    found = examine("inshop", tmp_path)
    assert found.problems == [
        "counts differ from the published ones: images, classes, train images, train classes, "
        "test images, test classes, queries, gallery images"
    ]
    assert found.counts["queries"] == found.counts["gallery images"] == 24
    text = report("inshop", found)
    assert "  queries            24     14,218  differs\n" in text
    assert "source: DeepFashion" in text and text.endswith("1 problem found")
    monkeypatch.setitem(check.PUBLISHED, "inshop", found.counts)
    assert examine("inshop", tmp_path).problems == []
    (root / "list_eval_partition.txt").unlink()
    text = report("inshop", examine("inshop", tmp_path))
    assert "is missing; expected" in text and f"{root}/img/MEN/Denim/id_00000080/*.jpg" in text


def test_unreadable_images_are_listed_and_capped(tmp_path):
    root = own(tmp_path, per_class=6)
    for path in sorted(root.rglob("*.png"))[:12]:
        path.write_bytes(b"")
    (problem,) = examine("mine", tmp_path).problems
    lines = problem.splitlines()
    assert lines[0] == "12 of 36 images cannot be read" and len(lines) == 12
    assert "class 0/0.png: " in lines[1] and lines[-1].strip() == "and 2 more"
    assert examine("mine", tmp_path).counts["images"] == 36  # counts are of what is listed


def test_classes_of_one_image_are_a_problem_and_a_note_in_a_published_set(tmp_path, monkeypatch):
    root = own(tmp_path)
    for number in (1, 2, 3):
        (root / "images" / "class 5" / f"{number}.png").unlink()
    found = examine("mine", tmp_path)
    (problem,) = found.problems
    assert problem.startswith("mine.test: 1 of 3 classes have one image\n    class 5 (")
    monkeypatch.setitem(check.PUBLISHED, "mine", found.counts)
    found = examine("mine", tmp_path)
    assert found.problems == [] and found.notes == [problem]


def test_turned_images_are_a_note_that_names_them(tmp_path):
    root = own(tmp_path)
    for place, orientation in (("class 0/0.png", 6), ("class 5/1.png", 3), ("class 1/1.png", 1)):
        path, exif = root / "images" / place, Image.Exif()
        exif[0x0112] = orientation
        with Image.open(path) as image:
            image.save(path, exif=exif)
    found = examine("mine", tmp_path)
    assert found.problems == []
    assert found.notes == [
        "2 of 24 images are stored turned (EXIF); read upright\n"
        "    images/class 0/0.png: orientation 6\n    images/class 5/1.png: orientation 3"
    ]


@pytest.mark.parametrize("in_shard", [False, True])
def test_turned_images_with_captions_are_a_note(tmp_path, in_shard):
    exif, files = Image.Exif(), {}
    for number in range(6):
        exif[0x0112] = 8 if number == 4 else 1
        content = io.BytesIO()
        Image.new("RGB", (9, 7)).save(content, "JPEG", exif=exif)
        files |= {f"{number}.jpg": content.getvalue(), f"{number}.txt": b"cat %d" % number}
    if in_shard:
        shard(tmp_path / "pairs" / "a.tar", files)
    for name, content in ({} if in_shard else files).items():
        write(tmp_path / "pairs" / "a" / name, content)
    found = examine("pairs", tmp_path)
    name = "a.tar/4.jpg" if in_shard else "a/4.jpg"
    assert found.problems == [] and found.counts["pairs"] == 6
    assert found.notes == [
        f"1 of 6 images are stored turned (EXIF); read upright\n    {name}: orientation 8"
    ]


def test_skipped_files_are_counted_by_ending_with_an_example(tmp_path):
    root = own(tmp_path)
    for name in ("class 0/a.txt", "class 1/b.txt", "class 1/.hidden", "class 2/Thumbs.db"):
        (root / "images" / name).touch()
    found = examine("mine", tmp_path)
    assert found.problems == []
    title, *lines = found.notes[0].splitlines()
    assert title == "skipped, since they are not images"
    assert lines[0].strip() == ".txt (2), such as images/class 0/a.txt" and len(lines) == 2
    for name in ("class 3/a.heic", "class 4/b.HEIC", "class 4/c.svg"):
        (root / "images" / name).touch()
    os.mkfifo(root / "images" / "class 0" / "pipe.jpg")
    shutil.copy(root / "images" / "class 0" / "0.png", root / "images" / "loose.png")
    (problem,) = examine("mine", tmp_path).problems
    title, *lines = problem.splitlines()
    assert title.startswith(
        "skipped, though they may be wanted (for HEIC, pip install pillow-heif)"
    )
    assert sorted(line.strip() for line in lines) == [
        ".heic (2), such as images/class 3/a.heic",
        ".svg (1), such as images/class 4/c.svg",
        "image outside the class folders (1), such as images/loose.png",
        "named pipe (1), such as images/class 0/pipe.jpg",
    ]
    assert main(["mine", "--source_path", str(tmp_path)]) == 1


def test_images_of_extreme_shape_are_a_problem(tmp_path):
    root = own(tmp_path)
    Image.new("RGB", (2100, 100)).save(root / "images" / "class 0" / "wide.png")
    Image.new("RGB", (3, 100)).save(root / "images" / "class 4" / "high.jpg")
    Image.new("RGB", (2000, 100), "red").save(root / "images" / "class 1" / "bearable.png")
    (problem,) = examine("mine", tmp_path, near=-1).problems
    assert problem.splitlines() == [
        "2 of 27 images are over 20 times as long as wide; evaluation sees their middle only",
        "    images/class 0/wide.png: 2100 x 100",
        "    images/class 4/high.jpg: 3 x 100",
    ]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_that_is_in_train_and_test_under_two_names(tmp_path, link):
    root = own(tmp_path)
    link(root / "images" / "class 0" / "2.png", root / "images" / "class 4" / "other.png")
    for near in (-1, 8):
        assert examine("mine", tmp_path, near).problems == [
            "1 of 13 test images are files of train\n"
            "    images/class 4/other.png is images/class 0/2.png"
        ]


def captioned(root, captions):
    names = [path.relative_to(root / "images").as_posix() for path in root.rglob("*.png")]
    texts = dict(zip(sorted(names), captions, strict=True))
    (root / "captions.json").write_text(json.dumps(texts))


def test_captions_that_are_long_empty_or_boilerplate_are_problems(tmp_path):
    root = own(tmp_path)
    captioned(root, [f"picture {number}" for number in range(24)])
    found = examine("mine", tmp_path)
    assert found.problems == [] and found.counts["distinct captions"] == 24
    long = ["word " * number for number in (61, 70, 65, 64, 60)]
    others = [*["a photo of\na shoe"] * 12, *map(str, range(5))]
    captioned(root, [*long, " ", "", *others])
    [empty] = examine("mine", tmp_path).problems
    assert "captions.json has no caption for 2 of 24 images: " in empty
    captioned(root, [*long, "6", ["7", "8 9"], *others])
    many, same = examine("mine", tmp_path).problems
    title, *lines = many.splitlines()
    assert title.startswith("4 of 24 captions have over 60 words; text encoders cut them")
    assert [line.split(":")[0].strip() for line in lines] == ["70 words", "65 words", "64 words"]
    assert all(len(line) < 120 and line.endswith("…'") for line in lines)
    title, line = same.splitlines()
    assert title.startswith("1 texts are the caption of many images each (12 of 24)")
    assert line.strip() == "12 images: 'a photo of a shoe'"


def test_pairs_of_long_or_equal_captions_are_problems(tmp_path):
    root = tmp_path / "pairs"
    for number in range(40):
        text = "IMG" if number < 15 else "no title" if number < 27 else f"cat {number} " * 31
        pair(root / "a", f"{number}.jpg", text, seed=number)
    long, same = examine("pairs", tmp_path).problems
    assert long.startswith("13 of 40 captions have over 60 words")
    assert long.count("\n") == 3
    assert same.splitlines()[1:] == ["    15 images: 'IMG'", "    12 images: 'no title'"]


def test_queries_without_a_gallery_image_are_a_note(tmp_path):
    root = miniature.inshop(tmp_path)
    file = root / "list_eval_partition.txt"
    lines = [
        line
        for line in file.read_text().splitlines()
        if not ("id_00000016" in line and line.endswith("gallery"))
    ]
    file.write_text("\n".join(lines))
    (note,) = examine("inshop", tmp_path, near=-1).notes
    assert note.startswith("inshop.test: 3 queries have no image of their class in the gallery")


def test_a_test_image_that_was_trained_on_is_found_even_scaled_and_pressed(tmp_path):
    root = own(tmp_path)
    with Image.open(root / "images" / "class 0" / "1.png") as image:
        image.resize((96, 96)).save(root / "images" / "class 4" / "other.jpg", quality=80)
    (problem,) = examine("mine", tmp_path).problems
    title, line = problem.splitlines()
    assert title == "1 of 13 test images also appear in train"
    assert line.endswith("bits: images/class 4/other.jpg and images/class 0/1.png")
    assert examine("mine", tmp_path, near=-1).problems == []
    # Copies on one side are no leak.
    shutil.move(root / "images" / "class 4" / "other.jpg", root / "images" / "class 2")
    assert examine("mine", tmp_path).problems == []


def test_copies_in_a_published_split_are_a_note_only(tmp_path, monkeypatch):
    root = miniature.cub200(tmp_path)
    birds = sorted((root / "images").iterdir())
    shutil.copy(next(birds[0].iterdir()), birds[-1] / "copy.jpg")
    monkeypatch.setitem(check.PUBLISHED, "cub200", examine("cub200", tmp_path, near=-1).counts)
    found = examine("cub200", tmp_path, near=0)
    assert found.problems == []
    assert any(note.startswith("1 of 37 test images also appear in train") for note in found.notes)


def test_validation_images_of_a_manifest_count_as_seen(tmp_path):
    root = own(tmp_path)
    shutil.copy(root / "images" / "class 1" / "0.png", root / "copy.png")
    rows = ["path,label,split"]
    for kind, split in enumerate(("train", "val", "test")):
        rows += [f"images/class {kind}/{number}.png,{kind},{split}" for number in range(4)]
    rows.append("copy.png,2,test")
    (root / "manifest.csv").write_text("\n".join(rows))
    found = examine("mine", tmp_path)
    assert (found.counts["val images"], found.counts["images"]) == (4, 13)
    assert "0 bits: copy.png and images/class 1/0.png" in found.problems[0]
    (root / "manifest.csv").write_text("path,label\nimages/class 0/0.png,\n")
    (problem,) = examine("mine", tmp_path).problems
    assert "manifest.csv, line 2: the label is empty" in problem


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("manifest.csv", "path,label\nimages/class 0/0.png,\n", "the label is empty"),
        ("manifest.csv", "path,label\nimages/class 0/9.png,a\n", "9.png"),
        ("classes.json", "[1]", "classes.json"),
        ("captions.json", "{", "captions.json"),
    ],
)
def test_the_layout_is_not_shown_where_something_else_is_wrong(tmp_path, name, text, says):
    (own(tmp_path) / name).write_text(text)
    problems = examine("mine", tmp_path).problems
    assert says in " ".join(problems) and "<first class>" not in " ".join(problems)


def test_the_layout_is_shown_where_it_is_wrong_and_not_for_too_few_classes(tmp_path):
    own(tmp_path, classes=3)
    (problem,) = examine("mine", tmp_path).problems
    assert "at least 4 are needed" in problem and "<first class>" not in problem
    (tmp_path / "empty").mkdir()
    (problem,) = examine("empty", tmp_path).problems
    assert "holds no folder `images`" in problem and "<first class>" in problem


def test_a_name_that_is_not_there(tmp_path, capsys):
    own(tmp_path)
    assert main(["mone", "--source_path", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"there is no folder {tmp_path / 'mone'}" in out and "images/<first class>" in out
    assert f"Datasets in --source_path {tmp_path}: mine" in out


@pytest.mark.parametrize("name", ["emoji", "openclipart"])
def test_what_is_built_on_first_use_is_not_built_here(tmp_path, name):
    text = report(name, examine(name, tmp_path))
    assert "there is no folder" in text and f"python main.py --dataset {name}" in text
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_emoji_set_is_named(tmp_path):
    root = own(tmp_path, name="emoji")
    (root / "classes.json").write_text("{}")
    (root / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        emoji.verify(root)
    assert "the emoji dataset in" in examine("emoji", tmp_path).problems[0]


@pytest.mark.parametrize("name", ["emoji", "openclipart"])
def test_an_own_folder_named_as_a_built_set_is_checked_as_any_other(tmp_path, name):
    own(tmp_path, name=name)
    found = examine(name, tmp_path)
    assert found.problems == [] and found.counts["images"] == 24


def test_pairs_without_captions_are_counted(tmp_path):
    root = tmp_path / "pairs"
    for number in range(3):
        pair(root / "a", f"{number}.jpg", "one" if number else "two", seed=number)
    assert examine("pairs", tmp_path).counts == {"pairs": 3, "distinct captions": 2}
    assert examine("pairs", tmp_path).problems == []
    for number in range(3, 15):
        write(root / "a" / f"{number}.jpg", (root / "a" / "1.jpg").read_bytes())
    pair(root / "a", "15.jpg", " ")
    (root / "a" / "0.jpg").write_bytes(b"none")
    found = examine("pairs", tmp_path)
    assert found.counts["pairs"] == 2
    (problem,) = found.problems
    assert problem.startswith(
        "skipped 14 images (12 no caption, 1 unreadable image, 1 blank caption), listed in "
    )
    assert problem.splitlines()[-1].strip() == "and 4 more"


def test_bits_out_of_range_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["mine", "--near", "65"])
    assert "--near must be in 0 to 64, or -1 to compare no images" in capsys.readouterr().err


def test_the_command_ends_with_a_status(tmp_path):
    own(tmp_path)
    command = [sys.executable, "-m", "datasets.check", "mine", "--source_path", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("no problems found\n")
    (tmp_path / "mine" / "images" / "class 0" / "0.png").write_bytes(b"")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).returncode == 1


THAI = ("ขนมปัง", "แมว", "สุนัข", "ปลา", "ช้าง", "หมู")


def test_names_that_an_encoder_cannot_read(tmp_path, capsys):
    """Only with --language_model; most of them are a problem, a few are worth a note."""
    root = own(tmp_path)
    command = ["mine", "--source_path", str(tmp_path), "--near", "-1"]
    minilm = [*command, "--language_model", "minilm"]
    names = {f"class {kind}": name for kind, name in enumerate(THAI)}
    (root / "classes.json").write_text(json.dumps(names))
    assert main(command) == 0
    capsys.readouterr()
    assert main(minilm) == 1
    out = capsys.readouterr().out
    assert "of 6 names, the text encoder minilm knows no word of 6 ('ขนมปัง'" in out
    english = dict(zip(names, ("fox", "crane", "owl", "emu"), strict=False))
    (root / "classes.json").write_text(json.dumps(names | english))
    assert main(minilm) == 0
    out = capsys.readouterr().out
    assert "notes:" in out and "cannot tell 2 apart ('ช้าง' = 'หมู')" in out
    assert main([*command, "--language_model", "absent.txt"]) == 1
    assert "absent.txt: no such word-vector file" in capsys.readouterr().out


def test_captions_that_an_encoder_cannot_read(tmp_path, capsys):
    for number, caption in enumerate(THAI):
        pair(tmp_path / "mine" / "d", f"{number}.jpg", caption, number)
    command = ["mine", "--source_path", str(tmp_path), "--language_model", "minilm"]
    assert main(command) == 1
    assert "of 6 captions, the text encoder minilm knows no word of 6" in capsys.readouterr().out
