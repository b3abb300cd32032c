"""NNCLR: Dwibedi, Aytar, Tompson, Sermanet and Zisserman, With a Little Help from My Friends:
Nearest-Neighbor Contrastive Learning of Visual Representations, ICCV 2021, eq. 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utilities.distributed import gather, rank

from .base import require_at_least, require_positive
from .self_supervised import Queue, SelfSupervised, full_precision, head


class NNCLR(SelfSupervised):
    """Makes the nearest neighbour of one view, in a queue of earlier images, find the other view.

        L = -1/2B Σ_i [ log exp(n1_i·p2_i / τ) / Σ_k exp(n1_i·p2_k / τ)
                      + log exp(n2_i·p1_i / τ) / Σ_k exp(n2_i·p1_k / τ) ]

    z = f(x) is a projection and p = h(z) its prediction, both normalised; n_i is the row of the
    queue that is nearest to z_i, without gradient. The queue holds z of the first views of the last
    images of all processes; in training a batch is pushed after its loss. It starts full of random
    unit rows from torch's global generator, which is seeded alike in every process.

    Args:
        temperature: τ, > 0.
        queue_size: rows of the queue; the paper has 98304.
        hidden_dim: width of the projector's two hidden layers. Each of its layers has a BatchNorm.
        proj_dim: dimension of z and p.
        pred_dim: width of the predictor's hidden layer.

    Shapes: features (B, F) of each view; returns a scalar >= 0.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        temperature: float = 0.1,
        queue_size: int = 16384,
        hidden_dim: int = 2048,
        proj_dim: int = 256,
        pred_dim: int = 4096,
    ) -> None:
        super().__init__(feature_dim)
        require_positive(temperature=temperature)
        require_at_least(
            1, queue_size=queue_size, hidden_dim=hidden_dim, proj_dim=proj_dim, pred_dim=pred_dim
        )
        self.temperature = temperature
        self.projector = head(feature_dim, hidden_dim, hidden_dim, proj_dim, last_norm=True)
        self.predictor = head(proj_dim, pred_dim, proj_dim)
        self.queue = Queue(queue_size, proj_dim, random=True)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z1, z2 = self.projector(first), self.projector(second)  # (B, D)
        p1, p2 = self.predictor(z1), self.predictor(z2)  # (B, D)
        n1, n2 = nearest(z1, self.queue.rows), nearest(z2, self.queue.rows)  # (B, D)
        loss = (find(n1, p2, self.temperature) + find(n2, p1, self.temperature)) / 2
        if self.training:
            self.queue.push(gather(unit(z1.detach())))
        return loss


@full_precision
def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


@torch.no_grad()
@full_precision
def nearest(rows: Tensor, queue: Tensor) -> Tensor:
    """Return the unit row of the queue (Q, D) that has the highest cosine with each of (B, D)."""
    return queue[(unit(rows) @ queue.to(rows.dtype).T).argmax(dim=1)]


@full_precision
def find(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of unit rows (B, D) finding their own among all predictions."""
    own = torch.arange(len(predictions), device=predictions.device) + rank() * len(predictions)
    logits = neighbours / temperature @ gather(unit(predictions)).T  # (B, B · processes)
    return F.cross_entropy(logits, own)
