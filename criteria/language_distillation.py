"""L_match: the similarities of images follow the similarities of their words: Roth, Vinyals and
Akata, Integrating Language Guidance into Vision-based Deep Metric Learning, CVPR 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import at_least_float32, require_finite, require_positive


class LanguageDistillation(nn.Module):
    """Distils each image's distribution over the batch from its words' distribution.

    Where two images share their class, both matrices hold 1 + shift, so only the relations between
    classes are taught. Elsewhere S_img is the cosine of the images and S_lang the cosine of their
    words, plus the shift. With the row-wise softmax σ at temperature T:

        backward, the paper's:  L = T²/B Σ_i KL( σ(S_img[i]/T) ‖ σ(S_lang[i]/T) )
        forward:                L = T²/B Σ_i KL( σ(S_lang[i]/T) ‖ σ(S_img[i]/T) )

    Args:
        shift: added to the words' similarities, in cosine.
        temp: T > 0, in cosine. At 1 both distributions are nearly uniform over a batch.
        distill_dir: "backward" or "forward".

    Shapes: embeds (B, D) of any length, language_sims (B, B) cosines, labels (B,) int64; returns a
    scalar >= 0 with a gradient through the images only, in float32 even inside autocast.
    """

    def __init__(
        self, *, shift: float = 1.0, temp: float = 1.0, distill_dir: str = "backward"
    ) -> None:
        super().__init__()
        if distill_dir not in ("backward", "forward"):
            raise ValueError(f"distill_dir must be backward or forward; got {distill_dir}")
        require_positive(temp=temp)
        require_finite(shift=shift)
        self.shift = shift
        self.temp = temp
        self.distill_dir = distill_dir

    def forward(self, embeds: Tensor, language_sims: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(embeds.device.type, enabled=False):
            unit = F.normalize(at_least_float32(embeds), dim=1)
            words = language_sims.detach().to(unit) + self.shift
            same = labels[:, None] == labels  # (B, B)
            image = self._log_softmax(unit @ unit.T, same)
            target = self._log_softmax(words, same)
            p, q = (image, target) if self.distill_dir == "backward" else (target, image)
            return self.temp**2 * (p.exp() * (p - q)).sum() / len(embeds)  # T²/B Σ_i KL(p_i ‖ q_i)

    def _log_softmax(self, sims: Tensor, same: Tensor) -> Tensor:
        return (sims.masked_fill(same, 1 + self.shift) / self.temp).log_softmax(dim=1)
