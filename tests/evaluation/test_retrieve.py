"""An index holds what its folder holds, embeds nothing twice, and finds what brute force finds."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import architectures
import evaluation.retrieve as retrieve
from architectures.load import load_embedder
from datasets.reading import read_image
from evaluation.preprocessing import preprocessing
from utilities import checkpoint


def save_run(folder, seed=0, name="last", arch="test_resnet", **flags):
    """A checkpoint of random weights, as a run leaves it."""
    torch.manual_seed(seed)
    embedder = architectures.create(arch, 8, pretrained=False, image_size=32)
    flags = {"arch": arch, "embed_dim": 8, "image_size": 32, "augmentation": "base", **flags}
    flags = {"dataset": "animals", "use_float16": False, **flags}
    parts = {"embedder": embedder.state_dict(), "flags": flags, "epoch": 2}
    checkpoint.save(folder / f"{name}.pt", parts)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def trained(run):
    return load_embedder(run)


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
    embed_files = retrieve.embed_files

    def noting(trained, transform, paths, **options):
        names.extend(path.name for path in paths)
        return embed_files(trained, transform, paths, **options)

    monkeypatch.setattr(retrieve, "embed_files", noting)
    return names


def index(folder, trained, where, bs=3, **options):
    return retrieve.build_index(folder, trained, where, bs=bs, workers=0, **options)


@torch.no_grad()
def brute_force(trained, paths):
    """(N, D) unit rows, an image at a time."""
    prepare = preprocessing(trained.flags, trained.embedder.mean, trained.embedder.std).transform()
    rows = [trained.embedder(prepare(read_image(path))[None]).embeds for path in paths]
    return F.normalize(torch.cat(rows), dim=1).numpy()


def test_every_format_in_every_folder(folder, trained, tmp_path):
    source, embedded, changes = index(folder, trained, tmp_path / "index")
    paths = [folder / file.path for file in embedded.files]
    assert [file.path for file in embedded.files] == [
        "a/0.jpg", "a/2.webp", "a/4.bmp", "a/6.ppm", "b/1.PNG", "b/3.gif", "b/5.tiff", "b/7.jpg",
    ]  # fmt: skip
    assert changes == (8, 0, 0, 0, 0)
    np.testing.assert_allclose(embedded.vectors, brute_force(trained, paths), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), 1, atol=1e-6)
    read_source, read = retrieve.read_index(tmp_path / "index")
    assert read_source == source
    assert read.files == embedded.files
    np.testing.assert_array_equal(read.vectors, embedded.vectors)


def test_only_what_is_new_or_changed_is_embedded(folder, trained, tmp_path, embedded_paths):
    where = folder / "index"  # among the images
    index(folder, trained, where)
    manifest = (where / retrieve.MANIFEST).stat()
    embedded_paths.clear()
    assert index(folder, trained, where)[2] == (0, 0, 0, 8, 0)
    assert (where / retrieve.MANIFEST).stat().st_mtime_ns == manifest.st_mtime_ns
    assert embedded_paths == []

    draw(folder / "a" / "new.png", 20)
    draw(folder / "b" / "1.PNG", 21)
    os.utime(folder / "b" / "7.jpg", ns=(1, 1))  # the same bytes at another time
    (folder / "a" / "4.bmp").unlink()
    _, embedded, changes = index(folder, trained, where)
    assert changes == (1, 2, 1, 5, 0)
    assert sorted(embedded_paths) == ["1.PNG", "7.jpg", "new.png"]
    paths = [folder / file.path for file in embedded.files]
    assert folder / "a" / "4.bmp" not in paths
    np.testing.assert_allclose(embedded.vectors, brute_force(trained, paths), atol=1e-5)
    assert len(list(where.iterdir())) == 2  # no older embeddings, no parts


def test_unreadable_images_are_named_and_tried_once(
    folder, trained, tmp_path, embedded_paths, caplog
):
    (folder / "a" / "empty.jpg").touch()
    whole = (folder / "b" / "7.jpg").read_bytes()
    (folder / "b" / "7.jpg").write_bytes(whole[: len(whole) // 2])
    _, embedded, changes = index(folder, trained, tmp_path / "index", bs=1)
    assert {file.path for file in embedded.unreadable} == {"a/empty.jpg", "b/7.jpg"}
    assert (len(embedded.files), changes.unreadable) == (7, 2)
    assert "empty.jpg" in caplog.text and "7.jpg" in caplog.text
    embedded_paths.clear()
    index(folder, trained, tmp_path / "index")
    assert embedded_paths == []
    (folder / "b" / "7.jpg").write_bytes(whole)
    _, embedded, changes = index(folder, trained, tmp_path / "index")
    assert embedded_paths == ["7.jpg"]
    assert (len(embedded.files), changes.unreadable) == (8, 1)


def test_an_interrupted_pass_goes_on(folder, trained, tmp_path, embedded_paths, monkeypatch):
    """Interrupted in its third batch of two: the old index is whole, four images are kept."""
    where = tmp_path / "index"
    for path in sorted(folder.glob("b/*")):
        path.rename(tmp_path / path.name)
    index(folder, trained, where)
    before = retrieve.read_index(where)[1]
    for seed in range(30, 36):
        draw(folder / "b" / f"{seed}.png", seed)
    monkeypatch.setattr(retrieve, "PART_SECONDS", 0)
    read = retrieve.read_image

    def interrupted(path):
        if path.name == "34.png":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(retrieve, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index(folder, trained, where, bs=2)
    np.testing.assert_array_equal(retrieve.read_index(where)[1].vectors, before.vectors)
    monkeypatch.setattr(retrieve, "read_image", read)
    embedded_paths.clear()
    (folder / "b" / "31.png").unlink()  # embedded already, and gone since
    (where / "part_00009.pt").write_bytes(b"cut short")
    _, embedded, changes = index(folder, trained, where, bs=2)
    assert embedded_paths == ["34.png", "35.png"]
    assert changes == (5, 0, 0, 4, 0)
    paths = [folder / file.path for file in embedded.files]
    np.testing.assert_allclose(embedded.vectors, brute_force(trained, paths), atol=1e-5)
    assert not list(where.glob("part_*"))


def test_parts_of_another_checkpoint_are_not_taken(
    folder, trained, tmp_path, embedded_paths, monkeypatch
):
    where = tmp_path / "index"
    monkeypatch.setattr(retrieve, "PART_SECONDS", 0)
    monkeypatch.setattr(retrieve, "_write_index", None)  # fails after all parts are saved
    with pytest.raises(TypeError):
        index(folder, load_embedder(save_run(tmp_path / "other", seed=1)), where)
    monkeypatch.undo()
    assert list(where.glob("part_*"))
    _, embedded, _ = index(folder, trained, where)
    paths = [folder / file.path for file in embedded.files]
    np.testing.assert_allclose(embedded.vectors, brute_force(trained, paths), atol=1e-5)
    assert not list(where.glob("part_*"))


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit_normalize"])
def test_a_query_finds_what_brute_force_finds(folder, tmp_path, arch):
    run = save_run(tmp_path / "run", arch=arch)
    trained = load_embedder(run)
    shutil.copy(folder / "a" / "0.jpg", folder / "b" / "copy.jpg")
    index(folder, trained, tmp_path / "index")
    draw(tmp_path / "asked.png", 50)
    queries = [tmp_path / "asked.png", folder / "a" / "0.jpg"]
    found = retrieve.query_index(queries, tmp_path / "index", k=100)
    gallery = sorted(p for p in folder.glob("[ab]/*") if not p.name.startswith("."))
    similarities = brute_force(trained, queries) @ brute_force(trained, gallery).T
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
    short = retrieve.query_index(queries, tmp_path / "index", k=2)
    assert short == [hits[:2] for hits in found]


def test_equally_similar_images_come_by_path(trained, tmp_path):
    for name in ("c.png", "a.png", "d.png", "b.png"):
        draw(tmp_path / "photos" / name, 3)
    index(tmp_path / "photos", trained, tmp_path / "index", bs=4)
    for k in (1, 2, 3, 4):
        (hits,) = retrieve.query_index([tmp_path / "photos" / "d.png"], tmp_path / "index", k=k)
        assert [hit.path.name for hit in hits] == ["a.png", "b.png", "c.png", "d.png"][:k]


def test_another_checkpoint_is_refused_and_a_copy_is_not(folder, run, trained, tmp_path):
    where = tmp_path / "index"
    index(folder, trained, where)
    other = save_run(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"was made by .*last.pt of epoch 2 .*Give the --checkp"):
        retrieve.query_index([folder / "a" / "0.jpg"], where, run=other)
    with pytest.raises(ValueError, match=r"index .*photos with this one into another --index"):
        index(folder, load_embedder(other), where)
    same = save_run(tmp_path / "same", name="best_test_embeds_nmi") / "best_test_embeds_nmi.pt"
    assert retrieve.query_index([folder / "a" / "0.jpg"], where, run=same)


def test_another_preprocessing_is_refused(folder, trained, tmp_path):
    index(folder, trained, tmp_path / "index")
    other = save_run(tmp_path / "other", dataset="emoji")  # its recipe crops nothing
    with pytest.raises(ValueError, match="embeds otherwise"):
        retrieve.query_index([folder / "a" / "0.jpg"], tmp_path / "index", run=other)


def test_another_folder_is_refused(folder, trained, tmp_path):
    index(folder, trained, tmp_path / "index")
    with pytest.raises(ValueError, match=r"is of the folder .*photos, not of .*photos/a; give"):
        index(folder / "a", trained, tmp_path / "index")


def test_embeddings_that_are_not_finite_are_refused(folder, tmp_path):
    run = save_run(tmp_path / "run")
    parts = checkpoint.load(run / "last.pt")
    parts["embedder"]["embedding.bias"][0] = float("nan")
    checkpoint.save(run / "last.pt", parts)
    with pytest.raises(ValueError, match=r"last.pt gives embeddings that are not finite"):
        index(folder, load_embedder(run), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_nothing_to_index(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        index(tmp_path / "absent", trained, tmp_path / "index")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"no readable image \(1 that cannot be read\)"):
        index(tmp_path / "bad", trained, tmp_path / "index")


@pytest.mark.parametrize("damage", ["manifest", "format", "vectors", "missing", "length"])
def test_a_damaged_index_says_what_to_do(folder, trained, tmp_path, damage):
    where = tmp_path / "index"
    index(folder, trained, where)
    manifest, (vectors,) = where / retrieve.MANIFEST, where.glob("*.faiss")
    content = json.loads(manifest.read_text())
    if damage == "manifest":
        manifest.write_text(manifest.read_text()[:50])
    elif damage == "format":
        manifest.write_text(json.dumps({**content, "format": 2}))
    elif damage == "vectors":
        vectors.write_bytes(vectors.read_bytes()[:60])
    elif damage == "missing":
        vectors.unlink()
    else:
        manifest.write_text(json.dumps({**content, "images": content["images"][1:]}))
    with pytest.raises(ValueError, match=r"index cannot be read .*; delete .* index the folder"):
        retrieve.read_index(where)


def run_command(capsys, *words):
    retrieve.main([str(word) for word in words])
    return capsys.readouterr().out


def test_command_line(folder, run, tmp_path, capsys):
    where, sheet = tmp_path / "index", tmp_path / "out" / "found.png"
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
        tile = retrieve.TILE + retrieve.GAP
        assert image.size == (
            9 * tile + 2 * retrieve.GAP,
            2 * (tile + retrieve.LABEL) + retrieve.GAP,
        )
        middle = retrieve.TILE // 2
        row = np.asarray(image)[retrieve.GAP + middle, 2 * retrieve.GAP + middle + tile :: tile]
    assert len(row) == 8
    assert sum((colour == 238).all() for colour in row) == 1  # the one that is gone

    told = json.loads(run_command(capsys, *asked, "--json"))
    assert [entry["query"] for entry in told] == [str(path) for path in queries]
    assert [hit["rank"] for hit in told[0]["neighbours"]] == list(range(1, 9))
    assert told[0]["neighbours"][0]["path"] == str(queries[0])


def test_a_long_list_wraps_in_the_contact_sheet(folder, tmp_path):
    asked = folder / "a" / "0.jpg"
    hits = [retrieve.Hit(rank, 0.5, asked) for rank in range(1, 14)]
    retrieve.contact_sheet([asked], [hits], tmp_path / "sheet.png")
    tile = retrieve.TILE + retrieve.GAP
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.height == 2 * (tile + retrieve.LABEL) + retrieve.GAP
        assert image.width == 11 * tile + 2 * retrieve.GAP


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--words", "a red fox"), "one space, and no run here does"),
        ((), "at least one IMAGE"),
        (("absent.png",), "no image absent.png"),
        (("{image}", "--k", "0"), "--k 0 is below 1"),
        (("{image}", "--save", "found.jpg"), "found.jpg is no .png"),
        (("{image}",), "make an index first"),
    ],
    ids=["words", "nothing", "absent", "k", "save", "index"],
)
def test_a_query_that_cannot_be_answered(folder, tmp_path, capsys, words, says):
    words = [word.format(image=folder / "a" / "0.jpg") for word in words]
    with pytest.raises(SystemExit) as stop:
        retrieve.main(["query", *words, "--index", str(tmp_path / "index")])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_a_query_that_is_no_image(folder, trained, tmp_path):
    index(folder, trained, tmp_path / "index")
    with pytest.raises(ValueError, match=r"query cannot be read: .*notes.txt"):
        retrieve.query_index([folder / "notes.txt"], tmp_path / "index")
