"""Writes an embedder as an ONNX file, which embeds images without torch."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LIMIT = 2 * 10**9  # bytes; a protobuf file ends at 2 GiB


class ToEmbeds(nn.Module):
    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        return self.embedder(images).embeds


def detached(embedder: nn.Module) -> Any:
    """Return a copy in evaluation mode, without channels_last and gradients, to be exported."""
    fresh: nn.Module = copy.deepcopy(embedder).to(memory_format=torch.contiguous_format)
    return fresh.cpu().eval().requires_grad_(False)


def any_batch() -> dict[str, dict[int, Any]]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


def check_onnx(embedder: nn.Module) -> None:
    """Raise ValueError, which tells why, if an embedder cannot be an ONNX file."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}; run bash requirements.sh again")
    size = sum(value.nbytes for value in embedder.state_dict().values())
    if size > LIMIT:
        raise ValueError(
            f"the weights take {size / 1e9:.1f} GB, but an ONNX file holds {LIMIT // 10**9}"
        )


def write_onnx(embedder: nn.Module, images: Tensor, path: Path) -> None:
    """Write a file that maps "images" (B, 3, S, S) to "embeds" (B, D), for any B.

    Args:
        embedder: as ``detached`` returns it.
        images: two or more, by which it is traced.
    """
    torch.onnx.export(
        ToEmbeds(embedder).eval(),
        (images,),
        str(path),
        input_names=["images"],
        output_names=["embeds"],
        dynamic_shapes=any_batch(),
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
    )
