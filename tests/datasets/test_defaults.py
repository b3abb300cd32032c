"""Defaults that give way to packages and to a resumed run; typed flags do not."""

import pytest

import architectures
import language
import parameters
from datasets import defaults, fill_by_recipe
from datasets.defaults import PACKAGED, fixed, settle
from datasets.recipes import OWN_CAPTIONS, OWN_IMAGES
from utilities import hub

pytestmark = pytest.mark.usefixtures("own_cache")
GUIDED = ("--language_distill_w", "7.5")


@pytest.fixture
def asked(monkeypatch):
    """Stand in for a hub that does not answer; the list of the times it was asked."""
    asked = []
    monkeypatch.setattr(hub, "answers", lambda: bool(asked.append(None)))
    return asked


def settled(*typed, dataset="mine", saved=None, at_hand=lambda name: False):
    """Return the flags of a run, and the lines for its summary."""
    args = parameters.parse(["--dataset", dataset, *typed])
    filled, _ = fill_by_recipe(args)
    return args, settle(args, filled, saved, at_hand, at_hand)


def models(args):
    return args.arch, args.language_model, args.evaluation_language_model


def test_own_images_take_packaged_models_where_no_hub_answers(asked):
    args, notes = settled(*GUIDED)
    assert models(args) == ("efficientnet_lite0_frozen_normalize", "minilm", "minilm")
    assert args.language_pseudoclass_model == "efficientnet_lite0"
    [(label, line)] = notes.items()
    assert label == "from packages" and line.endswith("(no hub answers)")
    assert "--arch efficientnet_lite0_frozen_normalize --language_model minilm" in line
    assert len(asked) == 1  # however many models


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("--arch", "resnet50", *GUIDED), ("resnet50", "minilm", "minilm")),
        (
            ("--language_model", "clip", *GUIDED),
            ("efficientnet_lite0_frozen_normalize", "clip", "minilm"),
        ),
        (("--weights", "a.pth", *GUIDED), ("resnet50_frozen_normalize", "minilm", "minilm")),
    ],
)
def test_what_was_typed_is_not_replaced(asked, typed, expected):
    assert models(settled(*typed)[0]) == expected


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        (GUIDED, {"dataset": "cub200"}),  # a published setting
        (GUIDED, {"at_hand": lambda name: True}),  # all in the cache
        (("--arch", "resnet18"), {}),  # no words are read
        (("--not_pretrained",), {}),
        (("--weights", "a.pth"), {}),
    ],
)
def test_a_hub_is_not_asked_for_what_a_run_does_not_load_from_it(asked, typed, options):
    args, notes = settled(*typed, **options)
    assert not asked and not notes and args.language_model == "clip"


def test_a_hub_that_answers_is_used(monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda: True)
    args, notes = settled(*GUIDED)
    assert models(args) == ("resnet50_frozen_normalize", "clip", "clip") and not notes


def test_every_default_from_a_hub_has_a_packaged_counterpart_that_is_at_hand():
    for recipe in (OWN_IMAGES, OWN_CAPTIONS):
        for flag in (*defaults.BACKBONES, *defaults.ENCODERS):
            other = PACKAGED[getattr(recipe, flag)]
            known = architectures if flag in defaults.BACKBONES else language
            assert known.at_hand(other)


def test_a_model_in_the_cache_is_at_hand(tmp_path, monkeypatch):
    """With its weights, and an encoder with its tokenizer, too."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def put(repository, *files):
        snapshot = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / "0"
        (snapshot.parents[1] / "refs").mkdir(parents=True, exist_ok=True)
        (snapshot.parents[1] / "refs" / "main").write_text("0")
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in files:
            (snapshot / file).touch()

    assert not architectures.at_hand("resnet50_frozen") and not language.at_hand("clip")
    put("timm/resnet50.tv_in1k", "model.safetensors")
    put("openai/clip-vit-base-patch32", "config.json", "model.safetensors")
    assert architectures.at_hand("resnet50_frozen") and not language.at_hand("clip")
    put("openai/clip-vit-base-patch32", "vocab.json")
    assert language.at_hand("clip")


def test_a_resumed_run_keeps_what_it_began_with(asked):
    """Even if a hub answers by then; other defaults must be as they were."""
    saved = {"flags": {"bs": 24, "arch": "efficientnet_lite0", "language_model": "minilm", "lr": 1}}
    args, notes = settled(saved=saved)
    assert (args.bs, args.arch, args.language_model) == (24, "efficientnet_lite0", "minilm")
    assert args.lr == 1e-5 and not asked
    line = "--bs 24 --arch efficientnet_lite0 --language_model minilm"
    assert notes == {"as it began": line}

    args = parameters.parse(["--arch", "resnet18"])
    filled, _ = fill_by_recipe(args)
    must = fixed(args, filled)
    assert must["bs"] is None and must["language_model"] is None  # whatever it has
    assert must["arch"] == "resnet18" and must["lr"] == args.lr


def test_a_hub_that_hangs_is_given_up(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(hub, "TIMEOUT", 0.05)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_, **__: hub.threading.Event().wait(2)
    )
    hub.answers.cache_clear()
    assert not hub.answers()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    hub.answers.cache_clear()
    assert hub.answers()
    hub.answers.cache_clear()
