"""Geometry of embeddings: distances within and between classes, alignment, uniformity, spectrum.

Distances and spectrum describe the gallery; alignment and uniformity are averaged over queries.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.gallery import Gallery
from metrics.search import Ranking

# Distances within and between classes.
# Means over pairs of |x - y|^2, or by cosine of 1 - cos(x, y), half of it on unit rows. The cosine
# values are dists@intra, dists@inter and dists@intra_over_inter of Roth et al., Revisiting
# Training Strategies and Generalization Performance in Deep Metric Learning, ICML 2020. Their code
# gives classes of one image the largest distance of another class; here they are left out.


def intra_distance(gallery: Gallery, _k: int, cosine: bool) -> float:
    """Return the mean distance of two images of a class over classes, >= 0; NaN if none has two."""
    view = gallery.unit if cosine else gallery
    sizes = view.classes.sizes.double()
    # The mean of |x - y|^2 over pairs of n points is 2 n / (n - 1) times that of |x - centre|^2.
    pairs = (2 * sizes / (sizes - 1) * view.moments.variances)[sizes > 1]
    return float(pairs.mean()) / (2 if cosine else 1)


def inter_distance(gallery: Gallery, _k: int, cosine: bool) -> float:
    """Return the mean distance of the centres of two classes, >= 0; NaN for a single class.

    By euclidean distance the centre of a class is its mean, by cosine the direction of that mean.
    """
    view = gallery.unit if cosine else gallery
    centres = view.moments.centres[view.classes.sizes > 0]
    if len(centres) == 1:
        return math.nan
    centres = F.normalize(centres, dim=1) if cosine else centres
    variance = float((centres - centres.mean(dim=0)).square().sum() / (len(centres) - 1))
    return variance if cosine else 2 * variance


def intra_over_inter(gallery: Gallery, k: int, cosine: bool) -> float:
    """Return the ratio of the two, >= 0, small for compact and separate classes.

    If all centres are one point it is inf, or NaN if the images are too.
    """
    intra, inter = (f(gallery, k, cosine) for f in (intra_distance, inter_distance))
    return intra / inter if inter else math.nan if math.isnan(intra) or not intra else math.inf


# Alignment and uniformity, of unit rows.
# Source: Wang and Isola, Understanding Contrastive Representation Learning through Alignment and
# Uniformity on the Hypersphere, ICML 2020, with their exponents: alpha = 2 and t = 2. A positive
# pair is an image and another of its class. Both are smaller for better embeddings.


def alignment(gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) mean of |q - g|^2 over the other images of the query's class, in [0, 4]; NaN if none."""
    classes = gallery.classes.asked[ranking.rows]
    centres, variances = (part[classes] for part in gallery.moments)
    asked = gallery.asking.embeds[ranking.rows].double()
    # The mean over the whole class, to which the query itself adds nothing.
    whole = (asked - centres).square().sum(dim=1) + variances
    mean = whole * gallery.classes.sizes[classes] / ranking.n_positives
    return mean.where(ranking.n_positives > 0, torch.nan)


def potential(_gallery: Gallery, ranking: Ranking, _k: int) -> Tensor:
    """(B,) mean of exp(-2 |q - g|^2) over all images but the query; NaN if there is none.

    In [e^-8, 1]. The logarithm of its mean over queries is the uniformity, in [-8, 0]; about
    -4 + 8/D for points spread evenly over the sphere.
    """
    return ranking.potentials.double()


def rho_spectrum(gallery: Gallery, mode: int, cosine: bool) -> float:
    """Return how far singular values are from uniform: 0 if equal, more for fewer directions.

    With s the singular values of the (N, D) embeddings except the |mode| - 1 largest, divided by
    their sum, and u the uniform distribution: KL(u || s) for mode > 0, KL(s || u) for mode < 0.
    >= 0; inf for mode > 0 if a direction is not used at all, NaN if no value is left.

    Source: Roth et al., ICML 2020, section 5 (spectral decay); its code estimates all but the
    smallest singular value by a randomised method, this computes all.
    """
    values = _singular_values((gallery.unit if cosine else gallery).embeds)[abs(mode) - 1 :]
    if not len(values) or not values.sum():
        return math.nan
    s = values / values.sum()
    # KL(u || s) = -mean log(L s), KL(s || u) = sum s log(L s), and 0 log 0 = 0.
    surprise = (len(s) * s).log()
    divergence = -surprise.mean() if mode > 0 else (s * surprise).nansum()
    return max(0.0, float(divergence))


def _singular_values(points: Tensor) -> Tensor:
    """Return (min(N, D),) float64, descending; values of rounding size are 0."""
    n, d = points.shape
    # The triangles of QR carry the singular values from block to block.
    triangle = points.new_empty(0, d, dtype=torch.float64)
    for block in points.split(max(1024, 4 * d)):
        triangle = torch.linalg.qr(torch.cat([triangle, block.double()]), mode="r").R
    values = torch.linalg.svdvals(triangle)
    return values * (values > values[0] * max(n, d) * torch.finfo(values.dtype).eps)
