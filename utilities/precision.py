"""The number formats of a forward pass."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Under it, what gains computes in ``precision``, a name of ``DTYPES``; weights stay float32.

    Micikevicius et al., Mixed Precision Training, ICLR 2018.
    """
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
