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


@pytest.fixture
def looked(monkeypatch):
    """The images that were opened since the list was last cleared."""
    opened = []
    measure = rows.measure
    monkeypatch.setattr(rows, "measure", lambda source: opened.append(source) or measure(source))
    return opened


@pytest.fixture
def pairs(tmp_path):
    root = tmp_path / "mine"
    pair(root / "birds", "b.jpg", "a blue bird", seed=1)
    pair(root / "birds", "a.png", "a red bird", seed=2, as_json=False)
    pair(root / "cats", "a.webp", "a cat", seed=3)
    return root


def table_of(root):
    """The columns of the index, up to date."""
    return open_index(build(root))[0].read_all().to_pydict()


def content(root):
    """{key: caption} in the order of the rows."""
    table = table_of(root)
    return dict(zip(table["key"], table["caption"], strict=True))


def skipped(root):
    """{key: reason} of what was left out."""
    with (root / "index_skipped.csv").open(newline="") as lines:
        return {line["key"]: line["reason"] for line in csv.DictReader(lines)}


# --------------------------------------------------------------------------------- recognition


IMAGE, CAPTION = image_bytes(), {"caption": "a"}
URLS = pa.table({"url": ["http://a"], "caption": ["a"], "key": ["000000000"]})  # of img2dataset
LAYOUTS = {
    "pairs": ({"birds/a.jpg": IMAGE, "birds/a.json": CAPTION}, "pairs"),
    "no directories": ({"a.jpg": IMAGE, "a.txt": "a"}, "pairs"),
    "a directory called images": ({"images/a.jpg": IMAGE, "images/a.txt": "a"}, "pairs"),
    "shards": ({"00000.tar": samples(["a"])}, "shards"),
    "csv": ({"list.csv": "path,caption\n"}, "manifests"),
    "tsv": ({"list.tsv": "TEXT\timage_path\n"}, "manifests"),
    "a table beside shards": ({"0.parquet": URLS, "0.tar": samples(["a"])}, "shards"),
    "a table beside directories": (
        {"0.parquet": URLS, "0/0.jpg": IMAGE, "0/0.json": CAPTION},
        "pairs",
    ),
    "class folders": (
        {"images/cat/1.jpg": IMAGE, "captions.json": {"cat/1.jpg": "a cat"}, "notes.txt": "2019"},
        None,
    ),
    "class folders, whatever lies beside": (
        {"images/cat/2.jpg": IMAGE, "images/cat/2.txt": "a", "more/3.jpg": IMAGE, "more/3.txt": ""},
        None,
    ),
    "no captions": ({"cat/1.jpg": IMAGE}, None),
    "another table": ({"scores.csv": "epoch,recall\n1,0.5\n"}, None),
    "no folder": ({}, None),
}


@pytest.mark.parametrize(("files", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_are_recognised(tmp_path, files, expected):
    for name, content in files.items():
        if name.endswith(".tar"):
            shard(tmp_path / "mine" / name, content)
        elif isinstance(content, pa.Table):
            (tmp_path / "mine").mkdir()
            pyarrow.parquet.write_table(content, tmp_path / "mine" / name)
        else:
            write(tmp_path / "mine" / name, content)
    assert layout(tmp_path / "mine") == expected
    assert is_caption_set(tmp_path / "mine") == (expected is not None)


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


def test_odd_names(tmp_path):
    root = tmp_path / "odd"
    names = ["a.b.c.jpg", "with space & 'quotes'.jpg", "ünï-漢字.png", "UPPER.JPG", "-dash.jpeg"]
    for seed, name in enumerate(names):
        pair(root / "dir.with.dots", name, f"caption {seed}", seed)
    write(root / "dir.with.dots" / ".hidden.jpg", b"")
    write(root / ".hidden" / "a.jpg", b"")
    write(root / "dir.with.dots" / "notes.md", "no image")
    found = {f"dir.with.dots/{name}": f"caption {seed}" for seed, name in enumerate(names)}
    assert content(root) == found
    pair(root, "z.JPEG", "of no directory", as_json=False)
    assert content(root) == {"z.JPEG": "of no directory"} | found
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
    table = table_of(root)
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
    table = table_of(tmp_path / "web")
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
    table = table_of(root)
    assert table["key"] == [path for path, _ in lines[:3]]
    assert table["caption"] == [
        'says "hi", and waves\nthe same image again', "NULL", "an absolute path"
    ]  # fmt: skip


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(tmp_path, separator, encoding):
    write(tmp_path / "a.jpg", image_bytes())
    text = separator.join(("id", "file_name", "caption")) + "\r\n"
    text += separator.join(("1", "a.jpg", "größer, schöner")) + "\r\n"
    write(tmp_path / "list.csv", text.encode(encoding))
    assert content(tmp_path) == {"a.jpg": "größer, schöner"}


def test_several_captions_in_every_layout(tmp_path):
    """A list in JSON, lines in text, a list in a table and lines that repeat a path."""
    captions = ["one", " two,\nin lines", "", "three"]
    expected = "one\ntwo, in lines\nthree"
    pair(tmp_path / "pairs" / "d", "json.jpg", captions)
    pair(tmp_path / "pairs" / "d", "text.jpg", "one\r\n two, in  lines\n\nthree\n", as_json=False)
    wide = "one\ntwo, in lines\nthree".encode("utf-16")
    write(pair(tmp_path / "pairs" / "d", "wide.jpg", "").with_suffix(".txt"), wide)
    (tmp_path / "pairs" / "d" / "wide.json").unlink()
    shard(tmp_path / "shards" / "0.tar", samples([captions[0], captions]))
    tables = {
        "list": {"path": ["a.jpg", "b.jpg"], "caption": [captions, ["only"]]},
        "lines": {
            "path": ["a.jpg", "b.jpg", "a.jpg", "a.jpg", "a.jpg"],
            "caption": ["one", "only", " two,\nin lines", None, "three"],
        },
    }
    for name, table in tables.items():
        for image in ("a.jpg", "b.jpg"):
            write(tmp_path / name / image, image_bytes())
        pyarrow.parquet.write_table(pa.table(table), tmp_path / name / "list.parquet")
        assert content(tmp_path / name) == {"a.jpg": expected, "b.jpg": "only"}
    assert set(content(tmp_path / "pairs").values()) == {expected}
    assert list(content(tmp_path / "shards").values()) == ["one", expected]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (3, "no caption: caption must be a text or a list of texts; got a number"),
        ({"en": "a"}, "no caption: caption must be a text or a list of texts; got an object"),
        (["a", None], "no caption: caption must be a text or a list of texts; got null in a list"),
        ([["a"]], "no caption: caption must be a text or a list of texts; got a list in a list"),
        (True, "no caption: caption must be a text or a list of texts; got true or false"),
        ([" "], "blank caption"),
        ([], "blank caption"),
    ],
)
def test_captions_of_other_types_are_left_out_by_name(pairs, caption, reason):
    pair(pairs / "birds", "odd.jpg", caption)
    assert "birds/odd.jpg" not in content(pairs)
    assert skipped(pairs) == {"birds/odd.jpg": reason}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "url,caption\nhttp://a,b\n", r"list.csv has the columns url, cap.*file_name"),
        ("list.csv", b"path,caption\na.jpg,caf\xe9\n", r"manifest .*list.csv cannot be read"),
        (
            "list.parquet",
            pa.table({"image": [{"bytes": IMAGE, "path": "a"}], "text": ["a"]}),
            r"column `image` .* holds struct.*write them as files",
        ),
    ],
    ids=["other columns", "not UTF-8", "images inside"],
)
def test_a_manifest_that_cannot_be_used_is_an_error_that_names_it(tmp_path, name, content, message):
    write(tmp_path / "a.jpg", IMAGE)
    if isinstance(content, pa.Table):
        pyarrow.parquet.write_table(content, tmp_path / name)
    else:
        write(tmp_path / name, content)
    assert is_caption_set(tmp_path)
    with pytest.raises(ValueError, match=message):
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
    assert reasons["missing.jpg"] == reasons["null.jpg"] == "no caption"
    assert reasons["number.jpg"].startswith("no caption: caption must be a text")
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


def test_captions_in_other_encodings_and_in_both_files(tmp_path):
    for name, text in (
        ("bom", "\ufeffcafé".encode()),
        ("latin", "café".encode("latin-1")),
        ("null", b"a\0b"),
    ):
        write(tmp_path / "d" / f"{name}.jpg", image_bytes())
        write(tmp_path / "d" / f"{name}.txt", text)
    pair(tmp_path / "d", "half.jpg", "half an emoji \ud83d.")  # JSON can say this, UTF-8 cannot
    pair(tmp_path / "d", "json.jpg", "the JSON comes first")
    write(tmp_path / "d" / "json.txt", "before the text")
    whole = image_bytes(size=(64, 64))
    write(tmp_path / "d" / "text.jpg", whole[: len(whole) // 2])  # a cut body is read later
    write(tmp_path / "d" / "text.json", "{broken")
    write(tmp_path / "d" / "text.txt", "the text instead")
    assert list(content(tmp_path).values()) == [
        *("café", "half an emoji ?.", "the JSON comes first", "café", "a b", "the text instead"),
    ]


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
    table = table_of(pairs)
    assert table["key"] == ["ants/a.jpg", "birds/b.jpg", "birds/c.jpg"]
    assert table["part"] == [0, 1, 1]  # numbered anew
    assert [path.name for path in looked] == ["a.jpg"]
    assert skipped(pairs) == {}


@pytest.mark.parametrize("n_looked_at", [0, 100_000])
def test_a_replaced_file_is_read_again_and_one_overwritten_in_place_if_it_is_looked_at(
    pairs, looked, monkeypatch, n_looked_at
):
    """At each start, or beyond the first files by a recheck."""
    monkeypatch.setattr(layouts, "LOOKED_AT", n_looked_at)
    build(pairs)
    looked.clear()
    new = write(pairs / "birds" / "new", image_bytes(seed=7, size=(30, 20)))
    new.replace(pairs / "birds" / "b.jpg")  # as a download that ends does
    assert table_of(pairs)["width"] == [12, 30, 12]
    write(pairs / "cats" / "a.json", {"caption": "another cat"})
    assert content(pairs)["cats/a.webp"] == ("another cat" if n_looked_at else "a cat")
    build(pairs, recheck=True)
    assert content(pairs)["cats/a.webp"] == "another cat"
    assert [path.name for path in looked] == ["b.jpg", "a.webp"]


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
    table = table_of(root)
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


def test_many_rows_are_split_into_batches_and_building_again_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_index, "BATCH", 10)
    root, again = tmp_path / "mine", tmp_path / "again"
    for number in range(57):
        pair(root / f"d{number % 5}", f"{number:03d}.jpg", f"number {number}", number)
    wanted = [
        f"number {number}" for folder in range(5) for number in range(57) if number % 5 == folder
    ]
    assert list(content(root).values()) == wanted
    shutil.copytree(root, again, ignore=shutil.ignore_patterns("*index*"))
    for folder in (root, again):
        pair(folder / "d2", "zzz.jpg", "the last of its directory")
        pair(folder / "a0", "0.jpg", "first of all")
    tables = [open_index(build(folder))[0].read_all().drop(["stamp"]) for folder in (root, again)]
    assert tables[0].to_pydict() == tables[1].to_pydict() and len(tables[0]) == 59
    reader, _ = open_index(build(root))
    sizes = [reader.get_batch(n).num_rows for n in range(reader.num_record_batches)]
    assert max(sizes) <= 10 and len(sizes) < 15


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
        now = b'"version": %d' % caption_index.VERSION
        assert now in metadata[b"caption_set"]
        metadata[b"caption_set"] = metadata[b"caption_set"].replace(now, b'"version": 1')
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
    pairs, own_cache, monkeypatch, looked
):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != pairs and access(path, mode))
    file = build(pairs)
    assert file.is_relative_to(own_cache) and "mine" in file.parent.name
    assert not (pairs / "index.arrow").exists()
    assert file.with_name("index_skipped.csv").exists()
    assert build(pairs) == file and len(looked) == 3
    pair(pairs / "birds", "c.jpg", "a new bird")
    assert content(pairs)["birds/c.jpg"] == "a new bird" and len(looked) == 4
    monkeypatch.setattr(os, "access", access)
    beside = build(pairs)
    assert beside == pairs / "index.arrow"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert build(pairs) == beside  # which serves those who cannot write there


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


# --------------------------------------------------------------------------------------- odd files
def odd(path, kind):
    """A pipe, which nobody writes to, or a device that never ends."""
    if kind == "named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["named pipe", "device"])
@pytest.mark.parametrize("ending", [".json", ".txt", ".jpg"])
def test_odd_files_beside_pairs_are_skipped_unread(pairs, ending, kind):
    write(pairs / "new" / "0.jpg", image_bytes())
    write(pairs / "new" / "0.txt", "one")
    (pairs / "new" / f"1{ending}").parent.mkdir(exist_ok=True)
    if ending != ".jpg":
        write(pairs / "new" / "1.jpg", image_bytes())
    odd(pairs / "new" / f"1{ending}", kind)
    build(pairs)
    what = kind if ending == ".jpg" else f"caption file that is a {kind}"
    assert skipped(pairs)["new/1.jpg"] == what


def test_a_caption_file_without_end_is_skipped(pairs):
    write(pairs / "new" / "1.jpg", image_bytes())
    write(pairs / "new" / "1.txt", "word " * (1 << 18))
    build(pairs)
    assert skipped(pairs)["new/1.jpg"] == "caption file over 1,048,576 bytes"


@pytest.mark.parametrize("kind", ["named pipe", "device"])
@pytest.mark.parametrize("name", ["a.tar", "a.csv", "a.parquet"])
def test_an_odd_shard_or_table_is_not_read(tmp_path, name, kind):
    odd(tmp_path / name, kind)
    with pytest.raises(FileNotFoundError, match="image-caption pairs"):
        build(tmp_path)
    if name == "a.tar":
        shard(tmp_path / "b.tar", samples(["one"]))
        assert list(content(tmp_path)) == ["b.tar/000000000.jpg"]
        assert skipped(tmp_path) == {"a.tar": kind}


def test_images_without_a_decoder_and_nested_folders_are_listed(pairs, tmp_path):
    for name in ("1.heic", "2.HEIC", "3.svg", "4.npy"):
        write(pairs / "new" / name, b"x")
    write(pairs / "new" / "deeper" / "5.jpg", image_bytes())
    write(pairs / "new" / "0.jpg", image_bytes())
    write(pairs / "new" / "0.txt", "one")
    build(pairs)
    found = {key: reason for key, reason in skipped(pairs).items() if key.startswith("new/")}
    assert found == {
        "new/1.heic": ".heic: no decoder for it",
        "new/2.HEIC": ".heic: no decoder for it",
        "new/3.svg": ".svg: no decoder for it",
        "new/deeper": "nested folder",
    }
    shard(tmp_path / "shards" / "0.tar", samples(["one"]) | {"9.heic": b"x", "9.txt": b"nine"})
    build(tmp_path / "shards")
    assert skipped(tmp_path / "shards") == {"0.tar/9.heic": ".heic: no decoder for it"}


def test_a_directory_whose_name_is_not_utf8_is_refused_by_name(pairs):
    folder = pairs / os.fsdecode(b"caf\xe9_2020")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write(folder / "1.jpg", image_bytes())
    with pytest.raises(ValueError, match=r"not in UTF-8: b'caf.xe9_2020'; rename.*convmv"):
        build(pairs)
