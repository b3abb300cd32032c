"""The image tower of CLIP or SigLIP, whose projection the embedder leaves out.

With the text tower that it was trained with, it finds images by words without any training:
Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021;
Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023.
"""

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from architectures.library import timm
from architectures.naming import ArchitectureName
from architectures.weights import find, load_model, preprocessing

# Weights of timm, and the Hugging Face model with their text tower. The names only say what to
# load: whether two towers belong together is seen by their embeddings.
TEXT_TOWERS = {
    "vit_base_patch32_clip_224.openai": "openai/clip-vit-base-patch32",
    "vit_base_patch16_clip_224.openai": "openai/clip-vit-base-patch16",
    "vit_large_patch14_clip_224.openai": "openai/clip-vit-large-patch14",
    "vit_large_patch14_clip_336.openai": "openai/clip-vit-large-patch14-336",
    "vit_base_patch32_clip_224.laion2b": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "vit_base_patch16_clip_224.laion2b": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "vit_large_patch14_clip_224.laion2b": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "vit_huge_patch14_clip_224.laion2b": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "vit_giant_patch14_clip_224.laion2b": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
    "vit_gigantic_patch14_clip_224.laion2b": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "vit_base_patch32_clip_224.metaclip_400m": "facebook/metaclip-b32-400m",
    "vit_base_patch32_clip_224.metaclip_2pt5b": "facebook/metaclip-b32-fullcc2.5b",
    "vit_base_patch16_clip_224.metaclip_400m": "facebook/metaclip-b16-400m",
    "vit_base_patch16_clip_224.metaclip_2pt5b": "facebook/metaclip-b16-fullcc2.5b",
    "vit_large_patch14_clip_224.metaclip_400m": "facebook/metaclip-l14-400m",
    "vit_large_patch14_clip_224.metaclip_2pt5b": "facebook/metaclip-l14-fullcc2.5b",
    "vit_huge_patch14_clip_224.metaclip_2pt5b": "facebook/metaclip-h14-fullcc2.5b",
    "vit_base_patch16_siglip_224.webli": "google/siglip-base-patch16-224",
    "vit_base_patch16_siglip_256.webli": "google/siglip-base-patch16-256",
    "vit_base_patch16_siglip_256.webli_i18n": "google/siglip-base-patch16-256-multilingual",
    "vit_base_patch16_siglip_384.webli": "google/siglip-base-patch16-384",
    "vit_base_patch16_siglip_512.webli": "google/siglip-base-patch16-512",
    "vit_large_patch16_siglip_256.webli": "google/siglip-large-patch16-256",
    "vit_large_patch16_siglip_384.webli": "google/siglip-large-patch16-384",
    "vit_so400m_patch14_siglip_224.webli": "google/siglip-so400m-patch14-224",
    "vit_so400m_patch14_siglip_384.webli": "google/siglip-so400m-patch14-384",
    "vit_so400m_patch16_siglip_256.webli_i18n": "google/siglip-so400m-patch16-256-i18n",
    "vit_base_patch32_siglip_256.v2_webli": "google/siglip2-base-patch32-256",
    "vit_base_patch16_siglip_224.v2_webli": "google/siglip2-base-patch16-224",
    "vit_base_patch16_siglip_256.v2_webli": "google/siglip2-base-patch16-256",
    "vit_base_patch16_siglip_384.v2_webli": "google/siglip2-base-patch16-384",
    "vit_base_patch16_siglip_512.v2_webli": "google/siglip2-base-patch16-512",
    "vit_large_patch16_siglip_256.v2_webli": "google/siglip2-large-patch16-256",
    "vit_large_patch16_siglip_384.v2_webli": "google/siglip2-large-patch16-384",
    "vit_large_patch16_siglip_512.v2_webli": "google/siglip2-large-patch16-512",
}
N_TESTED = 2  # images by which towers are compared


class ImageTower(NamedTuple):
    """The last layer of an image tower, and what the whole tower makes of a few images."""

    text_tower: str  # Hugging Face id of the model with the matching text tower
    projection: nn.Module  # features (B, F) -> (B, D), frozen
    dim: int  # D
    images: Tensor  # (N_TESTED, 3, H, W), normalised, of the size that the weights were made for
    embeds: Tensor  # (N_TESTED, D) of these images


def has_text_tower(name: str) -> bool:
    """Return whether the architecture ``name`` is the image tower of a model of ``TEXT_TOWERS``."""
    return _key(ArchitectureName.parse(name).backbone) in TEXT_TOWERS


@torch.no_grad()
def image_tower(name: str, weights: Path | None = None) -> ImageTower:
    """Return the tower of an architecture, with the weights that its embedder starts from.

    Raises:
        ValueError: the embedder's features are not those of the tower; says why.
        LookupError: its weights cannot be found.
    """
    arch = ArchitectureName.parse(name)
    if arch.double:
        raise ValueError("_double pools otherwise than its projection expects")
    quick = arch.backbone.replace("_clip_", "_clip_quickgelu_")
    if quick != arch.backbone and timm.models.is_model_pretrained(_tagged(quick, arch.backbone)):
        raise ValueError(
            "its weights were trained with another activation; use --arch "
            + _tagged(quick, arch.backbone)
        )
    config = timm.models.get_pretrained_cfg(arch.backbone)
    assert config is not None  # has_text_tower
    state, source = find(arch.backbone, weights)
    model = cast(Any, load_model(arch.backbone, state, source, {"num_classes": config.num_classes}))
    model.eval().requires_grad_(False)
    side = preprocessing(model)[2]
    images = torch.randn(N_TESTED, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    projection = model.get_classifier()
    embeds = projection(features)
    return ImageTower(TEXT_TOWERS[_key(arch.backbone)], projection, embeds.shape[1], images, embeds)


def _tagged(model: str, like: str) -> str:
    """Return ``model`` with the tag of the weights behind ``like``."""
    config = timm.models.get_pretrained_cfg(like)
    return f"{model.partition('.')[0]}.{config.tag if config else ''}"


def _key(backbone: str) -> str:
    """Return the name of a timm model's weights, one for all activations."""
    return _tagged(backbone, backbone).replace("_quickgelu", "")
