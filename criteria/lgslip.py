"""LG-SLIP: SLIP on pairs of images whose captions are neighbours.

El Banani, Desai and Johnson, Learning Visual Representations via Language-Guided Sampling, CVPR
2023.
"""

from .slip import SLIP


class LGSLIP(SLIP):
    """CLIP on an image and its caption, SimCLR between that image and its language neighbour.

        L = L_CLIP(view 1, caption) + w L_SimCLR(view 1, view 2)

    A sampler of language pairs makes view 2 from another image; the caption is that of view 1. Two
    views suffice, since unlike in ``SLIP`` the view of CLIP is one of SimCLR's.

    Args:
        make: builds the loss of a name for embeddings of a dimension, with its own flags.
        embed_dim: D, passed to ``make``; neither loss reads it.
        ssl_weight: w.

    Shapes: two views' features (B, F), captions (B,); returns a scalar.

    Raises:
        ValueError: the batch lacks captions or has another number of views.
    """

    n_views = 2
