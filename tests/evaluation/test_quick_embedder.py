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
from evaluation.image_index import read_index
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
