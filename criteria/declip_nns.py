"""Nearest-neighbour supervision of CLIP: Li et al., Supervision Exists Everywhere: A Data Efficient
Contrastive Language-Image Pre-training Paradigm (DeCLIP), ICLR 2022, section 3.2.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from utilities.structures import Batch, Embedding

from .base import require_at_least
from .clip import BesideCLIP
from .nnclr import nearest
from .self_supervised import Queue


class DeCLIPNNS(BesideCLIP):
    """CLIP whose images are also paired with the text nearest to their caption.

        L = (1 - w) L_CLIP(x, t) + w L_CLIP(x, nn(t)),    nn(t) = argmax_{q ∈ Q} t·q

    The queue Q holds the texts t of the last batches of all processes, without gradient. In
    training a batch is stored after it was searched, so no caption finds itself; but a queue longer
    than an epoch holds its t of the previous epoch, so Q should be much smaller than the number of
    images. While Q is empty, L = L_CLIP (the authors' queue starts with random vectors).

    This is the nearest-neighbour part of DeCLIP alone, as in El Banani et al., CVPR 2023.

    Args:
        make: builds the loss of a name for embeddings of a dimension; its "clip" is a ``CLIP``.
        weight: w, in [0, 1].
        queue_size: number of texts in Q.

    Shapes: one view's features (B, F), captions (B,); returns a scalar.

    Raises:
        ValueError: a hyperparameter is out of range, or the batch lacks captions.
    """

    reads = "features"
    gathers = True

    def __init__(
        self,
        make: Callable[[str, int], Any],
        embed_dim: int,
        *,
        weight: float = 0.2,
        queue_size: int = 16384,
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1]; got {weight:g}")
        require_at_least(1, queue_size=queue_size)
        self.clip = make("clip", embed_dim)
        self.weight = weight
        self.queue = Queue(queue_size, self.clip.proj_dim)

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        images, texts = self.clip.project(views, batch)
        loss = self.clip.contrast(images, texts)
        if self.queue.filled:
            neighbours = nearest(texts, self.queue.rows[-self.queue.filled :])
            of_neighbours = self.clip.contrast(images, neighbours.to(texts))
            loss = (1 - self.weight) * loss + self.weight * of_neighbours
        if self.training:
            self.queue.push(texts)
        return loss

    def after_step(self, embedder: nn.Module) -> None:
        self.clip.after_step(embedder)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return self.clip.param_groups(lr)
