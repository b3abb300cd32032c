"""A moving average of an embedder's weights, which often retrieves better than the last weights.

Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; exponential as in
Tarvainen and Valpola, Mean Teachers are Better Role Models, NeurIPS 2017.
"""

from architectures.embedder import Embedder
from architectures.library import ModelEmaV3


def build_average(embedder: Embedder, decay: float) -> ModelEmaV3 | None:
    """Return the average of an embedder on its device, or None for a ``decay`` of 0.

    After optimizer step t = 1, 2, …, ``update(embedder, t)`` makes each weight and each running
    statistic of BatchNorm

        average ← d · average + (1 - d) · current,     d = min(decay, 1 - t^(-2/3)),

    so the first step replaces the weights that training started from, and short runs forget them
    as well. ``module`` is the averaged embedder, in evaluation mode.
    """
    if not decay:
        return None
    average = ModelEmaV3(embedder, decay=decay, use_warmup=True)
    average.module.requires_grad_(False)
    return average
