"""SwAV: Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, Unsupervised Learning of Visual
Features by Contrasting Cluster Assignments, NeurIPS 2020, eq. 1-5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utilities.distributed import gather, rank

from .base import Counting, require_at_least, require_positive
from .self_supervised import Queue, SelfSupervised, full_precision, head


class SwAV(Counting, SelfSupervised):
    """Makes each view predict to which prototypes the other is assigned.

        L = -1/2B Σ_i Σ_c [ q1_ic log p2_ic + q2_ic log p1_ic ],   p = softmax over c of z·c / τ

    z are the projections and c the prototypes, both normalised. The assignments q share the images
    of all processes out evenly over the prototypes (``sinkhorn``), and have no gradient. From
    ``queue_start`` on, a queue keeps both z of earlier training images; once full, its images are
    assigned along with those of the batch, since an even share needs more images than a batch has.

    The softmax is over the prototypes, as in the paper; the code of El Banani, Desai and Johnson,
    CVPR 2023, takes it over the batch. There are two views and no smaller crops.

    Args:
        temperature: τ, > 0.
        epsilon: ε of the assignment, > 0; a lower one is closer to one prototype an image.
        hidden_dim: width of the projector, F - hidden - ReLU - out.
        proj_dim: dimension of z.
        n_prototypes: K.
        freeze_steps: first optimizer steps, in which the prototypes get no gradient, so that
            neither momentum nor weight decay moves them.
        queue_size: images of the queue, for all processes together; 0 has no queue.
        queue_start: optimizer steps before the first image is pushed.

    Shapes: features (B, F) of each view; returns a scalar >= 0. Prototypes (K, proj_dim), unit rows
    before training and after each ``after_step``.
    """

    counters = ("steps",)

    def __init__(
        self,
        feature_dim: int,
        *,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        hidden_dim: int = 2048,
        proj_dim: int = 128,
        n_prototypes: int = 3000,
        freeze_steps: int = 2503,
        queue_size: int = 7680,
        queue_start: int = 37500,
    ) -> None:
        super().__init__(feature_dim)
        require_positive(temperature=temperature, epsilon=epsilon)
        require_at_least(
            1,
            sinkhorn_iterations=sinkhorn_iterations,
            hidden_dim=hidden_dim,
            proj_dim=proj_dim,
            n_prototypes=n_prototypes,
        )
        require_at_least(
            0, freeze_steps=freeze_steps, queue_size=queue_size, queue_start=queue_start
        )
        self.temperature = temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.freeze_steps = freeze_steps
        self.queue_start = queue_start
        self.projector = head(feature_dim, hidden_dim, proj_dim)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(n_prototypes, proj_dim), dim=1))
        self.queue = Queue(queue_size, 2, proj_dim)  # an image's row has both its views
        self.steps = 0

    @full_precision
    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        z1, z2 = F.normalize(first, dim=1), F.normalize(second, dim=1)
        frozen = self.steps < self.freeze_steps
        prototypes = self.prototypes.detach() if frozen else self.prototypes  # (K, D)
        q1, q2 = self._assign(torch.stack([z1, z2], dim=1))  # (B, K)
        of_second = F.cross_entropy(z2 / self.temperature @ prototypes.T, q1)
        of_first = F.cross_entropy(z1 / self.temperature @ prototypes.T, q2)
        return (of_second + of_first) / 2

    @torch.no_grad()
    def _assign(self, views: Tensor) -> list[Tensor]:
        """Return the assignments (B, K) of each view of this process's images (B, 2, D)."""
        everyone = gather(views)  # (B · processes, 2, D)
        earlier = self.queue.rows if self.queue.full else self.queue.rows[:0]
        if self.training and self.steps >= self.queue_start:
            self.queue.push(everyone)
        rows = torch.cat([earlier.to(views.dtype), everyone])
        start = len(earlier) + rank() * len(views)
        scores = (rows[:, view] @ self.prototypes.T for view in (0, 1))
        assigned = (sinkhorn(s, self.epsilon, self.sinkhorn_iterations) for s in scores)
        return [q[start : start + len(views)] for q in assigned]

    @torch.no_grad()
    def after_step(self, embedder: nn.Module) -> None:
        if self.steps >= self.freeze_steps:
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        self.steps += 1


@full_precision
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return a soft assignment of images to prototypes: near the highest scores, and even.

        Q = diag(u) exp(scores / ε) diag(v)

    with u and v such that each image has the sum 1 and, after enough iterations, each prototype
    N / K (eq. 3-5), on logarithms, as exp(scores / ε) overflows where ε is small.

    Shapes: scores (N, K) of images and prototypes; returns (N, K) in [0, 1].
    """
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q.log_softmax(dim=0).log_softmax(dim=1)
    return log_q.exp()
