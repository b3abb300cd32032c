"""LG-SLIP: SLIP on pairs of images whose captions are neighbours.

El Banani, Desai and Johnson, Learning Visual Representations via Language-Guided Sampling, CVPR
2023.
"""

from .slip import SLIP


class LGSLIP(SLIP):
    """CLIP on an image and its caption, SimCLR between that image and its language neighbour.

        L = L_CLIP(view 1, caption) + w L_SimCLR(view 1, view 2)

    A sampler of language pairs makes view 2 from another image, and the caption is that of view 1.
    Unlike in ``SLIP`` the view of CLIP is one of SimCLR's, so that two views do.

    Args:
        make: builds the loss of a name for embeddings of a dimension, with its own flags.
        embed_dim: D, which neither loss reads.
        ssl_weight: w.

    Shapes: two views' features (B, F), captions (B,); returns a scalar.

    Raises:
        ValueError: the batch lacks captions or has another number of views.
    """

    n_views = 2
