"""Every registered criterion at small sizes, built from flags."""

import argparse

import torch
from torch import nn

import batchminer
import criteria
from tests.criteria.caption_losses import Hashes, Letters
from utilities.registry import hyperparameters
from utilities.structures import Embedding

SMALL = {  # heads, queues and text towers, instead of the published sizes
    "hidden_dim": 8, "proj_dim": 6, "pred_dim": 8, "queue_size": 12, "n_prototypes": 5,
    "width": 8, "clip_layers": 1, "heads": 2, "tokens": 9,
    "target_dims": (4, 7),
}  # fmt: skip
LOSSES = {name: row.load() for name, row in criteria.CRITERIA.items()}
MINERS = {name: row.load() for name, row in batchminer.MINERS.items()}


def flags(**overrides):
    """All flags of criteria and miners at their defaults, except sizes."""
    chosen = {"seed": 0, "loss": "margin", "batch_mining": "distance"}
    chosen |= {"xbm_size": 0, "xbm_start": 0, "xbm_weight": 1.0}
    for prefix, registry in (("loss_", LOSSES), ("miner_", MINERS)):
        for name, component in registry.items():
            for key, value in hyperparameters(component).items():
                small = SMALL.get(f"{name}_{key}", SMALL.get(key, value))
                chosen[f"{prefix}{name}_{key}"] = small
    for key, value in hyperparameters(criteria.LanguageDistillation).items():
        chosen[f"language_{key}"] = value
    return argparse.Namespace(**{**chosen, **overrides})


class Embedder(nn.Module):
    """Images (B, 3, H, W) to their mean colour, mixed: what a momentum encoder copies."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, images):
        features = self.mix(images.mean(dim=(2, 3)))
        return Embedding(features, features, features[:, :, None, None])


def build(loss, embedder=None, **overrides):
    """The criterion of four classes, D = 6 and F = 3; its first weights follow the seed."""
    args = flags(loss=loss, **overrides)
    torch.manual_seed(args.seed)
    embedder = embedder or Embedder()
    return criteria.build(
        args, n_classes=4, embed_dim=6, feature_dim=3, miner=batchminer.build(args),
        embedder=embedder, n_steps=5, tokenizer=Letters, encoder=Hashes,
    )  # fmt: skip
