"""A checkpoint as a run leaves it."""

import torch

import architectures
from utilities import checkpoint

FLAGS = {"arch": "test_resnet_frozen_normalize", "embed_dim": 8, "image_size": 32}


def save_run(folder, name="last", **flags):
    """Write a checkpoint with weights unlike any initialisation; return the embedder."""
    flags = {**FLAGS, "augmentation": "base", "dataset": "emoji", "use_float16": False, **flags}
    torch.manual_seed(3)
    embedder = architectures.create(
        flags["arch"], flags["embed_dim"], pretrained=False, image_size=flags["image_size"]
    )
    with torch.no_grad():
        for value in embedder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))
    parts = {"embedder": embedder.state_dict(), "flags": flags, "epoch": 4}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / f"{name}.pt", parts)
    return embedder.eval()
