"""The half precision of a device."""

import torch


def half_precision(device: torch.device) -> torch.dtype:
    """float16 on CUDA, whose range needs a loss scaler in training; bfloat16 elsewhere."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16
