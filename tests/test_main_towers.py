"""main.py end to end: search by CLIP's own towers, and by those that a run trains on captions."""

import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main
from architectures.load import load_embedder
from datasets.image_set import ImageSet
from evaluation import retrieve, search_models
from evaluation.extract import extract
from evaluation.tower_search import TEXT_SIDE, ZERO_SHOT
from tests import test_main_captions as captions
from tests.architectures import towers
from tests.runs import ANIMALS, RUN, same, tiny_run
from tests.test_main_captions import source  # noqa: F401  a fixture
from utilities import checkpoint

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")

METRICS = ("word_recall@1", "word_mAP", "named@1")


def of_kind(scores, kind):
    return {name: value for name, value in scores.items() if f"/{kind}/" in name}


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_clip_searches_by_its_own_towers_before_and_after_training(
    animals, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    arch, folder = towers.ARCHS["clip"], tmp_path / "clip"
    towers.shrink(monkeypatch, arch)
    words = dict.fromkeys(word for name in (*ANIMALS, "a photo of") for word in name.split())
    towers.save("clip", list(words), folder)
    flags = tiny_run(animals, tmp_path, "--evaluation_metrics", "e_recall@1", *METRICS)
    flags.remove("--not_pretrained")
    flags += ["--arch", f"{arch}_normalize", "--weights", str(folder.with_suffix(".pth"))]
    flags += ["--image_size", "224", "--evaluation_language_model", str(folder), "--lr", "1e-2"]
    flags += ["--n_epochs", "1"]
    scores = main.main(flags)
    expected = {f"{name}/{ZERO_SHOT}/{m}" for name in ("test",) for m in METRICS}
    assert set(of_kind(scores, ZERO_SHOT)) == expected
    before, after = rows(tmp_path / RUN)[0], rows(tmp_path / RUN)[-1]
    assert expected <= set(before) and expected <= set(after)
    again = main.main(["--evaluate_only", "--checkpoint", str(tmp_path / RUN), "--no_report",
                       "--save_path", str(tmp_path), "--source_path", str(animals)])  # fmt: skip
    assert same(of_kind(again, ZERO_SHOT), of_kind(scores, ZERO_SHOT))
    caplog.clear()
    main.main([*flags, "--evaluation_language_model", "minilm", "--savename", "other"])
    assert "minilm has no image tower" in caplog.text
    assert not of_kind(rows(tmp_path / RUN.parent / "other")[-1], ZERO_SHOT)


@pytest.mark.parametrize("loss", ["clip", "slip", "lgslip", "declip_nns"])
def test_a_run_on_captions_searches_by_its_own_text_side(source, tmp_path, loss):  # noqa: F811
    more = ["--loss", loss, "--evaluation_metrics", "e_recall@1", *METRICS]
    more += captions.texts_of(source, loss)
    if loss == "lgslip":
        more += ["--data_sampler", "language_pairs", "--loss_clip_text", "frozen"]
        more += ["--language_model", str(source / "words.txt")]
    scores = main.main(captions.flags(source, tmp_path, *more))
    expected = {f"shades/{TEXT_SIDE}/{metric}" for metric in METRICS}
    assert set(of_kind(scores, TEXT_SIDE)) == expected
    folder = captions.run_folder(tmp_path)
    assert expected <= set(rows(folder)[0])
    again = main.main(["--evaluate_only", "--checkpoint", str(folder), "--no_report",
                       "--save_path", str(tmp_path), "--source_path", str(source)])  # fmt: skip
    assert same(of_kind(again, TEXT_SIDE), of_kind(scores, TEXT_SIDE))


def test_the_text_side_is_the_objectives_own(source, tmp_path):  # noqa: F811
    """Names and images, projected by hand from the checkpoint."""
    more = ["--loss", "clip", "--evaluation_metrics", *METRICS, "--loss_clip_text", "frozen"]
    main.main(captions.flags(source, tmp_path, *more))
    state = checkpoint.load(captions.run_folder(tmp_path) / "last.pt")["criterion"]
    criterion = main.criteria.CLIP(
        state["projection.weight"].shape[1], None, lambda: Words(), text="frozen", proj_dim=6
    )
    criterion.load_state_dict(state)
    features = torch.randn(3, state["projection.weight"].shape[1])
    with torch.no_grad():
        images = criterion.train().embed_images(features)
        texts = criterion.embed_texts(["teal", "navy"])
    assert criterion.training
    wanted = F.normalize(features @ state["projection.weight"].T, dim=1)
    torch.testing.assert_close(images, wanted)
    wanted = F.normalize(Words().encode(["teal", "navy"]) @ state["reader.projection.weight"].T)
    torch.testing.assert_close(texts, wanted)


class Words:
    """Embeds a text by its length, in 8 dimensions."""

    def encode(self, texts):
        return torch.stack([torch.arange(8) * len(text) + 1.0 for text in texts])


def test_an_objective_without_texts_goes_without(source, tmp_path):  # noqa: F811
    """And loads no encoder for names that nothing would search by."""
    more = ("--evaluation_metrics", "e_recall@1", *METRICS)
    more += ("--evaluation_language_model", "nobody/offline")
    scores = main.main(captions.flags(source, tmp_path, *more))
    assert not any("word" in name for name in scores)


@pytest.mark.parametrize("loss", ["clip", pytest.param("lgslip", marks=pytest.mark.slow)])
def test_words_search_an_index_in_the_space_of_a_runs_own_words(source, tmp_path, capsys, loss):  # noqa: F811
    """As brute force finds, by hand from what the run saved."""
    more = ["--loss", loss, *captions.texts_of(source, "clip")]
    if loss == "lgslip":
        more += ["--data_sampler", "language_pairs", "--loss_clip_text", "frozen"]
        more += ["--language_model", str(source / "words.txt")]
    main.main(captions.flags(source, tmp_path, *more))
    run, index = captions.run_folder(tmp_path), ("--index", str(tmp_path / "index"))
    photos = source / "shades" / "images"
    options = ("--checkpoint", str(run), "--kernels", "0", "--space", "words")
    retrieve.main(["index", str(photos), *options, *index])
    capsys.readouterr()
    retrieve.main(["query", "--words", "red fox", "--words", "teal", *index, "--json"])
    found = json.loads(capsys.readouterr().out)

    trained = load_embedder(run)
    model = search_models.load_model(run, "words")
    criterion = model.embedder.criterion
    paths = sorted(photos.rglob("*.jpg"))
    images = ImageSet("photos", tuple(paths), np.zeros(len(paths), np.int64), ("",))
    transform = model.preprocessing.transform()
    features = extract(trained.embedder, images, transform, workers=0).features
    with torch.no_grad():
        if loss == "clip":
            projected = features @ trained.criterion["projection.weight"].T
        else:
            projected = criterion.simclr.projector(features)
        texts = criterion.embed_texts(["red fox", "teal"])
    sims = texts @ F.normalize(projected, dim=1).T
    assert [query["words"] for query in found] == ["red fox", "teal"]
    for query, row in zip(found, sims, strict=True):
        cosines = [hit["similarity"] for hit in query["neighbours"]]
        assert cosines == pytest.approx(row.topk(10).values.tolist(), abs=1e-5)
        for hit in query["neighbours"]:
            of_hit = row[[str(path) for path in paths].index(hit["path"])]
            assert hit["similarity"] == pytest.approx(float(of_hit), abs=1e-5)
    retrieve.main(["query", str(paths[0]), "--words", "teal", *index, "--json"])
    assert json.loads(capsys.readouterr().out)[0]["words"] == "teal"


def refusal(capsys, *words):
    with pytest.raises(SystemExit):
        retrieve.main([*map(str, words)])
    return capsys.readouterr().err


def test_what_cannot_be_searched_by_a_runs_own_words_is_refused(source, tmp_path, capsys):  # noqa: F811
    main.main(captions.flags(source, tmp_path))
    text = ("--loss", "clip", *captions.texts_of(source, "clip"), "--savename", "clip")
    main.main(captions.flags(source, tmp_path, *text))
    folder, photos = tmp_path / "drawings", source / "few" / "images"
    index = ("--index", tmp_path / "index")
    options = ("index", photos, "--kernels", "0", "--checkpoint")
    told = refusal(capsys, *options, folder / "default_s0", *index, "--space", "words")
    assert "--space words is of runs that train a text side, which --loss simclr" in told
    retrieve.main([*map(str, (*options, folder / "clip", *index))])
    told = refusal(capsys, "query", "--words", "teal", *index)
    assert "clip/last.pt has a text side of its own; index the folder with --space words" in told
    told = refusal(capsys, *options, folder / "clip", *index, "--space", "words")
    assert "embeds differently" in told
    other = ("--index", tmp_path / "words")
    retrieve.main([*map(str, (*options, folder / "clip", *other, "--space", "words"))])
    told = refusal(capsys, "query", "--words", "teal", *other, "--language_model", "minilm")
    assert "which needs no --map and no --language_model" in told
    told = refusal(capsys, "query", "--words", "zyzzyva", *other)
    assert "--words 'zyzzyva'" in told and "knows none of these words" in told
    with pytest.raises(ValueError, match="--loss_clip_tokens must be 6, as the text side of"):
        main.main(["--evaluate_only", "--checkpoint", str(folder / "clip"), "--no_report",
                   "--save_path", str(tmp_path), "--source_path", str(source),
                   "--loss_clip_tokens", "7", "--evaluation_metrics", "word_mAP"])  # fmt: skip
