"""timm, without the W&B client that it would import for a summary of its own training script.

That takes a second of each command's start. Import timm from here in this folder.
"""

import sys

absent = "wandb" not in sys.modules
if absent:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # an ImportError, which timm expects
try:
    import timm
    from timm.utils import ModelEmaV3
finally:
    if absent:
        del sys.modules["wandb"]

__all__ = ["ModelEmaV3", "timm"]
