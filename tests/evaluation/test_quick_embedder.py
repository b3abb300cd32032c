"""Pictures are embedded without torch as the checkpoint embeds them, or by the checkpoint."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import quick_embedder, retrieve, search_models
from evaluation.image_index import read_index, write_index
from evaluation.index_files import QUICK
from evaluation.indexing import build_index, embed_queries
from evaluation.searcher import Searcher
from tests.evaluation.test_retrieve import draw, save_run

ROOT = Path(__file__).parents[2]
TURNED = 0x0112  # EXIF's orientation


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pictures, a run, and an index with its quick embedder."""
    place = tmp_path_factory.mktemp("quick")
    save_run(place / "run")
    for seed, ending in enumerate(("jpg", "png", "webp", "gif", "bmp", "tiff")):
        draw(place / "photos" / f"{seed}.{ending}", seed)
    rng = np.random.default_rng(9)
    exif = Image.Exif()
    exif[TURNED] = 6
    noise = rng.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(place / "photos" / "turned.jpg", exif=exif)
    noise = rng.integers(0, 256, (40, 1500, 4), dtype=np.uint8)
    Image.fromarray(noise).save(place / "photos" / "long.png")
    indexed = ["index", place / "photos", "--checkpoint", place / "run", "--index", place / "index"]
    retrieve.main([*map(str, indexed), "--kernels", "0", "--device", "cpu"])
    return place


@pytest.fixture
def copy(made, tmp_path):
    """Its index, to be damaged."""
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def pictures(made):
    return sorted((made / "photos").iterdir())


def by_checkpoint(run, paths):
    return embed_queries(paths, search_models.load_model(run))


def asked(capsys, *words):
    retrieve.main(["query", *map(str, words), "--json"])
    found = json.loads(capsys.readouterr().out)
    hits = [hit for entry in found for hit in entry["neighbours"]]
    return [hit["path"] for hit in hits], np.array([hit["similarity"] for hit in hits])


def test_embeddings_are_those_of_the_checkpoint(made):
    searcher = Searcher(made / "index")
    assert searcher.quick_embedder
    found = searcher.embed_images(pictures(made))
    assert "model" not in vars(searcher)  # no checkpoint was loaded
    np.testing.assert_allclose(found, by_checkpoint(made / "run", pictures(made)), atol=1e-5)


def test_answers_are_those_of_the_checkpoint(made, capsys):
    queries = (*pictures(made), "--index", made / "index")
    paths, similarities = asked(capsys, *queries)
    for given in (["--device", "cpu"], ["--checkpoint", made / "run"]):
        same, of_checkpoint = asked(capsys, *queries, *given)
        assert paths == same
        np.testing.assert_allclose(similarities, of_checkpoint, atol=1e-5)


def test_a_query_does_not_import_torch(made):
    command = ["query", pictures(made)[0], "--index", made / "index"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "evaluation.retrieve", *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.M))
    assert "1.0000" in done.stdout and {"numpy", "faiss"} <= loaded
    assert not {"torch", "torchvision", "timm", "transformers", "matplotlib"} & loaded


def test_a_given_checkpoint_or_device_is_used(made):
    assert not Searcher(made / "index", made / "run").quick_embedder
    assert not Searcher(made / "index", device="cpu").quick_embedder


@pytest.mark.parametrize("name", [quick_embedder.EMBEDDER, quick_embedder.SETTINGS])
def test_a_damaged_one_is_left_for_the_checkpoint(made, copy, capsys, caplog, name):
    content = bytearray((copy / QUICK / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / QUICK / name).write_bytes(content)
    paths, _ = asked(capsys, pictures(made)[0], "--index", copy)
    assert paths[0] == str(pictures(made)[0])
    assert "does not match its checksum" in caplog.text and name in caplog.text
    index, model = read_index(copy), search_models.load_model(made / "run")
    search_models.keep_quick_embedder(copy, index, model)  # as indexing again does
    assert quick_embedder.load(copy, model.digest)


def test_one_of_another_embedder_is_not_used_but_replaced(made, tmp_path):
    save_run(tmp_path / "other", seed=1)
    model, where = search_models.load_model(tmp_path / "other"), tmp_path / "index"
    index, _ = build_index(made / "photos", model, where, workers=0)
    shutil.copytree(made / "index" / QUICK, where / QUICK)
    assert quick_embedder.load(where, model.digest) is None
    search_models.keep_quick_embedder(where, index, model)
    found = quick_embedder.load(where, model.digest).embed(pictures(made))
    np.testing.assert_allclose(found, by_checkpoint(tmp_path / "other", pictures(made)), atol=1e-5)


def test_one_that_embeds_otherwise_is_not_kept(made, copy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other = search_models.load_model(save_run(tmp_path / "other", seed=1))
    shutil.rmtree(copy / QUICK)
    search_models.keep_quick_embedder(copy, read_index(copy), other)
    assert "as ONNX it embeds otherwise: cosine" in caplog.text
    assert [path.name for path in copy.iterdir()] == ["retrieval_index"]


def test_an_embedder_that_cannot_be_onnx_is_left_out(made, copy, monkeypatch, caplog, capsys):
    def fails(*_):
        raise RuntimeError("no such operator\nand more")

    caplog.set_level(logging.INFO)
    shutil.rmtree(copy / QUICK)
    monkeypatch.setattr(search_models, "write_onnx", fails)
    command = ["index", made / "photos", "--checkpoint", made / "run", "--index", copy]
    retrieve.main([*map(str, command), "--kernels", "0"])
    assert "queries will load the checkpoint, which takes seconds (no such operator)" in caplog.text
    capsys.readouterr()
    assert asked(capsys, pictures(made)[0], "--index", copy)[0][0] == str(pictures(made)[0])


def test_what_it_cannot_read_is_left_to_the_checkpoint(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "cut.jpg").write_bytes((made / "photos" / "0.jpg").read_bytes()[:400])
    with pytest.raises(SystemExit):
        asked(capsys, tmp_path / "cut.jpg", "--index", made / "index")
    assert "the query cannot be read: " in capsys.readouterr().err

    monkeypatch.setattr(quick_embedder, "prepare", None)
    found = Searcher(made / "index").embed_images(pictures(made))
    np.testing.assert_allclose(found, by_checkpoint(made / "run", pictures(made)), atol=1e-5)


def test_a_run_in_half_precision_has_none(made, copy, caplog):
    caplog.set_level(logging.INFO)
    shutil.rmtree(copy / QUICK)
    model = search_models.load_model(made / "run")
    object.__setattr__(model, "precision", "bf16")
    search_models.keep_quick_embedder(copy, read_index(copy), model)
    assert "(the run evaluates in bf16)" in caplog.text and not (copy / QUICK).exists()


def test_an_odd_picture_costs_an_index_nothing(made, tmp_path, caplog):
    """Of a mode that is left to the checkpoint, first in the folder and as a query."""
    photos, where = tmp_path / "photos", tmp_path / "index"
    draw(photos / "1.png", 1)
    lab = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(lab, "LAB").save(photos / "0.tif")
    model = search_models.load_model(made / "run")
    index, _ = build_index(photos, model, where, workers=0)
    search_models.keep_quick_embedder(where, index, model)
    searcher = Searcher(where)
    assert searcher.quick_embedder
    caplog.set_level(logging.INFO)
    found = searcher.embed_images([photos / "1.png", photos / "0.tif"])
    assert "0.tif is not embedded by embedder.onnx" in caplog.text and "LAB" in caplog.text
    np.testing.assert_allclose(found, index.embedded.vectors[[1, 0]], atol=1e-5)


def test_many_pictures_and_huge_ones_are_left_to_the_checkpoint(made, monkeypatch, caplog):
    monkeypatch.setattr("evaluation.searcher.MOST_QUICK", 1)
    searcher = Searcher(made / "index")
    searcher.embed_images(pictures(made)[:2])
    assert "model" in vars(searcher)
    monkeypatch.setattr(quick_embedder, "MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"png is not embedded by embedder.onnx: over 1,000 pix"):
        searcher.quick_embedder.embed([made / "photos" / "1.png"])
    searcher.quick_embedder.embed([made / "photos" / "0.jpg"])  # which is decoded in small


def test_without_its_checkpoint_an_index_finds_and_tells_what_is_unreadable(made, tmp_path, caplog):
    place = tmp_path / "elsewhere"
    shutil.copytree(made, place)
    index = read_index(place / "index")
    provenance = index.provenance._replace(checkpoint=tmp_path / "gone" / "last.pt")
    write_index(place / "index", index._replace(provenance=provenance))
    searcher = Searcher(place / "index")
    [(_, hits)] = searcher.find([place / "photos" / "0.jpg"], [])
    assert hits[0].similarity > 0.9999
    caplog.set_level(logging.INFO)
    (tmp_path / "cut.jpg").write_bytes((made / "photos" / "0.jpg").read_bytes()[:400])
    with pytest.raises(FileNotFoundError, match=r"gone/last\.pt does not exist"):
        searcher.find([tmp_path / "cut.jpg"], [])
    assert "cut.jpg is not embedded by embedder.onnx: " in caplog.text


def test_what_a_killed_pass_left_is_removed(made, copy):
    shutil.copytree(copy / QUICK, copy / f".{QUICK}.f0a4")
    shutil.rmtree(copy / QUICK)
    model = search_models.load_model(made / "run")
    search_models.keep_quick_embedder(copy, read_index(copy), model)
    assert {path.name for path in copy.iterdir()} == {"retrieval_index", QUICK}


def test_a_device_that_is_not_there_is_refused_at_once(made):
    with pytest.raises(ValueError, match="--device must be auto or a device of torch; got nowhere"):
        Searcher(made / "index", device="nowhere")
