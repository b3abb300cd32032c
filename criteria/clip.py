"""CLIP: images and their captions in one space: Radford et al., Learning Transferable Visual Models
From Natural Language Supervision, ICML 2021, section 2.3.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from language.text_encoder import TextEncoder
from language.text_tower import TextTower
from language.tokenizer import Tokenizer
from utilities.device import send
from utilities.distributed import gather
from utilities.gradient_cache import in_chunks
from utilities.optimization import decay_groups
from utilities.structures import Batch, Embedding

from .base import Criterion, at_least_float32, evaluating, require_at_least
from .self_supervised import full_precision

TEXTS = 256  # that ``embed_texts`` reads at a time


class CLIP(Criterion):
    """Pulls each image toward its own caption and pushes it from those of the other images.

        L = -1/2B Σ_i [ log exp(s x_i·t_i) / Σ_j exp(s x_i·t_j)
                      + log exp(s x_i·t_i) / Σ_j exp(s x_j·t_i) ]

    x are the projected features of the images and t those of their captions, normalised; the scale
    s = 1 / temperature is learned by its logarithm, which is held at ln 100 or below after each
    step. The scale, biases and norms have no weight decay; the embeddings of tokens and positions
    have, as published.

    Captions are read by a transformer that is trained too, or by a frozen sentence encoder with a
    trained linear projection. A caption that the frozen encoder cannot embed is left out with its
    image. Equal captions in a batch are negatives of each other, as published.

    With several processes the pairs of all of them make up one batch, whose loss each process
    returns. The transformer follows autocast; all else is float32.

    Args:
        tokenizer: makes a tokenizer for texts of at most a number of tokens, for "transformer".
        encoder: makes the frozen sentence encoder, for "frozen".
        forward_bs: captions per pass through the transformer; 0: all.
        text: "transformer" or "frozen".
        proj_dim: dimension of x and t.
        width, layers: of the transformer.
        heads: of its attention; divides ``width``.
        tokens: maximum number of tokens of a caption, special tokens included.
        temperature: at the start; 0.01, the lowest that it learns, or more.

    Shapes: features (B, F), captions (B,); returns a scalar >= 0, which is 0 for a single pair.

    Raises:
        ValueError: the batch lacks captions, or a hyperparameter is out of range.
    """

    reads = "features"
    gathers = True

    def __init__(
        self,
        feature_dim: int,
        tokenizer: Callable[[int], Tokenizer],
        encoder: Callable[[], TextEncoder],
        forward_bs: int = 0,
        *,
        text: str = "transformer",
        proj_dim: int = 512,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        tokens: int = 77,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if text not in ("transformer", "frozen"):
            raise ValueError(f"text must be transformer or frozen; got {text}")
        if not 0.01 <= temperature < math.inf:
            raise ValueError(
                f"temperature must be finite and >= 0.01, the lowest that CLIP learns; "
                f"got {temperature:g}"
            )
        require_at_least(
            1, proj_dim=proj_dim, width=width, layers=layers, heads=heads, tokens=tokens
        )
        self.proj_dim = proj_dim
        self.reader: FrozenReader | TrainedReader
        if text == "frozen":
            self.reader = FrozenReader(encoder(), proj_dim)
        else:
            tokenize = tokenizer(tokens)
            tower = TextTower(
                tokenize.vocabulary,
                length=tokens,
                width=width,
                layers=layers,
                heads=heads,
                out_dim=proj_dim,
            )
            self.reader = TrainedReader(tokenize, tower, forward_bs)
        self.projection: nn.Module = _projection(feature_dim, proj_dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def compute(self, views: Sequence[Embedding], batch: Batch) -> Tensor:
        return self.contrast(*self.project(views, batch))

    def project(self, views: Sequence[Embedding], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return x and t, (N, proj_dim) each, of the pairs of all processes with a known text."""
        self.check(views, batch)
        features = at_least_float32(views[0].features)
        texts, known = self.reader(batch.captions)
        texts = at_least_float32(texts)
        with torch.autocast(features.device.type, enabled=False):
            pairs = torch.cat([self.projection(features), texts.to(features)], dim=1)
        images, texts = gather(pairs).split(self.proj_dim, dim=1)
        if known is not None:
            rows = gather(known.to(torch.uint8)).nonzero().squeeze(1)
            if len(rows) < len(images):
                rows = send(rows, images.device)
                images, texts = images.index_select(0, rows), texts.index_select(0, rows)
        return F.normalize(images, dim=1), F.normalize(texts, dim=1)

    @full_precision
    def embed_images(self, features: Tensor) -> Tensor:
        """Return x (B, D) of features (B, F) as evaluation embeds them."""
        with evaluating(self):
            projected = self.projection(features.to(self.log_scale))
        return F.normalize(projected, dim=1)

    @property
    def text_reader(self) -> Tokenizer | TextEncoder:
        """The tokenizer of the trained tower or the frozen encoder; knows what it can read."""
        reader = self.reader
        return reader.tokenizer if isinstance(reader, TrainedReader) else reader.encoder

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return t (N, D) of texts as evaluation embeds them; zero for a text that is not known."""
        with evaluating(self):
            rows = [self.reader(texts[i : i + TEXTS])[0] for i in range(0, len(texts), TEXTS)]
        return F.normalize(torch.cat(rows).float(), dim=1)

    @full_precision
    def contrast(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return L of N pairs of unit rows (N, D) at the current scale; 0 for N = 0."""
        logits = self.log_scale.exp() * images @ texts.T  # (N, N)
        own = torch.arange(len(logits), device=logits.device)
        of_images = F.cross_entropy(logits, own, reduction="sum")
        of_texts = F.cross_entropy(logits.T, own, reduction="sum")
        return (of_images + of_texts) / (2 * max(len(logits), 1))

    @torch.no_grad()
    def after_step(self, embedder: nn.Module) -> None:
        self.log_scale.clamp_(max=math.log(100))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return decay_groups(self, lr)  # the scale has no axes, so no decay

    def check(self, views: Sequence[Embedding], batch: Batch) -> None:
        super().check(views, batch)
        n_images, n_captions = len(batch.labels), len(batch.captions)
        if n_captions != n_images:
            raise ValueError(
                f"{type(self).__name__} needs a caption of each image, but a batch of {n_images} "
                f"images has {n_captions}; use a dataset of image-caption pairs, such as "
                "openclipart, or a loss without captions, such as simclr"
            )


class TrainedReader(nn.Module):
    """Reads (B,) captions with a trained tower: (B, D), and None, since it knows every text."""

    def __init__(self, tokenizer: Tokenizer, tower: TextTower, forward_bs: int = 0) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.tower = tower
        self.forward_bs = forward_bs

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, None]:
        device = self.tower.positions.device
        ids, mask = self.tokenizer(captions)
        tokens = send(ids, device), send(mask, device)
        return in_chunks(self.tower, self.forward_bs, *tokens), None


class FrozenReader(nn.Module):
    """Reads (B,) captions with a frozen sentence encoder and a trained projection.

    Returns (B, D) and which captions have an embedding, (B,) bool on the CPU.
    """

    def __init__(self, encoder: TextEncoder, out_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        dim = encoder.encode(["a photo"]).shape[1]  # a text, since the cache may know it
        self.projection = _projection(dim, out_dim)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            embeds = self.encoder.encode(captions)
        known = (embeds != 0).any(dim=1)
        with torch.autocast(self.projection.weight.device.type, enabled=False):
            weight = self.projection.weight
            return self.projection(send(embeds.to(weight.dtype), weight.device)), known


def _projection(in_dim: int, out_dim: int) -> nn.Linear:
    """Return a linear layer without bias, initialised as in CLIP."""
    projection = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.normal_(projection.weight, std=in_dim**-0.5)
    return projection


class BesideCLIP(Criterion):
    """An objective that has a ``CLIP`` as a part, and searches by its two sides."""

    clip: CLIP

    def embed_images(self, features: Tensor) -> Tensor:
        return self.clip.embed_images(features)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self.clip.embed_texts(texts)

    @property
    def text_reader(self) -> Tokenizer | TextEncoder:
        return self.clip.text_reader
