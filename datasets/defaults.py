"""Defaults that give way: to packaged models where no hub answers, and to those of a resumed run.

Only what a recipe chose gives way. A flag that was typed is taken at its word.
"""

from collections.abc import Callable, Mapping
from typing import Any

from datasets.recipes import RECIPES
from utilities import distributed, hub

AtHand = Callable[[str], bool]  # of a model's name: whether it can be loaded without a network

# Defaults from a model hub, and what packages have in their place.
PACKAGED = {
    "resnet50_frozen_normalize_root": "efficientnet_lite0_frozen_normalize_root",
    "resnet50_frozen_normalize": "efficientnet_lite0_frozen_normalize",
    "resnet50_frozen": "efficientnet_lite0_frozen",
    "resnet50": "efficientnet_lite0",
    "clip": "minilm",
    "mpnet": "minilm",
}
BACKBONES = ("arch", "language_pseudoclass_model")
ENCODERS = ("language_model", "evaluation_language_model")
YIELDING = ("bs", "arch", *ENCODERS, "language_pseudoclass_model")  # flags whose defaults give way


def fixed(args: Any, filled: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that a resumed run must have, with None for defaults that give way."""
    return {**vars(args), **{flag: None for flag in YIELDING if flag in filled}}


def settle(
    args: Any,
    filled: Mapping[str, Any],
    saved: Mapping[str, Any] | None,
    backbone_at_hand: AtHand,
    encoder_at_hand: AtHand,
) -> dict[str, str]:
    """Replace defaults that give way; return lines for the summary, by label.

    A resumed run keeps what it began with. Else packages replace the models of one's own images, as
    soon as one that the run reads is not at hand and no hub answers.

    Args:
        filled: flags that the recipe chose.
        saved: checkpoint of the run that is resumed, if any, with its ``flags``.
    """
    if saved is not None:
        before = saved["flags"]
        kept = {flag: before[flag] for flag in YIELDING if flag in filled and flag in before}
        changed = {flag: value for flag, value in kept.items() if value != getattr(args, flag)}
        return {"as it began": _set(args, changed)} if changed else {}
    if args.dataset in RECIPES:
        return {}
    at_hand = dict.fromkeys(BACKBONES, backbone_at_hand) | dict.fromkeys(ENCODERS, encoder_at_hand)
    # One process decides, so that all train the same network.
    mine = _replacements(args, filled, at_hand) if distributed.is_first() else {}
    replaced = distributed.broadcast(mine)
    return {"from packages": f"{_set(args, replaced)} (no hub answers)"} if replaced else {}


def _replacements(
    args: Any, filled: Mapping[str, Any], at_hand: Mapping[str, AtHand]
) -> dict[str, str]:
    read, found = _read(args), {}
    for flag in YIELDING:
        value = getattr(args, flag)
        if flag == "arch" and flag not in read:
            continue  # its weights, given or random, stay those of this network
        if flag in filled and value in PACKAGED and not at_hand[flag](value):
            found[flag] = PACKAGED[value]
    return found if found.keys() & read and not hub.answers() else {}


def _read(args: Any) -> set[str]:
    """Return the flags of the models that a run on one's own images loads."""
    guided = args.language_distill_w or args.language_proxy_w
    of_captions = args.language_words == "captions"
    about_words = any("word" in name or "named" in name for name in args.evaluation_metrics)
    loaded = {
        "arch": not (args.weights or args.not_pretrained),
        "language_model": guided or of_captions or args.data_sampler == "class_related",
        "language_pseudoclass_model": guided and args.language_words == "pseudolabels",
        "evaluation_language_model": about_words,
    }
    return {flag for flag, is_loaded in loaded.items() if is_loaded}


def _set(args: Any, values: Mapping[str, Any]) -> str:
    """Set flags, and return them as they would be typed."""
    for flag, value in values.items():
        setattr(args, flag, value)
    return " ".join(f"--{flag} {value}" for flag, value in values.items())
