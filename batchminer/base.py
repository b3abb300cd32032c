"""The base of all miners: masks of the pairs, a generator, draws by weight."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from utilities.pairs import pair_masks
from utilities.structures import References, Triplets


class Miner(nn.Module, ABC):
    """Chooses the triplets (anchor, positive, negative) that a loss looks at.

    A subclass writes ``mine``; one that draws a negative for each pair by weight derives from
    ``NegativeMiner`` and writes the weights. It is a module so that the state dict of the criterion
    that holds it has the state of its generator.

    Args:
        seed: of the miner's own generator, which is made on the device of the first batch. A state
            restored on another kind of device starts again from the seed.

    Shapes: embeds (B, D) of any floating type, labels (B,) int64; returns T >= 0 triplets.
    Positives and negatives are indices into ``references`` (R of them) if given, else into the
    batch. Unless a miner says otherwise, the positive is another image of the anchor's class and
    the negative one of another class. Mining runs in float32 without gradient.
    """

    adapt_every: int = 0  # training iterations between calls of ``adapt``; 0: never

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._saved: dict[str, Tensor] = {}  # device type -> generator state, until it is needed

    @abstractmethod
    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        """Return the triplets of embeds (B, D) and references (R, D), float32.

        ``references`` is ``embeds`` if there are no others; ``positive`` and ``negative``, (B, R)
        bool, are the candidates of each image.
        """

    def candidates(self, labels: Tensor, reference_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return masks (B, R): the possible positives and negatives of each image."""
        return pair_masks(labels, reference_labels)

    @torch.no_grad()
    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Triplets:
        with torch.autocast(embeds.device.type, enabled=False):
            embeds = embeds.float()
            if references is None:
                return self.mine(embeds, embeds, *self.candidates(labels, None))
            masks = self.candidates(labels, references.labels)
            return self.mine(embeds, references.embeds.float(), *masks)

    def adapt(self, embeds: Tensor, labels: Tensor) -> dict[str, float]:
        """Learn from validation images (M, D), always the same ones; return values to log."""
        return {}

    def draw(self, weights: Tensor) -> Tensor:
        """Draw a column from each row of (N, R) weights, with probability in proportion: (N,).

        Args:
            weights: numbers or a mask; finite, >= 0. A row's sum must be at least 1e-30; a row of
                zeros gives any column.
        """
        # One random number per row in (0, total], where torch.multinomial takes one per entry. The
        # first column whose cumulative sum reaches it is drawn: never one of weight zero.
        edges = weights.float().cumsum(dim=1)
        if edges.device.type != "cpu":
            edges = rising(edges, weights)
        generator = self.generator(weights.device)
        numbers = 1 - torch.rand(len(weights), 1, device=weights.device, generator=generator)
        return torch.searchsorted(edges, numbers * edges[:, -1:]).squeeze(1)

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the miner's own generator, on ``device``."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
            self._generator.manual_seed(self.seed)
            if device.type in self._saved:
                self._generator.set_state(self._saved[device.type].cpu())
        return self._generator

    def get_extra_state(self) -> dict[str, Tensor]:
        if self._generator is None:
            return self._saved
        return {self._generator.device.type: self._generator.get_state()}

    def set_extra_state(self, state: Any) -> None:
        self._saved, self._generator = dict(state), None


class NegativeMiner(Miner):
    """Gives every (anchor, positive) pair one negative, drawn by weight.

    A subclass writes only ``weights``. Each of an anchor's positives is used, where Roth et al.,
    ICML 2020, draw one of them. T = Σ over classes of n (n - 1) without other references.
    O((B + T) R) memory.
    """

    @abstractmethod
    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        """Return weights (T, R) for ``draw`` of each reference as the negative of each pair.

        They are numbers or a mask, zero off ``negative`` (B, R), in which every anchor has at least
        one. ``anchors`` and ``positives`` (T,) are the pairs.
        """

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        pairs = positive & any_in_row(negative)[:, None]
        anchors, positives = places(pairs)  # (T,), the one wait for the device
        weights = self.weights(embeds, references, negative, anchors, positives)  # (T, R)
        return Triplets(anchors, positives, self.draw(weights))


def every_triplet(positive: Tensor, negative: Tensor) -> Triplets:
    """Return each anchor's positives with each of its negatives, from two (B, R) masks, sorted."""
    n_positives = positive.view(torch.uint8).sum(dim=1, dtype=torch.long)
    n_negatives = negative.view(torch.uint8).sum(dim=1, dtype=torch.long)
    counts = torch.stack([n_positives.sum(), (n_positives * n_negatives).sum()])
    n_pairs, n_triplets = counts.tolist()  # the one wait for the device
    anchors, positives = places(positive, n_pairs)  # (P,)
    pairs, negatives = places(negative.index_select(0, anchors), n_triplets)  # (T,), of P pairs
    return Triplets(anchors[pairs], positives[pairs], negatives)


def rising(edges: Tensor, weights: Tensor) -> Tensor:
    """Return cumulative sums (N, R) that never fall and do not grow where the weight is zero.

    A sequential sum has both properties; the parallel one of a GPU may break them by rounding.
    """
    return edges.masked_fill(weights == 0, 0).cummax(dim=1).values


def any_in_row(mask: Tensor) -> Tensor:
    """Return which rows of a (B, R) mask have any True: (B,) bool."""
    # A CPU counts bytes 2 to 20 times as fast as booleans.
    return mask.view(torch.uint8).amax(dim=1).bool()


def places(mask: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of a mask's Trues; without a count, this waits for the device."""
    mask = mask.view(torch.uint8)
    found = mask.nonzero() if count is None else mask.nonzero_static(size=count)
    rows, columns = found.unbind(dim=1)
    return rows, columns
