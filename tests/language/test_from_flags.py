import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import language
import parameters
from language import partner_folder, words
from language.guide import LanguageGuide
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
    class_descriptions: tuple[tuple[str, ...], ...] = ()
    class_tags: tuple[tuple[str, ...], ...] = ()
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
    args.language_prompt = ["photo {}"]
    guide = language.build_guide(args, train, CPU, refuse)
    assert texts_of(args, train) == [["kit fox"], ["tench"], ["crane"]]
    encoder = language.build_encoder(args.language_model, CPU)
    read = encoder.encode([f"photo {name}" for name in CLASS_NAMES])
    torch.testing.assert_close(guide.class_words, read)
    args.data_sampler = "class_related"
    inputs = language.sampler_inputs(args, train, CPU, refuse)
    torch.testing.assert_close(guide.class_words, inputs["class_words"])
    assert language.sampler_inputs(args, Captioned(), CPU, refuse) == {}  # has no classes


def test_several_prompts_are_averaged(args, train):
    args.language_prompt = ["photo {}", "{}", "{} fox"]
    encoder = language.build_encoder(args.language_model, CPU)
    read = [encoder.encode([p.replace("{}", n) for n in CLASS_NAMES]) for p in args.language_prompt]
    expected = F.normalize(read[0] / 3 + read[1] / 3 + read[2] / 3, dim=1)
    guide = language.build_guide(args, train, CPU, refuse)
    torch.testing.assert_close(guide.class_words, expected)
    torch.testing.assert_close(
        language.class_word_embeds(encoder, CLASS_NAMES, args.language_prompt), expected
    )


@pytest.mark.parametrize("source", ["names+tags", "descriptions", "names+descriptions"])
@pytest.mark.parametrize(("several", "centre"), [("ranks", False), ("mean", True)])
def test_written_words_guide_loss_and_batches_alike(args, train, source, several, centre, caplog):
    train.class_tags = (("fox", "kit"), (), ("goldfish",))
    train.class_descriptions = (("a kit", "a fox"), (), ("a goldfish",))
    args.language_words, args.language_prompt = source, ["photo {}"]
    args.language_several, args.language_centre = several, centre
    caplog.set_level("INFO")
    guide = language.build_guide(args, train, CPU, refuse)
    assert f"--language_words {source}: 1 of 3 classes have only a name: ['tench']" in caplog.text
    texts = words.of_classes(source, train)
    assert [set(map(guide.words.texts.__getitem__, row)) for row in guide.words.index.tolist()] == [
        set(of_class) for of_class in texts
    ]
    encoder = language.build_encoder(args.language_model, CPU)
    prompt = "photo {}" if source == "names+tags" else "{}"
    read = encoder.encode(words.with_prompt(guide.words.texts, prompt))
    expected = LanguageGuide(read, guide.words, several=several, centre=centre)
    torch.testing.assert_close(guide.class_words, expected.class_words)
    args.data_sampler, args.language_distill_w = "class_related", 0
    inputs = language.sampler_inputs(args, train, CPU, refuse)
    torch.testing.assert_close(inputs["class_words"], guide.class_words)
    args.language_control = "permuted"  # is of the loss alone
    again = language.sampler_inputs(args, train, CPU, refuse)["class_words"]
    torch.testing.assert_close(again, guide.class_words)
    assert language.files(args, train, False)["language_words"] == ["\n".join(of) for of in texts]
    args.data_sampler = "class_random"
    assert "language_words" not in language.files(args, train, False)


def test_words_of_images_do_not_relate_classes(args, train):
    args.data_sampler, args.language_words = "class_related", "pseudolabels"
    found = language.sampler_inputs(args, train, CPU, refuse)["class_words"]
    args.language_words = "classnames"
    expected = language.sampler_inputs(args, train, CPU, refuse)["class_words"]
    torch.testing.assert_close(found, expected)


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
    for source, images, message in (
        ("captions", train, "--language_words captions needs"),
        ("pseudolabels", Captioned(), "--language_words pseudolabels are words of classes"),
        ("descriptions", Captioned(), "--language_words descriptions are words of classes"),
        ("descriptions", train, '--language_words descriptions reads the "description" of'),
    ):
        args.language_words = source
        with pytest.raises(ValueError, match=message):
            texts_of(args, images)


def test_centring_what_is_all_alike_names_the_flag(args, train, tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"kit fox": "fox", "tench": "fox", "crane": "fox"}')
    args.language_words, args.language_centre = str(path), True
    with pytest.raises(ValueError, match=r"^--language_centre leaves nothing of words that all"):
        language.build_guide(args, train, CPU, refuse)


def test_texts_without_embedding_are_named(args):
    args.language_words = "captions"
    captions = ("a fox", "zzz", "tench", "crane", "?")
    with pytest.warns(UserWarning, match=r"knows no word of 2 \('zzz', '\?'\)"):
        guide = language.build_guide(args, Captioned(captions), CPU, refuse)
    assert guide.embeds[1].abs().sum() == 0


def test_names_are_read_by_the_encoder_asked_for_and_without_a_prompt(args):
    read = language.NamesReader(CPU)
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
