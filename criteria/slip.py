"""SLIP and LG-SLIP: CLIP and self-supervision.

Mu, Kirillov, Wagner and Xie, SLIP: Self-supervision meets Language-Image Pre-training, ECCV 2022.
El Banani, Desai and Johnson, Learning Visual Representations via Language-Guided Sampling, CVPR
2023.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from utilities.structures import Batch, Embedding

from .base import at_least_float32, evaluating, require_at_least
from .clip import BesideCLIP
from .self_supervised import full_precision


class SLIP(BesideCLIP):
    """CLIP on a lightly cropped view, SimCLR between two strongly augmented ones.

        L = L_CLIP(view 1, caption) + w L_SimCLR(view 2, view 3)

    Both have heads of their own, with the hyperparameters of CLIP and SimCLR.

    Args:
        make: builds the loss of a name for embeddings of a dimension, with its own flags.
        ssl_weight: w; the paper has 1.

    Shapes: three views' features (B, F), captions (B,); returns a scalar.

    Raises:
        ValueError: the batch lacks captions or has another number of views.
    """

    n_views = 3
    reads = "features"
    gathers = True

    def __init__(
        self, make: Callable[[str, int], Any], embed_dim: int, *, ssl_weight: float = 1.0
    ) -> None:
        super().__init__()
        require_at_least(0, ssl_weight=ssl_weight)
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


class LGSLIP(SLIP):
    """CLIP on an image and its caption, SimCLR between that image and its language neighbour.

        L = L_CLIP(view 1, caption) + w L_SimCLR(view 1, view 2)

    A sampler of language pairs makes view 2 from another image; the caption is that of view 1.
    Unlike in ``SLIP``, the view of CLIP is one of SimCLR's, and both compare it through one
    projector: SimCLR's, with as many outputs as CLIP's captions.

    Shapes: two views' features (B, F), captions (B,); returns a scalar.
    """

    n_views = 2

    def __init__(
        self, make: Callable[[str, int], Any], embed_dim: int, *, ssl_weight: float = 1.0
    ) -> None:
        super().__init__(make, embed_dim, ssl_weight=ssl_weight)
        *_, last = self.simclr.projector
        self.simclr.projector[-1] = nn.Linear(last.in_features, self.clip.proj_dim)
        self.clip.projection = nn.Identity()

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        self.simclr.check(views, batch)
        first, second = (self.simclr.projector(at_least_float32(v.features)) for v in views)
        of_captions = self.clip.compute([views[0]._replace(features=first)], batch)
        return of_captions + self.ssl_weight * self.simclr.loss(first, second)

    @full_precision
    def embed_images(self, features: Tensor) -> Tensor:
        with evaluating(self):
            projected = self.simclr.projector(features.to(self.clip.log_scale))
        return self.clip.embed_images(projected)
