import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import language
import parameters
from language import partner_folder
from language.pseudolabels import imagenet_names

CPU = torch.device("cpu")
CLASS_NAMES = ("kit fox", "tench", "crane")
CAPTIONS = ("a fox", "the kit fox", "tench", "crane", "crane")


@dataclass
class Captioned:
    captions: tuple[str, ...] = CAPTIONS
    name: str = "drawings"

    def __len__(self):
        return 5

    def fingerprint(self):
        return str(self.captions)


@dataclass
class Classified:
    paths: tuple[Path, ...]
    captions: tuple[str, ...] = ()
    class_names: tuple[str, ...] = CLASS_NAMES
    labels: Any = None
    name: str = "animals"
    reading: int = 1

    def __post_init__(self):
        self.labels = np.array([0, 0, 1, 2, 2])

    def __len__(self):
        return 5


@pytest.fixture
def train(tmp_path):
    paths = tuple(tmp_path / f"{i}.jpg" for i in range(5))
    for path in paths:
        path.write_text("pixels")
    return Classified(paths)


@pytest.fixture
def args(tmp_path, own_cache):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(
        "kit 1 0 0\nfox 0 1 0\ntench 0 0 1\ncrane 1 1 1\ngoldfish 0 1 1\nphoto 0.5 0 0\n"
    )
    flags = ("--language_distill_w", "1", "--language_model", str(vectors))
    flags += ("--evaluation_language_model", str(vectors), "--language_prompt", "{}")
    args = parameters.parse([*flags, "--language_pseudoclass_topk", "2", "--seed", "0"])
    args.language_words, args.data_sampler = "classnames", "language_pairs"
    args.language_pseudoclass_model = "a classifier"  # by the recipe
    return args


def refuse():
    raise AssertionError("not needed")


def logits():
    """Images of class 0 look like kit fox (278) then tench (0), the others like tench, kit fox."""
    outputs = torch.zeros(5, 1000)
    outputs[:, 278] = torch.tensor([9.0, 9.0, 1.0, 1.0, 1.0])
    outputs[:, 0] = torch.tensor([1.0, 1.0, 9.0, 9.0, 9.0])
    return outputs


def texts_of(args, train, classify=refuse):
    guide = language.build_guide(args, train, CPU, classify)
    return [[guide.words.texts[i] for i in item] for item in guide.index.tolist()]


def test_importing_the_folder_needs_no_torch():
    script = "import sys, language; assert language.SCOPES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)


# -------------------------------------------------------------------------------------- the guide
def test_no_guide_without_a_weight(args, train):
    args.language_distill_w = 0
    assert language.build_guide(args, train, CPU, refuse) is None


def test_class_names_with_their_prompt(args, train):
    args.language_prompt = "photo {}"
    guide = language.build_guide(args, train, CPU, refuse)
    assert texts_of(args, train) == [["photo kit fox"], ["photo tench"], ["photo crane"]]
    args.data_sampler = "class_related"
    inputs = language.sampler_inputs(args, train, CPU, refuse)
    torch.testing.assert_close(guide.class_words, inputs["class_words"])
    assert language.sampler_inputs(args, Captioned(), CPU, refuse) == {}  # has no classes


def test_pseudolabels_of_classes_and_of_samples(args, train):
    args.language_words = "pseudolabels"
    of_classes = [["kit fox", "tench"], ["tench", "kit fox"], ["tench", "kit fox"]]
    assert texts_of(args, train, logits) == of_classes
    args.language_pseudoclass_level = "sample"
    guide = language.build_guide(args, train, CPU, refuse)  # the logits are kept
    assert guide.words.level == "row"
    assert texts_of(args, train) == [["kit fox", "tench"]] * 2 + [["tench", "kit fox"]] * 3
    assert imagenet_names()[278] == "kit fox"


def test_pseudolabels_follow_the_classifier_and_the_files(args, train, own_cache, caplog):
    args.language_words = "pseudolabels"
    texts_of(args, train, logits)
    with pytest.raises(AssertionError):
        args.language_pseudoclass_model = "another"
        texts_of(args, train)
    args.language_pseudoclass_model = "a classifier"
    texts_of(args, train)
    (kept,) = own_cache.glob("pseudolabels/*/tensors.pt")
    kept.write_bytes(b"damaged")
    assert texts_of(args, train, logits) == texts_of(args, train)
    assert "is damaged" in caplog.text
    train.paths[2].write_text("others")  # of the same size
    with pytest.raises(AssertionError):
        texts_of(args, train)
    texts_of(args, train, logits)
    train.reading += 1  # the files are read as other pixels
    with pytest.raises(AssertionError):
        texts_of(args, train)


def test_captions_and_json(args, train, tmp_path):
    args.language_words = "captions"
    for images in (Captioned(), Classified(train.paths, CAPTIONS)):
        assert texts_of(args, images) == [[caption] for caption in CAPTIONS]
    path = tmp_path / "words.json"
    path.write_text('{"kit fox": ["fox", "kit"], "tench": "goldfish", "crane": "crane"}')
    args.language_words = str(path)
    expected = [["fox", "kit"], ["goldfish", "goldfish"], ["crane", "crane"]]
    assert texts_of(args, train) == expected


def test_control_follows_the_seed_of_the_run(args, train):
    args.language_control = "permuted"
    assert all(a != [b] for a, b in zip(texts_of(args, train), CLASS_NAMES, strict=True))
    orders = set()
    for args.seed in range(10):
        orders.add(str(texts_of(args, train)))
        assert texts_of(args, train) == texts_of(args, train)
    assert len(orders) == 2  # three classes have two cyclic permutations


def test_errors_name_the_flag(args, train):
    for words, images, message in (
        ("captions", train, "--language_words captions needs"),
        ("pseudolabels", Captioned(), "--language_words pseudolabels are words of classes"),
    ):
        args.language_words = words
        with pytest.raises(ValueError, match=message):
            texts_of(args, images)


def test_texts_without_embedding_are_named(args):
    args.language_words = "captions"
    captions = ("a fox", "zzz", "tench", "crane", "?")
    with pytest.warns(UserWarning, match=r"knows no word of 2 \('zzz', '\?'\)"):
        guide = language.build_guide(args, Captioned(captions), CPU, refuse)
    assert guide.embeds[1].abs().sum() == 0


def test_names_are_read_by_the_encoder_asked_for_and_without_a_prompt(args):
    read = language.names_reader(CPU)
    encoder = language.build_encoder(args.language_model, CPU)
    expected = language.class_word_embeds(encoder, CLASS_NAMES, "{}")
    torch.testing.assert_close(read(args.language_model, CLASS_NAMES), expected)
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        read("absent.txt", CLASS_NAMES)


# ----------------------------------------------------------------------------------- the partners
def test_partners_are_those_of_the_flags(args, train, tmp_path):
    found = language.partners(args, Captioned(), CPU, refuse)
    assert found.partners.tolist() == [[1], [3], [3], [4], [3]]
    args.data_pairs_from = str(found.folder)
    again = language.partners(args, Captioned(), CPU, refuse)
    assert again.partners.tolist() == found.partners.tolist()
    with pytest.raises(ValueError, match="of other images or captions"):
        language.partners(args, Captioned(CAPTIONS[::-1]), CPU, refuse)
    args.data_pairs_from, args.data_pairs_distinct, args.data_pairs_k = None, True, 2
    found = language.partners(args, Captioned(), CPU, refuse)
    assert found.partners.shape == (5, 2) and 4 not in found.partners[3]
    args.data_pairs_csls = 2
    assert language.partners(args, Captioned(), CPU, refuse).about["csls"] == 2
    args.data_pairs_csls = 0
    with pytest.raises(ValueError, match="animals has no captions"):
        args.data_pairs_distinct = False
        language.partners(args, train, CPU, refuse)
    inputs = language.sampler_inputs(args, Captioned(), CPU, refuse)
    assert inputs["partners"].shape == inputs["similarities"].shape == (5, 2)
    args.data_sampler = "class_random"
    assert language.sampler_inputs(args, train, CPU, refuse) == {}


def test_partners_by_images(args, train):
    args.data_pairs_by = "visual"
    vectors = torch.tensor([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [-1, 0]])

    def extract(some):
        rows = torch.arange(len(some))
        return SimpleNamespace(features=vectors[some.start : some.stop], rows=rows)

    def visual():
        return {"backbone": torch.nn.Identity(), "name": "m", "settings": (), "extract": extract}

    found = language.partners(args, train, CPU, visual)
    assert isinstance(found, partner_folder.Partners)
    assert found.partners.tolist() == [[2], [3], [0], [1], [1]]
