"""Compare a device with the CPU: losses, gradients, mined triplets, embeddings.

``tests.benchmarks.device`` prints the results. Both compute in single precision from the same
numbers, so they differ only by the order of additions. Where an objective draws at random, the CPU
replays the draws of the device, after the classes of its triplets have been checked.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import architectures
import batchminer
import criteria
from tests.benchmarks.step import guidance
from tests.criteria.caption_losses import Hashes, Letters
from utilities.device import DTYPES, autocast
from utilities.registry import hyperparameters
from utilities.structures import Batch, Embedding, Triplets

ROOM = 256  # rounding errors of a similarity that a result may be off; scales multiply them
CANCELS = 1e-2  # share of the largest gradient below which another may be rounding alone
ANY_CLASS = ("intra_random", "rho_distance", "random_distance")  # may choose wrong classes
LEAST = {"fp32": 0.999, "bf16": 0.97, "fp16": 0.999}  # cosines; a GPU convolves fp32 in TF32
FEATURE_DIM, SIDE = 256, 4  # of features, and of the pictures that a momentum encoder reads
HEADS = {  # smaller than published, of which there are gigabytes
    "hidden_dim": 256, "proj_dim": 128, "pred_dim": 64, "n_prototypes": 300, "queue_size": 512,
    "width": 64, "layers": 2, "heads": 2, "tokens": 16,
}  # fmt: skip
CAPTIONS = ("fox", "redcar", "sea", "a", "mountain", "cats", "treehouse", "blue")


class Seen(NamedTuple):
    """Loss, gradients and random draws of an objective, on the CPU."""

    loss: Tensor
    gradients: list[Tensor]
    draws: list[tuple[Tensor, ...]]  # of its miner, and others


class Features(nn.Module):
    """Embedder of pictures (B, 3, 4, 4), for objectives that keep a slow copy of it."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(3 * SIDE * SIDE, FEATURE_DIM)
        self.embedding = nn.Linear(FEATURE_DIM, embed_dim)

    def forward(self, images: Tensor) -> Embedding:
        features = self.backbone(images.flatten(1))
        return Embedding(self.embedding(features), features, features[:, :, None, None])


class Given(nn.Module):
    """Embedder that returns given embeddings, a view at a time."""

    def __init__(self, views: list[Embedding]) -> None:
        super().__init__()
        self.views = iter(views)

    def forward(self, _: Tensor) -> Embedding:
        return next(self.views)


def tolerance(args: argparse.Namespace) -> float:
    """Return the largest difference allowed, as a share of the largest number."""
    return ROOM * torch.finfo(torch.float32).eps * math.sqrt(max(args.embed_dim, FEATURE_DIM))


def see(
    args: argparse.Namespace,
    device: torch.device,
    draws: Sequence[tuple[Tensor, ...]] | None = None,
) -> Seen:
    """Compute an objective and its guidance by words, and their gradients.

    Args:
        args: flags of main.py: --loss, --batch_mining, --bs, --embed_dim and hyperparameters.
        draws: random draws to replay; None draws anew.
    """
    torch.manual_seed(0)  # for class vectors and heads
    n_classes = -(-args.bs // args.samples_per_class)
    miner = batchminer.build(args)
    criterion = criteria.build(
        args,
        n_classes=n_classes,
        embed_dim=args.embed_dim,
        feature_dim=FEATURE_DIM,
        miner=miner,
        embedder=Features(args.embed_dim),
        n_steps=1000,
        tokenizer=Letters,
        encoder=Hashes,
    ).to(device)
    labels = torch.arange(args.bs) // args.samples_per_class
    views = [leaves(labels, args.embed_dim, device) for _ in range(criterion.n_views)]
    pictures = tuple(torch.randn(args.bs, 3, SIDE, SIDE).to(device) for _ in views)
    captions = tuple(CAPTIONS[row % len(CAPTIONS)] for row in range(args.bs))
    batch = Batch(pictures, labels.to(device), torch.arange(args.bs).to(device), captions)

    seen: list[tuple[Tensor, ...]] = []
    again = iter(draws or ())

    def drawn(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = found if draws is None else next(again)
        seen.append(tuple(part.cpu() for part in found))
        return found

    miner.register_forward_hook(lambda _, given, found: drawn(found))
    words, distill = guidance(n_classes), criteria.build_distillation(args)
    objective = criteria.Objective(Given(views), criterion, words, distill, 7.5)
    second = criteria.Quadruplet._second_negatives
    with mock.patch.object(
        criteria.Quadruplet, "_second_negatives", lambda *given: drawn(second(*given))
    ):
        loss = objective(batch).loss
    inputs = [tensor for view in views for tensor in view]
    inputs += [parameter for parameter in criterion.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    there = [gradient.cpu() for gradient in gradients if gradient is not None]
    return Seen(loss.detach().cpu(), there, seen)


def leaves(labels: Tensor, dim: int, device: torch.device) -> Embedding:
    """Draw unit embeddings around a centre for each class, and features."""
    centres = F.normalize(torch.randn(int(labels.max()) + 1, dim), dim=1)
    noise = F.normalize(torch.randn(len(labels), dim), dim=1)
    embeds = F.normalize(centres[labels] + 1.5 * noise, dim=1)
    feature_map = torch.randn(len(labels), FEATURE_DIM, 2, 2)
    parts = (embeds, feature_map.mean(dim=(2, 3)), feature_map)
    return Embedding(*(part.to(device).requires_grad_() for part in parts))


def off(args: argparse.Namespace, device: torch.device) -> float:
    """Return the largest difference between device and CPU, as a share of the largest number.

    Each gradient is scaled by its own largest entry, or by a hundredth of the largest of all: the
    gradient of a bias before a BatchNorm is rounding alone.

    Raises:
        ValueError: a triplet has the wrong classes, or there are no triplets.
    """
    there = see(args, device)
    for draw in there.draws:
        if len(draw) == len(Triplets._fields):
            check_classes(Triplets(*draw), args)
    here = see(args, torch.device("cpu"), there.draws)
    largest = max(float(gradient.abs().max()) for gradient in here.gradients)
    shares = [abs(float(there.loss - here.loss)) / max(1, abs(float(here.loss)))]
    for got, wanted in zip(there.gradients, here.gradients, strict=True):
        scale = max(float(wanted.abs().max()), CANCELS * largest)
        shares.append(float((got - wanted).abs().max()) / scale)
    return math.inf if any(map(math.isnan, shares)) else max(shares)


def check_classes(triplets: Triplets, args: argparse.Namespace) -> None:
    """Raise ValueError if triplets have the wrong classes or there are none."""
    anchors, positives, negatives = (part // args.samples_per_class for part in triplets)
    right = (anchors == positives) & (anchors != negatives)
    if not len(anchors) or not (right.all() or args.batch_mining in ANY_CLASS):
        n_wrong = int((~right).sum())
        raise ValueError(f"{args.batch_mining}: {n_wrong} of {len(right)} triplets are wrong")


def cases(args: argparse.Namespace) -> dict[str, dict[str, argparse.Namespace]]:
    """Return the flags of every objective, and of the margin loss with every miner."""
    heads = {
        f"loss_{loss}_{name}": size
        for loss, criterion in criteria.CRITERIA.items()
        for name, size in HEADS.items()
        if name in hyperparameters(criterion.load())
    }
    plain = {**vars(args), **heads}
    return {
        "objectives": {
            loss: argparse.Namespace(**{**plain, "loss": loss}) for loss in criteria.CRITERIA
        },
        "miners": {
            miner: argparse.Namespace(**{**plain, "loss": "margin", "batch_mining": miner})
            for miner in batchminer.MINERS
        },
    }


@torch.no_grad()
def cosines(args: argparse.Namespace, device: torch.device, n_images: int) -> dict[str, float]:
    """Return, by precision, the least cosine of an embedding to that of the CPU in fp32.

    The backbone has random weights and sees noise, normalised by the batch. Embeddings of noise are
    nearly equal, so their mean is subtracted.
    """
    torch.manual_seed(0)
    embedder = architectures.build(args)
    embedder.frozen, embedder.normalize = False, False
    embedder.train()
    for module in embedder.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            module.weight.uniform_(0.2, 0.4)  # timm begins with residual branches of 0
    images = torch.randn(n_images, 3, args.image_size, args.image_size)
    wanted = embedder(images).embeds
    embedder.to(device)
    found = {}
    for precision in DTYPES:
        with autocast(device, precision):
            got = embedder(images.to(device)).embeds.cpu()
        mean = wanted.mean(dim=0)
        found[precision] = float(F.cosine_similarity(got - mean, wanted - mean, dim=1).min())
    return found
