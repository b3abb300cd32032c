"""SLIP: CLIP beside self-supervision.

Mu, Kirillov, Wagner and Xie, SLIP: Self-supervision meets Language-Image Pre-training, ECCV 2022.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from utilities.structures import Batch, Embedding

from .base import Criterion


class SLIP(Criterion):
    """CLIP on a lightly cropped view, SimCLR between two strongly augmented ones.

        L = L_CLIP(view 1, caption) + w L_SimCLR(view 2, view 3)

    Both have heads of their own, with the hyperparameters of CLIP and SimCLR.

    Args:
        make: builds the loss of a name for embeddings of a dimension, with its own flags.
        embed_dim: D, passed to ``make``; neither loss reads it.
        ssl_weight: w; the paper has 1.

    Shapes: three views' features (B, F), captions (B,); returns a scalar.

    Raises:
        ValueError: the batch lacks captions or has another number of views.
    """

    n_views = 3
    reads = "features"
    gathers = True

    def __init__(
        self,
        make: Callable[[str, int], Criterion],
        embed_dim: int,
        *,
        ssl_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.clip = make("clip", embed_dim)
        self.simclr = make("simclr", embed_dim)
        self.ssl_weight = ssl_weight

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        self.check(views, batch)
        of_captions = self.clip.compute(views[:1], batch)
        return of_captions + self.ssl_weight * self.simclr.compute(views[-2:], batch)

    def after_step(self, embedder: nn.Module) -> None:
        self.clip.after_step(embedder)
        self.simclr.after_step(embedder)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return self.clip.param_groups(lr) + self.simclr.param_groups(lr)
