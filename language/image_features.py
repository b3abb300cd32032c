"""The image tower beside the text tower that ``--language_model`` names, to know it again."""

import torch
from torch import Tensor

from language import ENCODERS
from language.encoders import load, read_source, resolve
from language.word_vectors import SUFFIXES

KINDS = ("clip", "siglip")  # types of models with an image tower of fixed patches


@torch.no_grad()
def image_features(name: str, images: Tensor) -> Tensor | None:
    """Return (B, D) of normalised images (B, 3, H, W) on the CPU, before they are made unit rows.

    None if the model has no image tower. Raises as ``language.encoders.build`` does.
    """
    if name not in ENCODERS and name.endswith(SUFFIXES):
        return None
    _, model, _ = read_source(name, resolve(name), load)
    if model.config.model_type not in KINDS:
        return None
    # With as many patches as it was trained with, nothing is interpolated.
    features = model.float().eval().get_image_features(images, interpolate_pos_encoding=True)
    return getattr(features, "pooler_output", features)
