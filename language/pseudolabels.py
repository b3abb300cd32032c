"""ImageNet pseudolabels (PLG): a classifier's K best classes as the words of a class or image.

Source: Roth, Vinyals, Akata, Integrating Language Guidance into Vision-based Deep Metric Learning,
CVPR 2022.
"""

import torch
from torch import Tensor

from language import AVERAGES, LEVELS


def top_classes(
    logits: Tensor, labels: Tensor, *, topk: int = 5, level: str = "class", average: str = "logits"
) -> Tensor:
    """Return the ``topk`` ImageNet classes of each training class or of each image, best first.

    Args:
        logits: (N, 1000), the classifier's output for each training image.
        labels: (N,) int64, contiguous training classes in [0, C).
        level: "class" ranks the mean output over a class's images, "sample" each image's own.
        average: "logits" as in the released code, or "probabilities", where one sure image cannot
            outvote the rest. No difference at sample level.

    Returns:
        (C, K) int64 at class level, (N, K) at sample level.
    """
    for name, value, known in (("level", level, LEVELS), ("average", average, AVERAGES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value}")
    if not 1 <= topk <= logits.shape[1]:
        raise ValueError(f"topk must be in [1, {logits.shape[1]}]; got {topk}")
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} rows of logits for {len(labels)} labels")
    if level == "sample":
        return logits.topk(topk, dim=1).indices
    outputs = logits.softmax(dim=1) if average == "probabilities" else logits
    counts = torch.bincount(labels)  # (C,)
    if (counts == 0).any():
        raise ValueError(f"classes {counts.eq(0).nonzero().flatten().tolist()} have no image")
    sums = outputs.new_zeros(len(counts), outputs.shape[1]).index_add_(0, labels, outputs)
    return (sums / counts.unsqueeze(1)).topk(topk, dim=1).indices


def imagenet_names() -> tuple[str, ...]:
    """Return the 1000 class names, first synonym only: "kit fox" of "kit fox, Vulpes macrotis"."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(
        info.index_to_description(index).split(",")[0].strip()
        for index in range(info.num_classes())
    )
