"""The map of a run: written at its end, by --evaluate_only, or by a command, always the same."""

import pytest
import torch

import main
from architectures.load import load_embedder
from evaluation import word_map, word_map_file, words
from evaluation.indexing import embed_files
from evaluation.search_models import load_model
from language.word_vectors import WordVectors
from tests.runs import MANY, RUN, WORD_METRICS, tiny_run, write_animals
from utilities import checkpoint

MAP = "last.words.safetensors"
pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_animals(tmp_path_factory.mktemp("source"), MANY)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """A run whose metrics search by words, and its scores."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr("utilities.plots.learning_curves", lambda rows, path: path.touch())
        more = ("--evaluation_metrics", "e_recall@1", *WORD_METRICS, "--n_epochs", "1",
                "--evaluation_language_model", str(source / "words.txt"))  # fmt: skip
        scores = main.main(tiny_run(source, place, *more))
    return place / RUN, scores


def fit(run, *more):
    words.main(["--checkpoint", str(run), "--kernels", "0", "--device", "cpu", *more])


def test_a_run_leaves_the_map_of_its_last_checkpoint(trained, source):
    """Fitted to images and names of each class in turn."""
    run, _ = trained
    found = word_map_file.read(run / MAP)
    embeds = []
    names = sorted(MANY)[:10]
    for name in names:
        paths = sorted((source / "animals" / "images" / name).iterdir())
        [(_, vectors, _)] = embed_files(load_model(run), paths)
        embeds.append(torch.from_numpy(vectors))
    texts = WordVectors(source / "words.txt").encode(names)
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([*map(len, embeds)]))
    expected = word_map.fit(texts, torch.cat(embeds), labels)
    torch.testing.assert_close(found.map.weight, expected.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.map(texts), expected(texts), atol=1e-5, rtol=1e-4)
    assert found.map.penalties == expected.penalties
    assert found[1:5] == (str(source / "words.txt"), "embeds", 10, load_model(run).digest)
    assert [*found.probes] == names[:4]
    torch.testing.assert_close(torch.stack([*found.probes.values()]), texts[:4])


def test_the_command_and_evaluate_only_make_the_same_map(trained, own_cache, tmp_path, capsys):
    run, scores = trained
    content = (run / MAP).read_bytes()
    (run / MAP).unlink()
    fit(run)
    assert (run / MAP).read_bytes() == content
    assert "last.words.safetensors: from " in (said := capsys.readouterr().out)
    assert "(8 dimensions) to embeds (16), fitted to 10 classes, penalties " in said
    only = ("--evaluate_only", "--checkpoint", str(run), "--save_path", str(tmp_path))
    again = main.main([*only, "--kernels", "0", "--no_report"])
    of_words = {name for name in scores if "words/" in name}
    assert {name.split("/")[1] for name in of_words} == {"words", "permuted_words"}
    assert {name: again[name] for name in of_words} == {name: scores[name] for name in of_words}
    [evaluated] = (tmp_path / "animals").iterdir()
    assert (evaluated / MAP).read_bytes() == content


def test_a_checkpoint_of_other_weights_has_a_map_of_its_own(trained, own_cache, tmp_path):
    run, _ = trained
    [best] = run.glob("best_*.pt")
    parts = checkpoint.load(best)
    parts["embedder"]["embedding.bias"] += 1
    other = tmp_path / "other" / "best_earlier.pt"
    other.parent.mkdir()
    checkpoint.save(other, parts)
    fit(other)
    found = word_map_file.read(other.with_name("best_earlier.words.safetensors"))
    assert found.embedder == load_model(other).digest != load_model(run).digest


def test_too_few_classes_are_refused(animals, own_cache, tmp_path, capsys):
    main.main(tiny_run(animals, tmp_path, "--n_epochs", "1"))
    run = tmp_path / RUN
    assert not (run / MAP).exists()
    with pytest.raises(SystemExit):
        fit(run)
    assert (
        "needs at least 10 training classes with different names; animals, which "
        f"{load_embedder(run).file} was trained on, has 4" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--bs", "0"), "--bs must be at least 1; got 0"),
        (("--source_path", "nowhere"), "nowhere"),
        (("--language_model", "./nowhere"), "nowhere: no such folder"),
    ],
)
def test_what_cannot_work_is_refused(trained, own_cache, capsys, more, says):
    with pytest.raises(SystemExit):
        fit(trained[0], *more)
    assert says in capsys.readouterr().err
