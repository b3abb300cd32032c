"""The embedder: images to embeddings, through a timm backbone and one linear layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.weights import cannot_read, mismatch, preprocessing
from utilities import faults
from utilities.optimization import decay_groups
from utilities.structures import Embedding

SHRINKAGE = 10.0  # chosen on validation classes: docs/small_sets.md
ROOT_FLOOR = 1e-6


class Embedder(nn.Module):
    """A backbone, pooling, a linear layer and, optionally, normalisation to unit length.

    Backbones are pooled as timm pools them before its classifier, with the layers that some have
    after pooling. The feature map is what is pooled: of a vision transformer, the patch tokens; of
    backbones with several outputs, the last.

    One image is embedded when the embedder is built: it tells the widths, and whether the backbone
    can be used at all.

    Args:
        backbone: a timm model without head, with its ``forward_features`` and ``forward_head``.
        embed_dim: D, the width of the embedding; 0 for that of the features.
        image_size: side of the images in pixels, or (height, width); None for that of the weights.
        frozen: BatchNorm keeps its stored statistics; its scale and shift are trained, as in the
            released code of Roth et al., CVPR 2022.
        double: pool by average + maximum over the feature map (Roth et al., ICML 2020).
        root: the embedding layer reads square roots of the features (``signed_root``).

    Shapes: images (B, 3, H, W); returns embeds (B, D), features (B, F), feature_map (B, M, h, w),
        the first two float32 under autocast too. F is ``feature_dim``, M ``map_dim``; they differ
        where layers after pooling change the width.

    Raises:
        ValueError: a backbone that cannot read such images, or that has no such features.
    """

    def __init__(
        self,
        backbone: nn.Module,
        embed_dim: int,
        *,
        image_size: int | tuple[int, int] | None = None,
        frozen: bool = False,
        normalize: bool = False,
        double: bool = False,
        root: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim < 0:
            raise ValueError(f"embed_dim must be >= 0; got {embed_dim}")
        self.backbone = backbone
        self.frozen = frozen
        self.normalize = normalize
        self.add_maximum = double  # nn.Module.double casts to float64
        self.root = root
        self.pooling = "average + maximum" if double else "as timm"  # distinguishes cached features
        self.mean, self.std, self.image_size, self.crop_ratio = preprocessing(backbone)
        self.name = str(backbone.pretrained_cfg["architecture"])  # type: ignore[index]
        if frozen and not self.frozen_norms:
            raise ValueError(f"{self.name} has no BatchNorm to freeze; drop _frozen")
        self.momenta: list[float] | None = None  # of BatchNorm, if activations are recomputed
        self.n_prefix = 0  # tokens before those of the patches
        self.feature_dim, self.map_dim = self._try(image_size or self.image_size)
        self.embed_dim = embed_dim or self.feature_dim
        self.embedding = nn.Linear(self.feature_dim, self.embed_dim)

    @torch.no_grad()
    def _try(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Return the widths of features and feature map, from a forward pass of one image."""
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                output = self.backbone.forward_features(torch.zeros(1, 3, *size))  # type: ignore[operator]
                with torch.enable_grad():  # of the layers after pooling alone
                    pooled = self.backbone.forward_head(output, pre_logits=True)  # type: ignore[operator]
        except Exception as error:  # each family raises its own
            if faults.explanation(error):
                raise
            raise ValueError(cannot_read(self.name, size, self.image_size, error)) from error
        self.backbone.train(training)
        n_prefix = _n_prefix(self.backbone, _last(output), size)
        if n_prefix is None or not isinstance(pooled, Tensor) or pooled.ndim != 2:
            raise ValueError(
                f"{self.name} cannot be an embedder: its features are not a map, or tokens in "
                "rows and columns, that is pooled to a vector; choose another backbone"
            )
        if pooled.requires_grad and self.add_maximum:
            raise ValueError(
                f"{self.name} has layers after its pooling, which average + maximum would leave "
                "out; drop _double"
            )
        if pooled.requires_grad and isinstance(output, Tensor) and output.ndim == 4:
            # Checkpoints that were trained without these layers do not have it.
            self.register_buffer("pooled_by_head", torch.ones((), dtype=torch.uint8))
        self.n_prefix = n_prefix
        feature_map = self._feature_map(output, size)
        return self._pool(output, feature_map).shape[1], feature_map.shape[1]

    @property
    def frozen_norms(self) -> list[nn.Module]:
        """The BatchNorm layers that keep their statistics; empty unless ``frozen``."""
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
        return [m for m in self.backbone.modules() if self.frozen and isinstance(m, norms)]

    @property
    def batch_norms(self) -> list[nn.Module]:
        """The layers that normalise over the batch in training."""
        frozen = {*self.frozen_norms}
        modules = self.backbone.modules()
        return [m for m in modules if hasattr(m, "running_var") and m not in frozen]

    def checkpoint_gradients(self) -> None:
        """Compute activations a second time in the backward pass, as timm does for a backbone.

        Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016. ValueError if the backbone
        cannot.
        """
        try:
            self.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError) as error:
            raise ValueError(
                f"timm has no gradient checkpointing of {self.name}; drop --grad_checkpointing, or "
                "save memory by --forward_bs"
            ) from error
        self.momenta = [norm.momentum for norm in self.batch_norms]  # type: ignore[misc]

    def train(self, mode: bool = True) -> "Embedder":
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> Embedding:
        if self.momenta is None:
            return self._embed(images)
        # The second computation gives BatchNorm the same batch; only the first updates statistics.
        self._set_momenta(self.momenta)
        embedding = self._embed(images)
        self._set_momenta([0.0] * len(self.momenta))
        return embedding

    def _set_momenta(self, momenta: Sequence[float]) -> None:
        for norm, momentum in zip(self.batch_norms, momenta, strict=True):
            norm.momentum = momentum  # type: ignore[assignment]

    def _embed(self, images: Tensor) -> Embedding:
        output = self.backbone.forward_features(images)  # type: ignore[operator]
        feature_map = self._feature_map(output, images.shape[2:])  # (B, M, h, w)
        features = self._pool(output, feature_map).float()  # (B, F)
        embeds = self.embed_features(features)  # (B, D)
        return Embedding(embeds, features, feature_map)

    def embed_features(self, features: Tensor) -> Tensor:
        """Return the embeddings (B, D) of pooled features (B, F)."""
        embeds = self.embedding(signed_root(features) if self.root else features).float()
        return F.normalize(embeds, dim=1) if self.normalize else embeds

    def _pool(self, output: Any, feature_map: Tensor) -> Tensor:
        if self.add_maximum:
            return feature_map.mean(dim=(2, 3)) + feature_map.amax(dim=(2, 3))
        return self.backbone.forward_head(output, pre_logits=True)  # type: ignore[operator]

    def _feature_map(self, output: Any, size: Sequence[int]) -> Tensor:
        output = _last(output)
        if output.ndim == 4:
            channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return output.permute(0, 3, 1, 2) if channels_last else output
        patches = output[:, self.n_prefix :]  # (B, h * w, M)
        n_patches = patches.shape[1]
        height = round(math.sqrt(n_patches * size[0] / size[1]))
        return patches.transpose(1, 2).unflatten(2, (height, n_patches // height))

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False):  # type: ignore[no-untyped-def]
        """Load a ``state_dict``; ValueError if it does not fit."""
        misfit = mismatch(self.state_dict(), state)
        if "pooled_by_head" in self.state_dict() and "pooled_by_head" not in state:
            misfit = (
                f"it was trained by an earlier version, which left out the layers that {self.name} "
                "has after its pooling; train again"
            )
        if misfit:
            raise ValueError(misfit)
        return super().load_state_dict(state, strict, assign)

    @torch.no_grad()
    def start_from(
        self, features: Tensor, labels: Tensor | None = None, shrinkage: float = SHRINKAGE
    ) -> None:
        """Set the embedding layer to the principal axes of the features, or of their roots.

        Of all maps to ``embed_dim`` dimensions it changes their cosines least (Eckart and Young,
        1936), so that training starts near the backbone's own ranking; a random layer loses much
        of it. With as many dimensions as features it is a rotation, and changes none.

        With labels the features are first centred and whitened within classes: directions in which
        images of one class differ count less. Hatch, Kajarekar and Stolcke, Within-Class Covariance
        Normalization for SVM-based Speaker Recognition, Interspeech 2006; here with more shrinkage.

        Args:
            features: (N, F), pooled, of training images. Without labels their lengths do not
                matter, and they are not centred, as in retrieval by cosine. F >= D.
            labels: (N,), the classes of the images.
            shrinkage: of the whitening, in mean variances within classes; with infinity the
                features are only centred.
        """
        x = features.double().cpu()
        x = signed_root(x) if self.root else x
        whiten, mean = torch.eye(x.shape[1], dtype=x.dtype), torch.zeros_like(x[0])
        if labels is None:
            x = F.normalize(x, dim=1)
        else:
            whiten, mean = _whitening(x, labels.cpu(), shrinkage), x.mean(dim=0)
            x = (x - mean) @ whiten  # (N, F)
        _, axes = torch.linalg.eigh(x.T @ x)  # (F, F), the largest last
        weight = axes.flip(1).T[: self.embed_dim] @ whiten  # (D, F)
        self.embedding.weight.copy_(weight)
        self.embedding.bias.copy_(-weight @ mean)

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


def signed_root(features: Tensor) -> Tensor:
    """Return the square roots of features' sizes, with their signs.

    A few large features dominate cosines less. Perronnin, Sanchez and Mensink, Improving the Fisher
    Kernel for Large-Scale Image Classification, ECCV 2010, section 3.2; with a small floor, which
    keeps the gradient finite.
    """
    return features.sign() * (features.abs() + ROOT_FLOOR).sqrt()


def _whitening(x: Tensor, labels: Tensor, shrinkage: float) -> Tensor:
    """Return the (F, F) whitening of (N, F) features within classes, shrunk towards no change.

    It is sqrt(a) (S / s + a I)^(-1/2), with the covariance S within classes, its mean variance s
    and the shrinkage a.
    """
    _, of_class, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(counts), x.shape[1]).index_add_(0, of_class, x)
    residuals = x - (sums / counts[:, None])[of_class]
    covariance = residuals.T @ residuals  # (F, F), times a number that does not matter
    scale = covariance.trace() / len(covariance)
    if not scale:  # classes of one image
        return torch.eye(len(covariance), dtype=x.dtype)
    variances, axes = torch.linalg.eigh(covariance / scale)
    return (axes * (variances.clamp(min=0) / shrinkage + 1).rsqrt()) @ axes.T


def _last(output: Any) -> Any:
    return output[-1] if isinstance(output, list | tuple) else output


def _n_prefix(backbone: nn.Module, output: Any, size: Sequence[int]) -> int | None:
    """Return the number of tokens before those of the patches, 0 for a feature map.

    A few backbones have a class token and do not tell. None if the rest has no rows and columns.
    """
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return None
    if output.ndim == 4:
        return 0
    ratio = size[0] / size[1]
    for n_prefix in (getattr(backbone, "num_prefix_tokens", 0), 0, 1, 2):
        n_patches = output.shape[1] - n_prefix
        rows, columns = (round(math.sqrt(max(n_patches, 0) * by)) for by in (ratio, 1 / ratio))
        if rows * columns == n_patches > 0:
            return n_prefix
    return None
