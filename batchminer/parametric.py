"""Policy-adapted sampling: a policy learns, during training, how hard negatives are.

Roth, Milbich and Ommer, PADS: Policy-Adapted Sampling for Visual Similarity Learning, CVPR 2020.
The policy gradient is eq. 7 of Schulman et al., Proximal Policy Optimization Algorithms, 2017.
"""

import math
from collections import deque
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utilities.pairs import pair_masks, pairwise_distances
from utilities.seeding import derive

from .base import NegativeMiner

FACTORS = (0.8, 1.0, 1.25)  # what an action multiplies a bin's probability with
HIDDEN = 128  # width of the policy's two hidden layers
CLIP = 0.2  # ε: an action's probability may leave that of its draw by this share

SCORES = ("recall@1", "nmi", "intra", "inter")
RECENT = 20  # scores of so many adaptations are in the state as they are,
WINDOWS = (2, 8, 16, 32)  # and averages over so many
LOW = (0.3, 0.7)  # distances
FLOOR = 1e-4  # of a bin's probability; some 40 steps up lead from here to certainty


class Parametric(NegativeMiner):
    """Draws negatives by their distance, from a distribution that a policy adapts to the training.

    K bins of equal width cover the distances [lower, upper) on the unit sphere. Bin k is drawn with
    probability p_k among the bins in which the anchor has negatives, then one of these, all alike:

        w(a, n) = p_k / |negatives of a in bin k|,  k the bin of d_an

    Negatives outside the bins are drawn, uniformly, only by an anchor that has no others. At each
    ``adapt`` a policy network multiplies each p_k by 0.8, 1 or 1.25:

        p_k <- p_k · a_k / Σ_j p_j · a_j,  a ~ π_θ(a | s),  r = sign(e_now - e_before)

    The state s holds scores of these images (recall@1, NMI, mean distances within and between
    classes) for the last 20 adaptations, their running averages over 2, 8, 16 and 32, the p_k and
    the progress; e = recall@1 + NMI. Until the first call the initial distribution is drawn from.

    The authors' code weighs a negative by p_k alone and merges distances outside the support into
    the outermost bins. Its advantage comes from a value network and each reward is used for one
    step; here the mean of the last 32 rewards is the baseline and each step uses all of them. Its
    bins outside the initial range start at 1e-15; here no p_k falls below 1e-4. Its progress is the
    share of iterations done, here n / (n + 100) after n adaptations.

    Args:
        every: iterations from one adaptation to the next, >= 1.
        bins: K >= 1.
        lower, upper: first and last edge of the bins, distances with 0 <= lower < upper.
        lr: learning rate of the policy's Adam, >= 0; 0 keeps it choosing at random.
        init: "low", nearly all at distances in [0.3, 0.7], or "uniform" over all bins.
    """

    probabilities: Tensor  # (K,), sums to 1

    def __init__(
        self,
        seed: int = 0,
        *,
        every: int = 30,
        bins: int = 30,
        lower: float = 0.1,
        upper: float = 1.4,
        lr: float = 1e-3,
        init: str = "low",
    ) -> None:
        super().__init__(seed)
        for name, value in {"every": every, "bins": bins}.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1; got {value}")
        if not 0 <= lower < upper < math.inf:
            raise ValueError(f"lower must be >= 0 and below upper {upper:g}; got {lower:g}")
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr must be finite and >= 0; got {lr}")
        if init not in ("low", "uniform"):
            raise ValueError(f"init must be low or uniform; got {init}")
        self.adapt_every = every
        self.bins = bins
        self.lower = lower
        self.upper = upper
        low = (self.centres() >= LOW[0]) & (self.centres() <= LOW[1])
        initial = low.float() if init == "low" else torch.ones(bins)
        self.register_buffer("probabilities", normalised(initial))
        inputs = len(SCORES) * (RECENT + len(WINDOWS)) + bins + 1
        self._policy = Policy(inputs, bins, lr, derive(seed, "policy"))
        self._scores = torch.zeros(0, len(SCORES), dtype=torch.float64)  # latest last
        self._adaptations = 0

    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        units = F.normalize(embeds, dim=1)
        others = units if references is embeds else F.normalize(references, dim=1)
        distances = pairwise_distances(units, others)  # (B, R)
        p = F.pad(self.probabilities.to(distances), (1, 1))  # slots: the bins, and 0 on both sides
        slots = distances.sub_(self.lower).mul_(self.bins / (self.upper - self.lower)).add_(1)
        slots = slots.nan_to_num_(nan=0).clamp_(0, self.bins + 1).long()

        counts = units.new_zeros(len(units), len(p))  # of an anchor's negatives in each slot
        counts.scatter_add_(1, slots, negative.to(counts.dtype))
        weights = (p / counts.clamp_(min=1)).gather(1, slots).mul_(negative)
        inside = weights.sum(dim=1, keepdim=True) > 0
        return torch.where(inside, weights, negative)[anchors]

    @torch.autocast("cpu", enabled=False)  # where the policy is
    def adapt(self, embeds: Tensor, labels: Tensor) -> dict[str, float]:
        """Reward the last change of the distribution, learn from it, and make the next one.

        Args:
            embeds: (M, D) of the same M >= 1 validation images at every call; a row that is not
                finite counts as the zero vector.
            labels: (M,) int64.

        Returns:
            ``reward`` in {-1, 0, 1} (0 at the first call); the scores ``recall@1``, ``nmi``,
            ``intra`` and ``inter`` (mean distances); ``entropy`` of the policy's choice for a bin,
            in nats; ``mean_distance`` of the new distribution.

        Raises:
            ValueError: not embeds (M, D) and labels (M,), or M = 0.
        """
        if embeds.ndim != 2 or labels.shape != embeds.shape[:1] or not len(labels):
            raise ValueError(
                "Parametric adapts to embeds (M, D) and labels (M,) of M >= 1 validation images, "
                f"got {tuple(embeds.shape)} and {tuple(labels.shape)}"
            )
        # On the CPU, whose sums are the same each time: a rounding would be a reward.
        latest = validation_scores(embeds.detach().cpu(), labels.cpu(), self.seed)
        scores = torch.tensor([latest], dtype=torch.float64)
        self._scores = torch.cat([self._scores, scores])[-max(WINDOWS) :]
        reward = 0.0
        if self._adaptations:
            goal = self._scores[-2:, :2].sum(dim=1)  # recall@1 + NMI, before and now
            reward = float(torch.sign(goal[1] - goal[0]))
            self._policy.learn(reward)
        factors, entropy = self._policy.act(self._state())
        self.probabilities.copy_(normalised(self.probabilities.cpu() * factors))
        self._adaptations += 1
        return {
            "reward": reward,
            **dict(zip(SCORES, latest, strict=True)),
            "entropy": entropy,
            "mean_distance": float(self.probabilities.cpu() @ self.centres()),
        }

    def centres(self) -> Tensor:
        """Return the middle of each bin, a distance, (K,)."""
        return self.lower + (torch.arange(self.bins) + 0.5) * (self.upper - self.lower) / self.bins

    def _state(self) -> Tensor:
        recent = self._scores[-RECENT:]
        missing = recent[:1].expand(RECENT - len(recent), -1)
        averages = [self._scores[-window:].mean(dim=0) for window in WINDOWS]
        p = self.probabilities.cpu() * self.bins
        progress = torch.tensor([self._adaptations / (self._adaptations + 100)])
        return torch.cat([missing.flatten(), recent.flatten(), *averages, p, progress]).float()

    def get_extra_state(self) -> Any:
        return {
            "generator": super().get_extra_state(),
            "policy": self._policy.state_dict(),
            "scores": self._scores,
            "adaptations": self._adaptations,
        }

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state["generator"])
        self._policy.load_state_dict(state["policy"])
        self._scores = state["scores"].cpu()
        self._adaptations = state["adaptations"]


class Decision(NamedTuple):
    """One choice of the policy and its reward."""

    state: Tensor  # (S,)
    actions: Tensor  # (K,) int64, indices into FACTORS
    log_probs: Tensor  # (K,) of the actions when they were drawn
    reward: float


class Policy:
    """π_θ(a | s): for each bin the probabilities of the three actions, and how they are learned.

        max_θ mean_{t, k} min(ρ A_t, clip(ρ, 1 - ε, 1 + ε) A_t),  A_t = r_t - mean r
        ρ = π_θ(a_tk | s_t) / (the same when a_tk was drawn)

    with one step of Adam per reward on the last ``memory`` decisions. On the CPU, and not a module,
    so that its parameters are not those of the criterion.
    """

    def __init__(self, inputs: int, bins: int, lr: float, seed: int, memory: int = 32) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        sizes = (inputs, HIDDEN, HIDDEN, len(FACTORS) * bins)
        # without a draw from the global generator
        hidden, middle, last = (nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(sizes))
        for layer in (hidden, middle):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=self.generator)
            nn.init.zeros_(layer.bias)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # all actions alike at first
        self.network = nn.Sequential(
            hidden, nn.ReLU(), middle, nn.ReLU(), last, nn.Unflatten(1, (bins, len(FACTORS)))
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)
        self.decisions: deque[Decision] = deque(maxlen=memory)  # the last one has no reward yet

    @torch.no_grad()
    def act(self, state: Tensor) -> tuple[Tensor, float]:
        """Return factors (K,) for the bins in a state (S,), and the mean entropy of the choice."""
        log_probs = self.network(state[None])[0].log_softmax(dim=1)  # (K, 3)
        actions = torch.multinomial(log_probs.exp(), 1, generator=self.generator)  # (K, 1)
        drawn = log_probs.gather(1, actions).squeeze(1)
        self.decisions.append(Decision(state, actions.squeeze(1), drawn, 0.0))
        entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
        return torch.tensor(FACTORS)[actions.squeeze(1)], float(entropy)

    @torch.enable_grad()
    def learn(self, reward: float) -> None:
        """Reward the last decision, and take one step on all remembered ones."""
        self.decisions.append(self.decisions.pop()._replace(reward=reward))
        states, actions, drawn, rewards = zip(*self.decisions, strict=True)
        r = torch.tensor(rewards)[:, None]
        advantage = r - r.mean()  # (N, 1)
        log_probs = self.network(torch.stack(states)).log_softmax(dim=2)  # (N, K, 3)
        log_probs = log_probs.gather(2, torch.stack(actions)[:, :, None]).squeeze(2)
        ratio = (log_probs - torch.stack(drawn)).exp()  # (N, K)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        self.optimizer.zero_grad()
        (-gain.mean()).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "decisions": [tuple(decision) for decision in self.decisions],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        # A copy, since Adam would update the tensors of the state in place.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"].cpu())
        self.decisions.clear()
        self.decisions.extend(Decision(*decision) for decision in state["decisions"])


def normalised(p: Tensor) -> Tensor:
    """Return the distribution in proportion to ``p``, with no value far below ``FLOOR``."""
    p = (p / p.sum().clamp(min=FLOOR)).clamp(min=FLOOR)
    return p / p.sum()


def validation_scores(embeds: Tensor, labels: Tensor, seed: int) -> list[float]:
    """Return recall@1, NMI and the mean distances within and between classes, of unit rows."""
    embeds = F.normalize(embeds.float().nan_to_num(nan=0, posinf=0, neginf=0), dim=1)
    same, different = pair_masks(labels)
    distances = pairwise_distances(embeds, embeds)  # (M, M)
    intra = (distances * same).sum() / same.sum().clamp(min=1)
    inter = (distances * different).sum() / different.sum().clamp(min=1)
    nearest = distances.fill_diagonal_(torch.inf).argmin(dim=1)
    queries = same.any(dim=1)  # not those alone in their class
    hits = queries & (labels[nearest] == labels)
    recall = hits.sum().double() / queries.sum().clamp(min=1)
    classes = labels.unique(return_inverse=True)[1]
    agreement = nmi(kmeans(embeds, int(classes.max()) + 1, seed), classes)
    return [score.item() for score in (recall, agreement, intra, inter)]


def kmeans(embeds: Tensor, k: int, seed: int, steps: int = 10) -> Tensor:
    """Return the (M,) clusters of spherical k-means, started from k of the rows (M, D)."""
    starts = torch.randperm(len(embeds), generator=torch.Generator().manual_seed(seed))[:k]
    centres = embeds[starts]  # (k, D)
    clusters = (embeds @ centres.T).argmax(dim=1)
    for _ in range(steps):
        sums = torch.zeros_like(centres).index_add_(0, clusters, embeds)
        moved = sums.square().sum(dim=1, keepdim=True) > 0  # an empty cluster stays where it was
        centres = torch.where(moved, F.normalize(sums, dim=1), centres)
        clusters = (embeds @ centres.T).argmax(dim=1)
    return clusters


def nmi(a: Tensor, b: Tensor) -> Tensor:
    """Return the mutual information of two labellings (M,) over the mean of their entropies."""
    width = int(b.max()) + 1
    joint = torch.bincount(a * width + b, minlength=(int(a.max()) + 1) * width)
    joint = joint.view(-1, width).double() / len(a)
    marginals = joint.sum(dim=1), joint.sum(dim=0)
    h_a, h_b, h_ab = (torch.special.entr(p).sum() for p in (*marginals, joint))
    return 2 * (h_a + h_b - h_ab) / (h_a + h_b).clamp(min=torch.finfo(joint.dtype).eps)
