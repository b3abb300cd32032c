"""SimSiam: Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, eq. 4."""

from torch import Tensor

from .base import require_at_least
from .self_supervised import SelfSupervised, head, mean_cosine


class SimSiam(SelfSupervised):
    """Makes each view predict the projection of the other, which gets no gradient.

        L = -1/2 cos(p1, stopgrad(z2)) - 1/2 cos(p2, stopgrad(z1)),   z = f(x), p = h(z)

    There are no negatives: the predictor h and the stop-gradient prevent collapse. The projector f
    ends in a BatchNorm without scale and shift, as in the authors' code, which also keeps the
    predictor's learning rate constant.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        proj_dim: dimension of z and p.
        pred_dim: width of the predictor's hidden layer.

    Shapes: features (B, F) of each view; returns a scalar in [-1, 1].
    """

    def __init__(
        self, feature_dim: int, *, hidden_dim: int = 2048, proj_dim: int = 2048, pred_dim: int = 512
    ) -> None:
        super().__init__(feature_dim)
        require_at_least(1, hidden_dim=hidden_dim, proj_dim=proj_dim, pred_dim=pred_dim)
        self.projector = head(
            feature_dim, hidden_dim, hidden_dim, proj_dim, last_norm=True, last_affine=False
        )
        self.predictor = head(proj_dim, pred_dim, proj_dim)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z1, z2 = self.projector(first), self.projector(second)  # (B, D)
        p1, p2 = self.predictor(z1), self.predictor(z2)  # (B, D)
        return -(mean_cosine(p1, z2.detach()) + mean_cosine(p2, z1.detach())) / 2
