from argparse import Namespace

import numpy as np
import pytest
import torch

import language
from language.pseudolabels import imagenet_names

CPU = torch.device("cpu")
CLASS_NAMES = ("kit fox", "tench", "crane")
LABELS = np.array([0, 0, 1, 2, 2])


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(
        "kit 1 0 0\nfox 0 1 0\ntench 0 0 1\ncrane 1 1 1\ngoldfish 0 1 1\nphoto 0.5 0 0\n"
    )
    return Namespace(
        language_model=str(vectors),
        language_prompt="{}",
        language_words="classnames",
        language_pseudoclass_topk=2,
        language_pseudoclass_level="class",
        language_pseudoclass_average="logits",
        language_control="none",
        seed=0,
    )


def build(args, captions=(), imagenet_logits=None):
    return language.build_guide(
        args,
        class_names=CLASS_NAMES,
        labels=LABELS,
        captions=captions,
        imagenet_logits=imagenet_logits,
        device=CPU,
    )


def logits():
    """Images of class 0 look like kit fox (278) then tench (0), the others like tench, kit fox."""
    outputs = torch.zeros(5, 1000)
    outputs[:, 278] = torch.tensor([9.0, 9.0, 1.0, 1.0, 1.0])
    outputs[:, 0] = torch.tensor([1.0, 1.0, 9.0, 9.0, 9.0])
    return outputs


def texts_of(guide):
    return [[guide.words.texts[i] for i in item] for item in guide.index.tolist()]


def test_class_names_with_their_prompt(args):
    args.language_prompt = "photo {}"
    guide = build(args)
    assert texts_of(guide) == [["photo kit fox"], ["photo tench"], ["photo crane"]]
    encoder = language.build_encoder(args.language_model, CPU)
    expected = language.class_word_embeds(encoder, CLASS_NAMES, "photo {}")
    torch.testing.assert_close(guide.class_words, expected)


def test_pseudolabels_of_classes_and_of_samples(args):
    args.language_words = "pseudolabels"
    guide = build(args, imagenet_logits=logits)
    assert texts_of(guide) == [["kit fox", "tench"], ["tench", "kit fox"], ["tench", "kit fox"]]
    assert guide.words.level == "class"
    args.language_pseudoclass_level = "sample"
    guide = build(args, imagenet_logits=logits)
    assert texts_of(guide) == [["kit fox", "tench"]] * 2 + [["tench", "kit fox"]] * 3
    assert guide.words.level == "row"
    assert imagenet_names()[278] == "kit fox"


def test_the_classifier_is_not_run_without_need(args):
    def refuse():
        raise AssertionError

    assert len(texts_of(build(args, imagenet_logits=refuse))) == 3


def test_captions_and_json(args, tmp_path):
    args.language_words = "captions"
    captions = ("a fox", "the kit fox", "tench", "crane", "crane")
    assert texts_of(build(args, captions)) == [[caption] for caption in captions]
    path = tmp_path / "words.json"
    path.write_text('{"kit fox": ["fox", "kit"], "tench": "goldfish", "crane": "crane"}')
    args.language_words = str(path)
    expected = [["fox", "kit"], ["goldfish", "goldfish"], ["crane", "crane"]]
    assert texts_of(build(args)) == expected


def test_control_follows_the_seed_of_the_run(args):
    args.language_control = "permuted"
    assert all(a != [b] for a, b in zip(texts_of(build(args)), CLASS_NAMES, strict=True))
    orders = set()
    for args.seed in range(10):
        orders.add(str(texts_of(build(args))))
        assert texts_of(build(args)) == texts_of(build(args))
    assert len(orders) == 2  # three classes have two cyclic permutations


def test_errors_name_the_flag(args):
    args.language_words = "classname"
    with pytest.raises(ValueError, match=r"--language_words classname is unknown.*: classnames"):
        build(args)
    args.language_words = "captions"
    with pytest.raises(ValueError, match="--language_words captions needs"):
        build(args)
    args.language_words = "pseudolabels"
    with pytest.raises(
        ValueError, match="--language_words pseudolabels needs an ImageNet classifier"
    ):
        build(args)


def test_texts_without_embedding_are_named(args):
    args.language_words = "captions"
    captions = ("a fox", "zzz", "tench", "crane", "?")
    with pytest.warns(UserWarning, match=r"no embedding for 2 of 5 texts \('zzz', '\?'\)"):
        guide = build(args, captions)
    assert guide.embeds[1].abs().sum() == 0
