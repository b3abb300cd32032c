"""Which folders are caption sets, what is in their index, and what building again looks at."""

import csv
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from datasets import caption_index
from datasets.caption_index import build, is_caption_set, layouts, open_index, rows
from datasets.caption_index.layouts import layout
from datasets.caption_index.rows import OpenShards, read_members
from tests.datasets.captioned import image_bytes, pair, samples, shard, write


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """A wait that is long for this file system's clock (4 ms) and short for a test."""
    monkeypatch.setattr(caption_index, "SETTLED", 0.03)


@pytest.fixture
def looked(monkeypatch):
    """How many images were opened since the list was last cleared."""
    opened = []
    measure = rows.measure

    def counting(source):
        opened.append(source)
        return measure(source)

    monkeypatch.setattr(rows, "measure", counting)
    return opened


@pytest.fixture
def pairs(tmp_path):
    root = tmp_path / "mine"
    pair(root / "birds", "b.jpg", "a blue bird", seed=1)
    pair(root / "birds", "a.png", "a red bird", seed=2, as_json=False)
    pair(root / "cats", "a.webp", "a cat", seed=3)
    return root


def content(root):
    """{key: caption} in the order of the rows."""
    table = open_index(build(root))[0].read_all().to_pydict()
    return dict(zip(table["key"], table["caption"], strict=True))


def skipped(root):
    """{key: reason} of what was left out."""
    with (root / "index_skipped.csv").open(newline="") as lines:
        return {line["key"]: line["reason"] for line in csv.DictReader(lines)}


# --------------------------------------------------------------------------------- recognition


def test_pairs_shards_and_manifests_are_recognised(tmp_path, pairs):
    assert layout(pairs) == "pairs" and is_caption_set(pairs)
    pair(tmp_path / "flat", "a.jpg", "one folder, no directories")
    assert layout(tmp_path / "flat") == "pairs"
    pair(tmp_path / "named" / "images", "a.jpg", "a directory that is called images")
    assert layout(tmp_path / "named") == "pairs"
    shard(tmp_path / "web" / "00000.tar", samples(["a"]))
    assert layout(tmp_path / "web") == "shards"
    for suffix, text in ((".csv", "path,caption\n"), (".tsv", "TEXT\timage_path\n")):
        write(tmp_path / suffix / f"list{suffix}", text)
        assert layout(tmp_path / suffix) == "manifests"


def test_what_img2dataset_writes_beside_its_shards_is_no_manifest(tmp_path):
    table = pa.table({"url": ["http://a"], "caption": ["a"], "key": ["000000000"]})
    for folder in ("web", "files"):
        (tmp_path / folder).mkdir()
        pyarrow.parquet.write_table(table, tmp_path / folder / "00000.parquet")
    shard(tmp_path / "web" / "00000.tar", samples(["a"]))
    pair(tmp_path / "files" / "00000", "000000000.jpg", "a")
    assert layout(tmp_path / "web") == "shards" and layout(tmp_path / "files") == "pairs"


def test_class_folders_other_files_and_no_folder_are_no_caption_set(tmp_path):
    labelled = tmp_path / "labelled"
    write(labelled / "images" / "cat" / "1.jpg", image_bytes())
    write(labelled / "captions.json", {"cat/1.jpg": "a cat"})
    write(labelled / "notes.txt", "taken in 2019")
    assert not is_caption_set(labelled)
    # Even where captions lie beside the images: the class folders say what it is.
    pair(labelled / "images" / "cat", "2.jpg", "a cat")
    pair(labelled / "more", "3.jpg", "a cat")
    assert not is_caption_set(labelled)

    write(tmp_path / "bare" / "cat" / "1.jpg", image_bytes())
    write(tmp_path / "table" / "scores.csv", "epoch,recall\n1,0.5\n")
    (tmp_path / "empty").mkdir()
    for folder in ("bare", "table", "empty", "missing"):
        assert not is_caption_set(tmp_path / folder)


def test_recognition_looks_at_a_sample_only(tmp_path, monkeypatch):
    root = tmp_path / "large"
    for number in range(40):
        write(root / f"{number}" / "a.jpg", b"")
    asked = []
    monkeypatch.setattr(layouts, "holds_pairs", lambda folder: asked.append(folder))
    assert layout(root) is None
    assert len(asked) == 1 + 16 + 40  # the root, the first directories, the last resort


def test_a_folder_without_pairs_is_an_error_that_shows_the_layouts(tmp_path):
    write(tmp_path / "mine" / "readme.md", "nothing")
    with pytest.raises(
        FileNotFoundError, match=r"(?s)it holds: readme.md.*<id>.json with"
    ) as error:
        build(tmp_path / "mine")
    assert '{"caption": ...}' in str(error.value)


# ------------------------------------------------------------------------------------- layouts


def test_pairs_in_sorted_order_with_sizes(pairs):
    file = build(pairs)
    assert file == pairs / "index.arrow"
    reader, head = open_index(file)
    table = reader.read_all().to_pydict()
    assert table["key"] == ["birds/a.png", "birds/b.jpg", "cats/a.webp"]
    assert table["caption"] == ["a red bird", "a blue bird", "a cat"]
    assert table["part"] == [0, 0, 1] and list(head.parts) == ["birds", "cats"]
    assert table["width"] == [12] * 3 and table["height"] == [10] * 3
    assert table["offset"] == [-1] * 3
    assert table["size"] == [(pairs / key).stat().st_size for key in table["key"]]
    assert len(set(table["stamp"])) == 3


def test_any_arrow_reader_takes_it(pairs):
    """As an uncompressed file whose columns can be used where they lie."""
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(build(pairs)))).read_all()
    assert table.column("caption").to_pylist()[2] == "a cat"
    assert pa.total_allocated_bytes() == before  # nothing was copied out of the file


def test_images_beside_their_captions_without_directories(tmp_path):
    root = tmp_path / "flat"
    pair(root, "a.jpg", "one")
    pair(root, "b.JPEG", "two", as_json=False)
    pair(root / "more", "c.jpg", "three")
    assert content(root) == {"a.jpg": "one", "b.JPEG": "two", "more/c.jpg": "three"}
    pair(root, "d.jpg", "four")
    assert content(root)["d.jpg"] == "four"


def test_odd_names(tmp_path):
    root = tmp_path / "odd"
    names = ["a.b.c.jpg", "with space & 'quotes'.jpg", "ünï-漢字.png", "UPPER.JPG", "-dash.jpeg"]
    for seed, name in enumerate(names):
        pair(root / "dir.with.dots", name, f"caption {seed}", seed)
    write(root / "dir.with.dots" / ".hidden.jpg", b"")
    write(root / ".hidden" / "a.jpg", b"")
    write(root / "dir.with.dots" / "notes.md", "no image")
    found = content(root)
    assert found == {f"dir.with.dots/{name}": f"caption {seed}" for seed, name in enumerate(names)}
    assert (root / "index_skipped.csv").read_text().splitlines() == ["key,reason,part"]


def test_a_name_that_is_not_utf8_is_left_out_and_listed(pairs):
    odd = os.fsencode(pairs / "cats") + b"/\xff.jpg"
    try:
        shutil.copy(pairs / "cats" / "a.webp", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert len(content(pairs)) == 3
    assert [reason for reason in skipped(pairs).values()] == ["its name is not in UTF-8"]


def test_shards_are_read_where_they_lie(tmp_path):
    root = tmp_path / "web"
    first = samples(["a dog", "a  cow\n"]) | {"sub/dir.x/000.png": image_bytes(9, kind="PNG")}
    first["sub/dir.x/000.txt"] = b"in a folder"
    first["long" + "x" * 150 + ".jpg"] = image_bytes(8)
    first["long" + "x" * 150 + ".txt"] = b"a long name"
    shard(root / "00000.tar", first)
    shard(root / "00001.tar", samples(["a pig"], first=2))
    table = open_index(build(root))[0].read_all().to_pydict()
    assert table["key"][:3] == [
        "00000.tar/000000000.jpg",
        "00000.tar/000000001.jpg",
        "00000.tar/sub/dir.x/000.png",
    ]
    assert table["caption"] == ["a dog", "a cow", "in a folder", "a long name", "a pig"]
    assert table["part"] == [0, 0, 0, 0, 1]
    for key, offset, size in zip(table["key"], table["offset"], table["size"], strict=True):
        name, _, member = key.partition("/")
        place = (root / name).read_bytes()[offset : offset + size]
        assert place == (first | samples(["a pig"], first=2))[member]


def test_a_large_header_in_a_shard_is_read_further(tmp_path):
    """A colour profile or a preview can stand before the size."""
    path = tmp_path / "big.jpg"
    Image.new("RGB", (30, 20)).save(path, icc_profile=b"x" * 3 * rows.HEADER)
    shard(tmp_path / "web" / "0.tar", {"a.jpg": path.read_bytes(), "a.txt": b"profiled"})
    table = open_index(build(tmp_path / "web"))[0].read_all().to_pydict()
    assert (table["width"], table["height"]) == ([30], [20])


@pytest.mark.parametrize("cut", ["inside a file", "inside a header", "before the end mark"])
def test_a_shard_that_was_cut_keeps_what_comes_before(tmp_path, cut, caplog):
    path = shard(tmp_path / "web" / "00000.tar", samples(["one", "two", "three"]))
    shard(tmp_path / "web" / "00001.tar", samples(["four"], first=3))
    members, fault = read_members(path)
    assert len(members) == 9 and not fault
    image = members[6]  # of the third pair
    ends = {
        "inside a file": image.offset + image.size // 2,
        "inside a header": image.offset - 200,
        "before the end mark": -(-(members[8].offset + members[8].size) // 512) * 512,
    }
    with path.open("r+b") as file:
        file.truncate(ends[cut])
    kept = ["one", "two"] + ["three"] * (cut == "before the end mark") + ["four"]
    assert list(content(tmp_path / "web").values()) == kept
    assert "cut short" in skipped(tmp_path / "web")["00000.tar"]
    assert "00000.tar: cut short" in caplog.text


def test_a_file_that_is_no_tar_is_listed_and_the_others_are_read(tmp_path):
    write(tmp_path / "web" / "00000.tar", b"not a tar" * 200)
    write(tmp_path / "web" / "00001.tar", b"")
    shard(tmp_path / "web" / "00002.tar", samples(["four"]))
    assert list(content(tmp_path / "web").values()) == ["four"]
    assert set(skipped(tmp_path / "web")) == {"00000.tar", "00001.tar"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("columns", [("path", "caption"), ("image", "TEXT"), ("file_name", "text")])
def test_manifests(tmp_path, suffix, columns):
    root = tmp_path / "listed"
    lines = [
        ("pictures/a.jpg", 'says "hi",\nand waves'),
        ("pictures/é b.png", "NULL"),  # a word, not a missing value
        (str(tmp_path / "elsewhere.jpg"), "an absolute path"),
        ("pictures/a.jpg", "the same image again"),
    ]
    for seed, (path, _) in enumerate(lines[:3]):
        write(root / path, image_bytes(seed))
    extra = ["x"] * len(lines)
    if suffix == ".parquet":
        values = [list(column) for column in zip(*lines, strict=True)]
        table = pa.table({"id": extra, columns[1]: values[1], columns[0]: values[0]})
        pyarrow.parquet.write_table(table, root / "list.parquet")
    else:
        with (root / f"list{suffix}").open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerow(("id", columns[1], columns[0]))
            writer.writerows(("x", caption, path) for path, caption in lines)
    write(root / "scores.csv", "epoch,recall\n")  # another table does no harm
    table = open_index(build(root))[0].read_all().to_pydict()
    assert table["key"] == [path for path, _ in lines]
    assert table["caption"] == ['says "hi", and waves', *(caption for _, caption in lines[1:])]


def test_a_manifest_without_fitting_columns_is_an_error_that_lists_them(tmp_path):
    write(tmp_path / "list.csv", "url,caption\nhttp://a,b\n")
    assert is_caption_set(tmp_path)
    with pytest.raises(ValueError, match=r"list.csv has the columns url, caption; .*file_name"):
        build(tmp_path)


def test_a_manifest_with_images_inside_is_an_error(tmp_path):
    table = pa.table({"image": [{"bytes": image_bytes(), "path": "a"}], "text": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"column `image` .* holds struct.*write them as files"):
        build(tmp_path)


def test_a_manifest_that_is_not_utf8_is_an_error_that_names_it(tmp_path):
    write(tmp_path / "a.jpg", image_bytes())
    write(tmp_path / "list.csv", b"path,caption\na.jpg,caf\xe9\n")
    with pytest.raises(ValueError, match=r"manifest .*list.csv cannot be read"):
        build(tmp_path)


# ------------------------------------------------------------------------- what is left out


def test_what_cannot_be_used_is_counted_and_listed(pairs, caplog):
    folder = pairs / "birds"
    for name in ("missing", "blank", "null", "number", "list", "broken"):
        write(folder / f"{name}.jpg", image_bytes())
    write(folder / "blank.json", {"caption": " \n\t"})
    write(folder / "null.json", {"caption": None})
    write(folder / "number.json", {"caption": 3})
    write(folder / "list.json", "[1, 2]")
    write(folder / "broken.json", '{"caption": "cut o')
    for name, size in (("wide", (210, 10)), ("tall", (10, 210))):
        write(folder / f"{name}.jpg", image_bytes(size=size))
        write(folder / f"{name}.txt", "extreme")
    write(folder / "just.jpg", image_bytes(size=(200, 10)))
    write(folder / "just.txt", "at the limit")
    for name, harm in (("noimage", b"<html>"), ("empty", b""), ("cut", image_bytes()[:15])):
        write(folder / f"{name}.jpg", harm)
        write(folder / f"{name}.txt", "of a harmed image")
    (folder / "dangling.jpg").symlink_to("nowhere")
    write(folder / "dangling.txt", "of no image")

    assert set(content(pairs).values()) == {"a blue bird", "a red bird", "a cat", "at the limit"}
    reasons = {key.removeprefix("birds/"): why for key, why in skipped(pairs).items()}
    assert reasons["missing.jpg"] == reasons["null.jpg"] == reasons["number.jpg"] == "no caption"
    assert reasons["list.jpg"] == "no caption" and reasons["blank.jpg"] == "blank caption"
    assert reasons["broken.jpg"] == "no caption: its file is not JSON"
    assert reasons["wide.jpg"] == "aspect ratio over 20: 210 x 10"
    assert reasons["tall.jpg"] == "aspect ratio over 20: 10 x 210"
    for name in ("noimage", "empty", "cut"):
        assert reasons[f"{name}.jpg"].startswith("unreadable image: ")
    assert reasons["dangling.jpg"].startswith("unreadable file: No such file")
    assert len(reasons) == 12
    (line,) = (r.message for r in caplog.records if "skipped" in r.message)
    assert "4 image-caption pairs in 2 directories; skipped 12 (5 no caption, " in line
    assert "2 aspect ratio over 20" in line and "index_skipped.csv" in line


def test_the_text_file_stands_in_for_json_without_a_caption(pairs):
    write(pairs / "cats" / "a.json", "{broken")
    write(pairs / "cats" / "a.txt", "from the text")
    assert content(pairs)["cats/a.webp"] == "from the text"
    write(pairs / "cats" / "a.json", {"caption": "from the JSON"})
    build(pairs, recheck=True)
    assert content(pairs)["cats/a.webp"] == "from the JSON"


def test_captions_in_other_encodings(tmp_path):
    for name, text in (
        ("bom", "\ufeffcafé".encode()),
        ("latin", "café".encode("latin-1")),
        ("null", b"a\0b"),
    ):
        write(tmp_path / "d" / f"{name}.jpg", image_bytes())
        write(tmp_path / "d" / f"{name}.txt", text)
    pair(tmp_path / "d", "half.jpg", "half an emoji \ud83d.")  # JSON can say this, UTF-8 cannot
    assert list(content(tmp_path).values()) == ["café", "half an emoji ?.", "café", "a b"]


def test_a_body_that_was_cut_is_the_loaders_matter(tmp_path):
    whole = image_bytes(size=(64, 64))
    write(tmp_path / "d" / "a.jpg", whole[: len(whole) // 2])
    write(tmp_path / "d" / "a.txt", "half")
    assert list(content(tmp_path).values()) == ["half"]


def test_nothing_usable_is_an_error_and_leaves_no_index(tmp_path):
    write(tmp_path / "d" / "a.jpg", b"no image")
    write(tmp_path / "d" / "a.txt", "a")
    with pytest.raises(FileNotFoundError, match=r"none of 1 .*d/a.jpg \(unreadable image"):
        build(tmp_path)
    assert not list(tmp_path.glob("index*")) and not list(tmp_path.glob(".index.arrow*"))


# --------------------------------------------------------------------------------- building again


def test_unchanged_sets_are_not_looked_at(pairs, looked, monkeypatch):
    file = build(pairs)
    assert len(looked) == 3
    before = file.stat()
    monkeypatch.setattr(caption_index, "_write", lambda *_: pytest.fail("was built again"))
    assert build(pairs) == file
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_only_what_is_new_or_changed_is_read_and_what_is_gone_goes(pairs, looked):
    write(pairs / "cats" / "later.jpg", image_bytes())  # without a caption
    build(pairs)
    looked.clear()

    pair(pairs / "birds", "c.jpg", "a new bird", seed=4)
    assert content(pairs)["birds/c.jpg"] == "a new bird"
    assert [path.name for path in looked] == ["c.jpg"]
    assert skipped(pairs) == {"cats/later.jpg": "no caption"}  # kept, though not looked at
    looked.clear()

    (pairs / "birds" / "a.png").unlink()
    assert list(content(pairs)) == ["birds/b.jpg", "birds/c.jpg", "cats/a.webp"]
    assert not looked

    shutil.rmtree(pairs / "cats")
    pair(pairs / "ants", "a.jpg", "an ant", seed=5)
    table = open_index(build(pairs))[0].read_all().to_pydict()
    assert table["key"] == ["ants/a.jpg", "birds/b.jpg", "birds/c.jpg"]
    assert table["part"] == [0, 1, 1]  # numbered anew
    assert [path.name for path in looked] == ["a.jpg"]
    assert skipped(pairs) == {}


def test_a_file_that_was_replaced_is_read_again(pairs, looked):
    build(pairs)
    looked.clear()
    new = write(pairs / "birds" / "new", image_bytes(seed=7, size=(30, 20)))
    new.replace(pairs / "birds" / "b.jpg")  # as a download that ends does
    table = open_index(build(pairs))[0].read_all().to_pydict()
    assert table["width"] == [12, 30, 12]
    assert [path.name for path in looked] == ["b.jpg"]


def test_a_file_overwritten_in_place_is_seen_by_a_recheck(pairs, looked):
    build(pairs)
    looked.clear()
    write(pairs / "cats" / "a.json", {"caption": "another cat"})
    assert content(pairs)["cats/a.webp"] == "a cat"  # as the module's head says
    build(pairs, recheck=True)
    assert content(pairs)["cats/a.webp"] == "another cat"
    assert [path.name for path in looked] == ["a.webp"]


def test_shards_that_came_changed_and_went(tmp_path, looked):
    root = tmp_path / "web"
    for number in range(3):
        shard(root / f"{number}.tar", samples([f"of shard {number}"], first=number))
    build(root)
    looked.clear()
    shard(root / "1.tar", samples(["new", "newer"], first=10))
    shard(root / "3.tar", samples(["of shard 3"], first=3))
    (root / "0.tar").unlink()
    assert list(content(root).values()) == ["new", "newer", "of shard 2", "of shard 3"]
    assert len(looked) == 3
    table = open_index(build(root))[0].read_all().to_pydict()
    assert table["part"] == [0, 0, 1, 2]


def test_a_manifest_that_grew_reads_only_the_new_images(tmp_path, looked):
    for name in "abc":
        write(tmp_path / f"{name}.jpg", image_bytes(ord(name)))
    write(tmp_path / "list.csv", "path,caption\na.jpg,one\nb.jpg,two\n")
    build(tmp_path)
    looked.clear()
    write(tmp_path / "list.csv", "path,caption\na.jpg,ONE\nc.jpg,three\nb.jpg,two\n")
    assert content(tmp_path) == {"a.jpg": "ONE", "c.jpg": "three", "b.jpg": "two"}
    assert [path.name for path in looked] == ["c.jpg"]


def test_building_step_by_step_gives_the_same_index(pairs, tmp_path):
    again = shutil.copytree(pairs, tmp_path / "again")
    build(pairs)
    for root in (pairs, again):
        pair(root / "birds", "0.jpg", "first of all", seed=9)
        pair(root / "dogs", "a.jpg", "a dog", seed=8)
    build(again)
    tables = [open_index(build(root))[0].read_all().drop(["stamp"]) for root in (pairs, again)]
    assert tables[0].to_pydict() == tables[1].to_pydict()


def test_many_rows_are_split_into_batches_and_survive_a_second_build(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_index, "BATCH", 10)
    for number in range(57):
        pair(tmp_path / f"d{number % 5}", f"{number:03d}.jpg", f"number {number}", number)
    wanted = [
        f"number {number}" for folder in range(5) for number in range(57) if number % 5 == folder
    ]
    assert list(content(tmp_path).values()) == wanted
    pair(tmp_path / "d2", "zzz.jpg", "the last of its directory")
    found = list(content(tmp_path).values())
    found.remove("the last of its directory")
    assert found == wanted
    reader, _ = open_index(build(tmp_path))
    sizes = [reader.get_batch(n).num_rows for n in range(reader.num_record_batches)]
    assert sum(sizes) == 58 and max(sizes) <= 10 and len(sizes) < 15


@pytest.mark.parametrize("harm", ["cut", "other version", "no index"])
def test_a_damaged_index_is_built_anew(pairs, harm):
    file = build(pairs)
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif harm == "no index":
        with pa.ipc.new_file(str(file), pa.schema([("a", pa.int32())])) as writer:
            writer.write_table(pa.table({"a": pa.array([1], pa.int32())}))
    else:
        reader, _ = open_index(file)
        table, metadata = reader.read_all(), dict(reader.schema.metadata)
        metadata[b"caption_set"] = metadata[b"caption_set"].replace(
            b'"version": 1', b'"version": 0'
        )
        with pa.ipc.new_file(str(file), caption_index.SCHEMA.with_metadata(metadata)) as writer:
            writer.write_table(table.replace_schema_metadata(metadata))
    assert len(content(pairs)) == 3


def test_an_interrupted_build_leaves_the_old_index(pairs, monkeypatch):
    file = build(pairs)
    before = file.read_bytes()
    pair(pairs / "birds", "c.jpg", "a new bird")

    def interrupt(_source):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(pairs)
    assert file.read_bytes() == before
    assert not [path for path in pairs.iterdir() if path.name.startswith(".index.")]
    (pairs / ".index.killed").mkdir()  # what a kill leaves
    assert "birds/c.jpg" in content(pairs)
    assert not (pairs / ".index.killed").exists()


def test_where_the_folder_cannot_be_written_the_cache_holds_the_index(
    pairs, tmp_path, monkeypatch, looked
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    access = os.access
    monkeypatch.setattr(
        caption_index.os,
        "access",
        lambda path, mode: access(path, mode) and not (mode == os.W_OK and path == pairs),
    )
    file = build(pairs)
    assert file.is_relative_to(tmp_path / "cache") and "mine" in file.parent.name
    assert not (pairs / "index.arrow").exists()
    assert file.with_name("index_skipped.csv").exists()
    assert build(pairs) == file and len(looked) == 3


def test_an_index_beside_the_images_serves_those_who_cannot_write_there(pairs, monkeypatch):
    file = build(pairs)
    monkeypatch.setattr(caption_index.os, "access", lambda *_: False)
    assert build(pairs) == file


# ------------------------------------------------------------------------------------ open shards


def test_few_shards_stay_open_and_reads_are_right(tmp_path):
    paths = [write(tmp_path / f"{n}", bytes([n]) * 100) for n in range(8)]
    shards = OpenShards(most=3)
    rng = np.random.default_rng(0)
    for n in rng.integers(0, 8, 50).tolist():
        assert shards.read(paths[n], 90, 5) == bytes([n]) * 5
        assert len(shards._files) <= 3
    assert shards.read(paths[0], 95, 50) == bytes([0]) * 5  # the file ends
    descriptors = list(shards._files.values())
    shards.close()
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    with pytest.raises(FileNotFoundError):
        shards.read(tmp_path / "missing", 0, 1)
