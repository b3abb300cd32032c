"""The embedder: images to embeddings, through a timm backbone and one linear layer."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from architectures.weights import preprocessing
from utilities.optimization import decay_groups
from utilities.structures import Embedding


class Embedder(nn.Module):
    """A backbone, pooling, a linear layer and, optionally, normalisation to unit length.

    Convolutional backbones are pooled by the average over their feature map, token backbones
    (vision transformers) as timm pools them; their feature map is the patch tokens.

    Args:
        backbone: a timm model without head, with its ``forward_features``.
        frozen: BatchNorm keeps its stored statistics; its scale and shift are trained, as in the
            released code of Roth et al., CVPR 2022.
        double: pool by average + maximum over the feature map (Roth et al., ICML 2020).

    Shapes: images (B, 3, H, W); returns embeds (B, D), features (B, F), feature_map (B, F, h, w),
        the first two float32 under autocast too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        embed_dim: int,
        *,
        frozen: bool = False,
        normalize: bool = False,
        double: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be >= 1; got {embed_dim}")
        self.backbone = backbone
        self.embed_dim = embed_dim
        self.feature_dim = int(backbone.num_features)  # type: ignore[arg-type]
        self.embedding = nn.Linear(self.feature_dim, embed_dim)
        self.frozen = frozen
        self.normalize = normalize
        self.add_maximum = double  # nn.Module.double casts to float64
        self.mean, self.std, self.image_size, self.crop_ratio = preprocessing(backbone)
        if frozen and not self.frozen_norms:
            name = backbone.pretrained_cfg["architecture"]  # type: ignore[index]
            raise ValueError(f"{name} has no BatchNorm to freeze; drop _frozen")

    @property
    def frozen_norms(self) -> list[nn.Module]:
        """The BatchNorm layers that keep their statistics; empty unless ``frozen``."""
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
        return [m for m in self.backbone.modules() if self.frozen and isinstance(m, norms)]

    def train(self, mode: bool = True) -> "Embedder":
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> Embedding:
        output = self.backbone.forward_features(images)  # type: ignore[operator]
        feature_map = self._feature_map(output, images)  # (B, F, h, w)
        features = self._pool(output, feature_map).float()  # (B, F)
        embeds = self.embedding(features).float()  # (B, D)
        if self.normalize:
            embeds = F.normalize(embeds, dim=1)
        return Embedding(embeds, features, feature_map)

    def _pool(self, output: Tensor, feature_map: Tensor) -> Tensor:
        if self.add_maximum:
            return feature_map.mean(dim=(2, 3)) + feature_map.amax(dim=(2, 3))
        if output.ndim == 3:
            return self.backbone.forward_head(output, pre_logits=True)  # type: ignore[operator]
        return feature_map.mean(dim=(2, 3))

    def _feature_map(self, output: Tensor, images: Tensor) -> Tensor:
        if output.ndim == 4:
            channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return output.permute(0, 3, 1, 2) if channels_last else output
        patches = output[:, getattr(self.backbone, "num_prefix_tokens", 0) :]  # (B, h * w, F)
        n_patches = patches.shape[1]
        height = round(math.sqrt(n_patches * images.shape[2] / images.shape[3]))
        return patches.transpose(1, 2).unflatten(2, (height, n_patches // height))

    def train_backbone(self, on: bool) -> None:
        self.backbone.requires_grad_(on)

    def param_groups(
        self, lr: float, fc_lr: float = -1, decay: float = 0.0, *, decay_norms: bool = True
    ) -> list[dict[str, Any]]:
        """Return optimizer groups of the backbone and of the embedding layer.

        Args:
            fc_lr: learning rate of the embedding layer; -1 for ``lr``.
            decay_norms: decay norms and biases too; otherwise they are groups of their own.
        """
        parts = ((self.backbone, lr), (self.embedding, lr if fc_lr == -1 else fc_lr))
        if decay_norms:
            groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in parts]
        else:
            groups = [group for part, rate in parts for group in decay_groups(part, rate)]
        return [{"weight_decay": decay} | group for group in groups]
