"""The text transformer of CLIP: Radford et al., Learning Transferable Visual Models From Natural
Language Supervision, ICML 2021, section 2.4.
"""

import torch
from torch import Tensor, nn


class TextTower(nn.Module):
    """A causal transformer that embeds tokens, trained from scratch.

    Pre-norm blocks of attention and an MLP of four widths with QuickGELU, no dropout. The state of
    the last token of the text, its end mark, is normalised and projected to D = ``out_dim``.

    Shapes: ids (B, L) int64 with L <= ``length``, mask (B, L) bool, True at the tokens of the text
    and False at the padding to their right; returns (B, D) of any length.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        length: int = 77,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        out_dim: int = 512,
    ) -> None:
        super().__init__()
        if width % heads:
            fitting = [n for n in range(1, width + 1) if width % n == 0]
            closest = min(fitting, key=lambda n: abs(n - heads))
            raise ValueError(f"heads must divide width {width}, such as {closest}; got {heads}")
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        block = nn.TransformerEncoderLayer(
            width,
            heads,
            dim_feedforward=4 * width,
            dropout=0.0,
            activation=quick_gelu,
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, out_dim, bias=False)
        self._initialise(width, layers)

    def _initialise(self, width: int, layers: int) -> None:
        """The standard deviations of the authors' code."""
        into = width**-0.5
        out_of = into * (2 * layers) ** -0.5  # what the residual path sums up over the blocks
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in self.blocks.layers:
            nn.init.normal_(block.self_attn.in_proj_weight, std=into)
            nn.init.normal_(block.self_attn.out_proj.weight, std=out_of)
            nn.init.normal_(block.linear1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.linear2.weight, std=out_of)
            nn.init.zeros_(block.linear1.bias)
            nn.init.zeros_(block.linear2.bias)
        nn.init.normal_(self.projection.weight, std=into)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        n, length = ids.shape
        if length > len(self.positions):
            raise ValueError(f"a text must have at most {len(self.positions)} tokens; got {length}")
        states = self.tokens(ids) + self.positions[:length]  # (B, L, width)
        later = nn.Transformer.generate_square_subsequent_mask(
            length, device=states.device, dtype=states.dtype
        )
        states = self.blocks(states, mask=later, is_causal=True)
        last = mask.sum(dim=1) - 1  # (B,)
        return self.projection(self.norm(states[torch.arange(n, device=ids.device), last]))


def quick_gelu(x: Tensor) -> Tensor:
    """Return x σ(1.702 x), the approximation of GELU that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)
