"""An index holds what its folder holds, embeds nothing twice, and finds what brute force finds."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps

import architectures
from architectures.load import load_embedder
from datasets.reading import read_image
from evaluation import contact_sheet, image_index, indexing, nearest, retrieve, search_models
from evaluation.preprocessing import preprocessing
from evaluation.queries import Query
from utilities import checkpoint


def save_run(folder, seed=0, name="last", arch="test_resnet", **flags):
    """A checkpoint of random weights, as a run leaves it."""
    torch.manual_seed(seed)
    embedder = architectures.create(arch, 8, pretrained=False, image_size=32)
    flags = {"arch": arch, "embed_dim": 8, "image_size": 32, "augmentation": "base", **flags}
    flags = {"dataset": "animals", "use_float16": False, **flags}
    parts = {"embedder": embedder.state_dict(), "flags": flags, "epoch": 2}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / f"{name}.pt", parts)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def where(tmp_path):
    return tmp_path / "index"


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(blocks).resize((48, 40), Image.Resampling.NEAREST).save(path)


@pytest.fixture
def folder(tmp_path):
    """Eight images of seven formats in nested folders; beside them what is none."""
    folder = tmp_path / "photos"
    endings = ("jpg", "PNG", "webp", "gif", "bmp", "tiff", "ppm", "jpg")
    for seed, ending in enumerate(endings):
        draw(folder / "ab"[seed % 2] / f"{seed}.{ending}", seed)
    (folder / "notes.txt").write_text("no image")
    draw(folder / ".thumbnails" / "hidden.png", 99)
    draw(folder / "a" / ".hidden.png", 99)
    return folder


@pytest.fixture
def embedded_paths(monkeypatch):
    """The names of the files that were embedded, in order."""
    names = []
    embed_files = indexing.embed_files

    def noting(model, paths, **options):
        names.extend(path.name for path in paths)
        return embed_files(model, paths, **options)

    monkeypatch.setattr(indexing, "embed_files", noting)
    return names


def index(folder, run, where, bs=3, workers=0):
    """Index a folder; what is embedded, and what has changed."""
    (_, embedded), changes = indexing.build_index(
        folder, search_models.load_model(run), where, bs=bs, workers=workers
    )
    return embedded, changes


def query(images, where, run, k=10):
    vectors = indexing.embed_queries(images, search_models.load_model(run))
    return nearest.search(vectors, image_index.read_index(where), k=k)


def run_command(capsys, *words):
    retrieve.main([str(word) for word in words])
    return capsys.readouterr().out


def refusal(capsys, *words):
    """What a command that ends with a usage error says."""
    with pytest.raises(SystemExit) as stop:
        retrieve.main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


@torch.no_grad()
def brute_force(run, paths):
    """(N, D) unit rows, an image at a time."""
    trained = load_embedder(run)
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std).transform()
    rows = [trained.embedder(prepare(read_image(path))[None]).embeds for path in paths]
    return F.normalize(torch.cat(rows), dim=1).numpy()


def assert_holds(embedded, folder, run):
    """The vectors are those of brute force."""
    paths = [folder / file.path for file in embedded.files]
    np.testing.assert_allclose(embedded.vectors, brute_force(run, paths), atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_format_in_every_folder(folder, run, where, workers):
    embedded, changes = index(folder, run, where, workers=workers)
    assert [file.path for file in embedded.files] == [
        "a/0.jpg", "a/2.webp", "a/4.bmp", "a/6.ppm", "b/1.PNG", "b/3.gif", "b/5.tiff", "b/7.jpg",
    ]  # fmt: skip
    assert changes == (8, 0, 0, 0, 0)
    assert_holds(embedded, folder, run)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), 1, atol=1e-6)
    provenance, read = image_index.read_index(where)
    assert provenance == search_models.load_model(run).provenance(folder)
    assert read.files == embedded.files
    np.testing.assert_array_equal(read.vectors, embedded.vectors)


def test_only_what_is_new_or_changed_is_embedded(folder, run, embedded_paths):
    where = folder / "index"  # among the images
    index(folder, run, where)
    seal = (where / image_index.INDEX / "entry.json").stat()
    embedded_paths.clear()
    assert index(folder, run, where)[1] == (0, 0, 0, 8, 0)
    assert (where / image_index.INDEX / "entry.json").stat().st_mtime_ns == seal.st_mtime_ns
    assert embedded_paths == []

    draw(folder / "a" / "new.png", 20)
    draw(folder / "b" / "1.PNG", 21)
    os.utime(folder / "b" / "7.jpg", ns=(1, 1))  # the same bytes at another time
    (folder / "a" / "4.bmp").unlink()
    embedded, changes = index(folder, run, where)
    assert changes == (1, 2, 1, 5, 0)
    assert sorted(embedded_paths) == ["1.PNG", "7.jpg", "new.png"]
    assert "a/4.bmp" not in [file.path for file in embedded.files]
    assert_holds(embedded, folder, run)
    assert [path.name for path in where.iterdir()] == [image_index.INDEX]  # nothing older, no parts


def test_an_index_in_a_folder_of_other_files_leaves_them(folder, run):
    index(folder, run, folder)
    assert (folder / "notes.txt").exists() and len(list(folder.rglob("*.jpg"))) == 2
    assert index(folder, run, folder)[1] == (0, 0, 0, 8, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_and_tried_once(
    folder, run, where, embedded_paths, caplog, workers
):
    (folder / "a" / "empty.jpg").touch()
    whole = (folder / "b" / "7.jpg").read_bytes()
    (folder / "b" / "7.jpg").write_bytes(whole[: len(whole) // 2])
    embedded, changes = index(folder, run, where, bs=1, workers=workers)
    assert {file.path for file in embedded.unreadable} == {"a/empty.jpg", "b/7.jpg"}
    assert all(embedded.unreadable.values())  # with a reason
    assert (len(embedded.files), changes.unreadable) == (7, 2)
    assert "empty.jpg" in caplog.text and "7.jpg" in caplog.text
    embedded_paths.clear()
    index(folder, run, where)
    assert embedded_paths == []
    (folder / "b" / "7.jpg").write_bytes(whole)
    embedded, changes = index(folder, run, where)
    assert embedded_paths == ["7.jpg"]
    assert (len(embedded.files), changes.unreadable) == (8, 1)


def test_an_interrupted_pass_is_resumed(folder, run, where, tmp_path, embedded_paths, monkeypatch):
    """Interrupted in its third batch of two: the old index is whole, four images are kept."""
    for path in sorted(folder.glob("b/*")):
        path.rename(tmp_path / path.name)
    index(folder, run, where)
    before = image_index.read_index(where).embedded
    for seed in range(30, 38):
        draw(folder / "b" / f"{seed}.png", seed)
    monkeypatch.setattr(indexing, "PART_SECONDS", 0)
    written = []

    def interrupted(place, part):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(place)
        image_index.write_index(place, part)

    monkeypatch.setattr(indexing, "write_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index(folder, run, where, bs=2)
    np.testing.assert_array_equal(image_index.read_index(where).embedded.vectors, before.vectors)
    monkeypatch.setattr(indexing, "write_index", image_index.write_index)
    embedded_paths.clear()
    (folder / "b" / "31.png").unlink()  # embedded already, and gone since
    damaged = where / image_index.PARTS / "00009"
    shutil.copytree(written[0], damaged)
    (damaged / image_index.INDEX / image_index.VECTORS).write_bytes(b"cut short")
    embedded, changes = index(folder, run, where, bs=2)
    assert embedded_paths == ["34.png", "35.png", "36.png", "37.png"]
    assert changes == (7, 0, 0, 4, 0)
    assert_holds(embedded, folder, run)
    assert [path.name for path in where.iterdir()] == [image_index.INDEX]


def test_parts_of_another_checkpoint_are_not_used(folder, run, where, tmp_path):
    other = search_models.load_model(save_run(tmp_path / "other", seed=1))
    files = indexing.list_files(folder.resolve(), where)
    wrong = image_index.EmbeddedFiles(files, np.eye(8, dtype=np.float32), {})
    place = where / image_index.PARTS / "00000"
    image_index.write_index(place, image_index.ImageIndex(other.provenance(folder), wrong))
    embedded, _ = index(folder, run, where)
    assert_holds(embedded, folder, run)
    assert not (where / image_index.PARTS).exists()


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit_normalize"])
def test_a_query_finds_what_brute_force_finds(folder, where, tmp_path, arch):
    run = save_run(tmp_path / "run", arch=arch)
    shutil.copy(folder / "a" / "0.jpg", folder / "b" / "copy.jpg")
    index(folder, run, where)
    draw(tmp_path / "asked.png", 50)
    queries = [tmp_path / "asked.png", folder / "a" / "0.jpg"]
    found = query(queries, where, run, k=100)
    gallery = sorted(p for p in folder.glob("[ab]/*") if not p.name.startswith("."))
    similarities = brute_force(run, queries) @ brute_force(run, gallery).T
    for hits, expected in zip(found, similarities, strict=True):
        assert [hit.rank for hit in hits] == list(range(1, 10))  # all nine, fewer than k
        assert {hit.path for hit in hits} == set(gallery)
        np.testing.assert_allclose(
            [hit.similarity for hit in hits], np.sort(expected)[::-1], atol=1e-5
        )
        for hit in hits:
            assert hit.similarity == pytest.approx(expected[gallery.index(hit.path)], abs=1e-5)
    assert [hit.path.name for hit in found[1][:2]] == ["0.jpg", "copy.jpg"]
    assert found[1][1].similarity == pytest.approx(1, abs=1e-5)
    assert query(queries, where, run, k=2) == [hits[:2] for hits in found]


def test_equally_similar_images_come_by_path(run, where, tmp_path):
    for name in ("c.png", "a.png", "d.png", "b.png"):
        draw(tmp_path / "photos" / name, 3)
    index(tmp_path / "photos", run, where, bs=4)
    for k in (1, 2, 3, 4):
        (hits,) = query([tmp_path / "photos" / "d.png"], where, run, k=k)
        assert [hit.path.name for hit in hits] == ["a.png", "b.png", "c.png", "d.png"][:k]


def test_another_checkpoint_preprocessing_or_folder_is_refused(
    folder, run, where, tmp_path, capsys
):
    index(folder, run, where)
    asked = ("query", folder / "a" / "0.jpg", "--index", where)
    other = save_run(tmp_path / "other", seed=1)
    said = refusal(capsys, *asked, "--checkpoint", other)
    assert "last.pt of epoch 2 " in said and "Give the checkpoint that made it" in said
    with pytest.raises(ValueError, match=r"index .*photos with this one into another index"):
        index(folder, other, where)
    cropped = save_run(tmp_path / "cropped", dataset="emoji")  # its recipe crops nothing
    assert "embeds differently" in refusal(capsys, *asked, "--checkpoint", cropped)
    with pytest.raises(ValueError, match=r"is of the folder .*photos, not of .*photos/a; give"):
        index(folder / "a", run, where)
    same = save_run(tmp_path / "same", name="best_test_embeds_nmi") / "best_test_embeds_nmi.pt"
    assert run_command(capsys, *asked, "--checkpoint", same)


def test_embeddings_that_are_not_finite_are_refused(folder, where, tmp_path):
    run = save_run(tmp_path / "run")
    parts = checkpoint.load(run / "last.pt")
    parts["embedder"]["embedding.bias"][0] = float("nan")
    checkpoint.save(run / "last.pt", parts)
    with pytest.raises(ValueError, match=r"last.pt gives embeddings that are not finite"):
        index(folder, run, where)
    assert not where.exists()


def test_nothing_to_index(run, where, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        index(tmp_path / "absent", run, where)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"no readable image \(1 that cannot be read\)"):
        index(tmp_path / "bad", run, where)


@pytest.mark.parametrize("name", [image_index.IMAGES, image_index.VECTORS, "entry.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_damaged_index_says_what_to_do(folder, run, where, damage, name):
    index(folder, run, where)
    file = where / image_index.INDEX / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:50])
    with pytest.raises(ValueError, match=r"index cannot be read .*; delete .* index its folder"):
        image_index.read_index(where)


def test_a_disk_that_is_full_as_a_file_is_closed_is_noticed(tmp_path, monkeypatch):
    """FAISS itself overlooks it."""
    monkeypatch.setattr(image_index, "VECTORS", "/dev/full")
    files = image_index.EmbeddedFiles([], np.zeros((0, 4), np.float32), {})
    provenance = image_index.Provenance(tmp_path, tmp_path, 1, "", 4)
    with pytest.raises(OSError, match=r"No space left on device while writing.*retrieval_index'"):
        image_index.write_index(tmp_path, image_index.ImageIndex(provenance, files))
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_another_version_says_what_to_do(folder, run, where, monkeypatch):
    monkeypatch.setattr(image_index, "FORMAT", 4)
    index(folder, run, where)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 4 is newer than this version's 3"):
        image_index.read_index(where)
    shutil.rmtree(where)
    monkeypatch.setattr(image_index, "READING", 1)  # turned images as they are stored
    index(folder, run, where)
    monkeypatch.undo()
    for attempt in (lambda: image_index.read_index(where), lambda: index(folder, run, where)):
        with pytest.raises(ValueError, match=r"reads some images otherwise.* index its folder"):
            attempt()
    shutil.rmtree(where)
    where.mkdir()
    (where / "index.json").write_text("{}")
    for attempt in (lambda: image_index.read_index(where), lambda: index(folder, run, where)):
        with pytest.raises(ValueError, match=r"earlier version; delete index.json .* index the fo"):
            attempt()


def test_command_line(folder, run, where, tmp_path, capsys):
    sheet = tmp_path / "out" / "found.png"
    indexed = ("index", folder, "--checkpoint", run, "--index", where, "--kernels", 0)
    out = run_command(capsys, *indexed)
    assert "8 images x 8 dimensions" in out and "8 new, 0 changed" in out
    told = json.loads(run_command(capsys, *indexed, "--json"))
    assert (told["images"], told["unchanged"], told["bytes"]) == (8, 8, 8 * 8 * 4)

    queries = (folder / "a" / "0.jpg", folder / "b" / "1.PNG")
    (folder / "b" / "3.gif").unlink()  # since it was indexed
    asked = ("query", *queries, "--index", where, "--k", 8)
    out = run_command(capsys, *asked, "--save", sheet)
    lines = out.splitlines()
    assert lines[0] == f"query: {queries[0]}" and lines[1] == "rank  similarity  path"
    assert lines[2].split() == ["1", "1.0000", str(queries[0])]
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.size == sheet_size(columns=9, lines=2)
        tile, middle = contact_sheet.TILE + contact_sheet.GAP, contact_sheet.TILE // 2
        place = contact_sheet.GAP + middle
        row = np.asarray(image)[place, contact_sheet.GAP + place + tile :: tile]
    assert len(row) == 8
    assert sum((colour == 238).all() for colour in row) == 1  # the one that is gone

    told = json.loads(run_command(capsys, *asked, "--json"))
    assert [entry["query"] for entry in told] == [str(path) for path in queries]
    assert [hit["rank"] for hit in told[0]["neighbours"]] == list(range(1, 9))
    assert told[0]["neighbours"][0]["path"] == str(queries[0])


@pytest.mark.parametrize("k", [1, 3, 9])
def test_a_query_and_its_copies_are_left_out(folder, run, where, tmp_path, capsys, k):
    """Those of its file and those of its bytes, not another picture with the same embedding."""
    asked, twin = folder / "a" / "0.jpg", folder / "b" / "twin.png"
    shutil.copy(asked, folder / "b" / "copy.jpg")
    with Image.open(asked) as image:
        image.save(twin)
    index(folder, run, where)
    command = ("query", asked, "--index", where, "--json", "--k")
    whole = json.loads(run_command(capsys, *command, 99))[0]["neighbours"]
    own = {str(asked), str(folder / "b" / "copy.jpg")}
    assert {hit["path"] for hit in whole[:3]} == own | {str(twin)} and len(whole) == 10
    left = json.loads(run_command(capsys, *command, k, "--leave_out_query"))[0]["neighbours"]
    rest = [(hit["path"], hit["similarity"]) for hit in whole if hit["path"] not in own]
    assert [(hit["path"], hit["similarity"]) for hit in left] == rest[:k]
    assert [hit["rank"] for hit in left] == list(range(1, min(k, 8) + 1))

    upload = shutil.copy(asked, tmp_path / "upload.jpg")  # outside of the folder, the same bytes
    command = ("query", upload, "--index", where, "--json", "--k", k, "--leave_out_query")
    assert json.loads(run_command(capsys, *command))[0]["neighbours"] == left


def test_a_query_that_changed_or_vanished_since_is_left_out(folder, run, where):
    asked = folder / "a" / "0.jpg"
    index(folder, run, where)
    draw(asked, 77)
    [vector] = indexing.embed_queries([asked], search_models.load_model(run))
    stored = image_index.read_index(where)
    assert nearest.rows_of_image(asked, vector, stored) == {0}
    asked.unlink()
    assert nearest.rows_of_image(asked, stored.embedded.vectors[0], stored) == {0}


def test_the_only_image_is_left_out(run, where, tmp_path, capsys):
    draw(tmp_path / "photos" / "alone.png", 1)
    index(tmp_path / "photos", run, where)
    command = ("query", tmp_path / "photos" / "alone.png", "--index", where, "--leave_out_query")
    out = run_command(capsys, *command, "--save", tmp_path / "sheet.png")
    assert out.splitlines()[1:] == ["rank  similarity  path", ""]
    assert "leaves out an IMAGE" in refusal(capsys, "query", "--words", "x", *command[2:])


def test_the_contact_sheet_shows_folders(folder, run, where, tmp_path, capsys, monkeypatch):
    """As seen from the indexed folder, which itself has no name; long ones keep both ends."""
    drawn = []
    text = ImageDraw.ImageDraw.text

    def noting(self, place, line, *args, **options):
        drawn.append((place, line))
        return text(self, place, line, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    deep = folder / ("many kinds of " * 9 + "animals") / "deep.png"
    draw(deep, 60)
    draw(folder / "top.png", 61)
    index(folder, run, where)
    command = ("query", folder / "top.png", "--index", where, "--k", 10)
    run_command(capsys, *command, "--save", tmp_path / "sheet.png")
    below = {line: (x, y + 14) for (x, y), line in drawn}
    at = {place: line for place, line in drawn}
    folders = {name: at.get(place) for name, place in below.items() if "." in name}
    assert folders["4.bmp"] == "a" and folders["7.jpg"] == "b" and folders["top.png"] is None
    assert folders["deep.png"].startswith("many kinds") and folders["deep.png"].endswith("animals")
    assert "…" in folders["deep.png"]


def sheet_size(columns, lines):
    tile, gap = contact_sheet.TILE + contact_sheet.GAP, contact_sheet.GAP
    return columns * tile + 2 * gap, lines * (tile + contact_sheet.LABEL) + gap


def test_a_long_list_wraps_in_the_contact_sheet(folder, tmp_path):
    asked = folder / "a" / "0.jpg"
    hits = [nearest.Hit(rank, 0.5, asked) for rank in range(1, 14)]
    contact_sheet.contact_sheet([Query(asked)], [hits], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == sheet_size(columns=11, lines=2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "at least one IMAGE or --words"),
        (("absent.png",), "no image absent.png"),
        (("{image}", "--k", "0"), "--k must be at least 1; got 0"),
        (("{image}", "--save", "found.jpg"), "--save must name a .png file; got found.jpg"),
        (("{image}",), "make one first"),
    ],
    ids=["nothing", "absent", "k", "save", "index"],
)
def test_a_query_that_cannot_be_answered(folder, where, capsys, words, says):
    words = [word.format(image=folder / "a" / "0.jpg") for word in words]
    assert says in refusal(capsys, "query", *words, "--index", where)


def test_what_is_no_regular_file_is_never_opened(folder, run, where, caplog, capsys):
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "b" / "gone.jpg").symlink_to("nowhere")
    assert index(folder, run, where)[1] == (8, 0, 0, 0, 0)
    assert f"skipped in {folder}: " in caplog.text
    assert "named pipe (1)" in caplog.text and "broken link (1)" in caplog.text
    asked = ("query", folder / "a" / "pipe.png", "--index", where)
    assert "pipe.png is a named pipe; give an image" in refusal(capsys, *asked)


@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 8])
def test_a_turned_image_and_its_upright_twin_are_the_same(folder, run, where, orientation):
    path, exif = folder / "a" / "0.jpg", Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(folder / "turned.png", exif=exif)
    with Image.open(folder / "turned.png") as image:
        ImageOps.exif_transpose(image).save(folder / "upright.png")
    index(folder, run, where)
    for asked, twin in (("turned.png", "upright.png"), ("upright.png", "turned.png")):
        (hits,) = query([folder / asked], where, run, k=2)
        assert {hit.path.name for hit in hits} == {asked, twin}
        assert hits[1].similarity == pytest.approx(1, abs=1e-5)
    upright = np.asarray(read_image(folder / "upright.png"))
    assert np.array_equal(np.asarray(read_image(folder / "turned.png")), upright)
    hits = [nearest.Hit(1, 1.0, folder / name) for name in ("turned.png", "upright.png")]
    asked = Query(folder / "turned.png")
    contact_sheet.contact_sheet([asked], [hits], where.parent / "sheet.png")
    with Image.open(where.parent / "sheet.png") as sheet:
        step, tile = contact_sheet.TILE + contact_sheet.GAP, contact_sheet.TILE
        top, left = contact_sheet.GAP, 2 * contact_sheet.GAP + step
        tiles = [
            np.asarray(sheet.crop((left + n * step, top, left + n * step + tile, top + tile)))
            for n in range(2)
        ]
    assert np.array_equal(*tiles) and len(np.unique(tiles[0])) > 2


def test_an_extreme_image_has_a_place_in_the_contact_sheet(tmp_path):
    Image.new("RGB", (3000, 1)).save(tmp_path / "long.png")
    hits = [nearest.Hit(1, 1.0, tmp_path / "long.png")]
    asked = Query(tmp_path / "long.png")
    contact_sheet.contact_sheet([asked], [hits], tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()


def test_what_is_skipped_is_counted_by_ending(folder, run, where, caplog):
    for name in ("x.heic", "a/y.HEIC", "a/z.svg", "noending"):
        (folder / name).write_bytes(b"x")
    index(folder, run, where)
    said = "skipped in {}: .heic (2), .svg (1), .txt (1), without an ending (1)"
    assert said.format(folder) in caplog.text


def test_a_query_that_is_not_an_image(folder, run, where):
    index(folder, run, where)
    with pytest.raises(ValueError, match=r"query cannot be read: .*notes.txt"):
        query([folder / "notes.txt"], where, run)
