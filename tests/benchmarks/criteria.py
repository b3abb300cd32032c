"""How long each criterion takes, forward and backward, beside pytorch-metric-learning.

    python -m tests.benchmarks.criteria                     # losses, miners, cross-batch memory
    python -m tests.benchmarks.criteria --only margin circle --sizes 112x128 --rounds 15
    python -m tests.benchmarks.criteria --small --sizes 8x16 --rounds 1     # tries all in seconds

Every registered criterion and miner is timed at its default hyperparameters, from a leaf embedding
to its gradient and those of the criterion's own parameters. A criterion that reads pooled features,
several views or captions starts from features of each view instead, so its time includes its heads
and text tower, but no backbone: the momentum encoder of BYOL is an identity. Queues are full, as in
the middle of a run. The same loss of pytorch-metric-learning gets the same heads.

The floor, in the same units, is the cheapest loss that looks at all pairs:
``(e @ e.T).logsumexp(1).mean()``. Measurements take turns (ours, theirs, floor, ours, ...), so that
a busy moment of the machine hits all alike; a time is the median over rounds of the median within a
round.
"""

import argparse
import copy
import inspect
import itertools
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any, NamedTuple

import pytorch_metric_learning.distances as pml_distances
import pytorch_metric_learning.losses as pml
import pytorch_metric_learning.miners as pml_miners
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchminer import MINERS, Miner
from criteria import CLIP, CRITERIA, Criterion, SimCLR, SwAV, VICReg
from criteria.base import PairCriterion
from criteria.self_supervised import Queue
from criteria.vicreg import EPS
from criteria.xbm import CrossBatchMemory
from tests.benchmarks.machine import processor
from utilities.registry import hyperparameters
from utilities.structures import Batch, Embedding

SAMPLES_PER_CLASS = 2
FEATURE_DIM = 2048  # of a ResNet50, for criteria that read the features under the embedding
FEATURE_MAP = 7  # pixels, side of its feature map at 224 px
MEMORY = 4096  # embeddings that the cross-batch memory holds
CAPTION = 16  # tokens of each caption, marks included; a RedCaps caption has about as many
VOCABULARY = 30522  # of MiniLM's tokenizer
SLOT = 0.01  # seconds of a contestant's turn; short, so that turns alternate often
PATIENCE = 2.0  # seconds; whatever takes longer runs in the first round alone

REMEMBERED = ("contrastive", "multisimilarity")  # losses shown with a memory
SMALL = {  # hyperparameters of --small: heads, queues and text towers
    "hidden_dim": 8, "proj_dim": 8, "pred_dim": 8, "n_prototypes": 8, "queue_size": 16,
    "width": 8, "heads": 2, "layers": 1,
}  # fmt: skip

Loss = Callable[[Tensor, Tensor], Tensor]  # (embeds, labels) -> scalar
Objective = Callable[[Sequence[Embedding], Batch], Tensor]  # as Criterion.compute
Step = Callable[[], Any]  # one forward and backward


class Size(NamedTuple):
    batch: int
    dim: int
    n_classes: int
    small: bool = False

    @property
    def feature_dim(self) -> int:
        return 16 if self.small else FEATURE_DIM

    @property
    def memory(self) -> int:
        return 16 if self.small else MEMORY


class Times(NamedTuple):
    """Seconds of one forward and backward."""

    name: str
    ours: float
    floor: float
    theirs: float | None


# --------------------------------------------------------------------------------------------------
# Ours: from the registries
# --------------------------------------------------------------------------------------------------
def build_criterion(name: str, size: Size, miner: Miner) -> Criterion:
    """A registered criterion with default hyperparameters and the collaborators that it names."""
    arguments = {
        "n_classes": size.n_classes,
        "embed_dim": size.dim,
        "feature_dim": size.feature_dim,
        "miner": miner,
        "make": lambda child, embed_dim: build_criterion(
            child, size._replace(dim=embed_dim), miner
        ),
        "embedder": Features(),
        "n_steps": 1000,
        "tokenizer": lambda length: Ids(),
        "encoder": None,  # the default text tower needs none
        **(SMALL if size.small else {}),
    }
    asked = inspect.signature(CRITERIA[name].load()).parameters
    criterion = CRITERIA[name].load()(**{key: arguments[key] for key in asked if key in arguments})
    return in_mid_run(criterion)


class Features(nn.Module):
    """Stands for an embedder: takes features (B, F) for images and returns them."""

    def forward(self, images: Tensor) -> Embedding:
        return Embedding(images, images, images[:, :, None, None])


class Ids:
    """Stands for a tokenizer: ``CAPTION`` random ids of each text."""

    vocabulary = VOCABULARY

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = torch.randint(VOCABULARY, (len(texts), CAPTION))
        return ids, torch.ones_like(ids, dtype=torch.bool)


def in_mid_run(criterion: Criterion) -> Criterion:
    """Fill the queues, and let begin what begins after some steps."""
    for module in criterion.modules():
        if isinstance(module, Queue):
            module.push(F.normalize(torch.randn_like(module.rows), dim=-1))
        if isinstance(module, SwAV):
            module.steps = max(module.freeze_steps, module.queue_start)
    return criterion


# --------------------------------------------------------------------------------------------------
# Theirs: the same loss in pytorch-metric-learning, with the hyperparameters that set the work
# --------------------------------------------------------------------------------------------------
PML_LOSSES: dict[str, Callable[[Size], Any]] = {
    "angular": lambda size: pml.MultipleLosses([pml.NPairsLoss(), pml.AngularLoss(alpha=45)]),
    "arcface": lambda size: pml.ArcFaceLoss(size.n_classes, size.dim),
    "circle": lambda size: pml.CircleLoss(),
    "contrastive": lambda size: pml.ContrastiveLoss(),
    "cosface": lambda size: pml.CosFaceLoss(size.n_classes, size.dim),
    "histogram": lambda size: pml.HistogramLoss(n_bins=default("histogram", "nbins") - 1),
    "lifted": lambda size: pml.GeneralizedLiftedStructureLoss(),
    "margin": lambda size: pml.MarginLoss(learn_beta=True, num_classes=size.n_classes),
    "multisimilarity": lambda size: pml.MultiSimilarityLoss(),
    "npair": lambda size: pml.NPairsLoss(),
    "oproxy": lambda size: pml.ProxyAnchorLoss(size.n_classes, size.dim),
    "proxynca": lambda size: pml.ProxyNCALoss(size.n_classes, size.dim),
    "proxynca_pp": lambda size: pml.ProxyNCALoss(size.n_classes, size.dim),
    "smooth_ap": lambda size: pml.SmoothAPLoss(),
    "snr": lambda size: pml.TripletMarginLoss(distance=pml_distances.SNRDistance()),
    "softmax": lambda size: pml.NormalizedSoftmaxLoss(size.n_classes, size.dim),
    "softtriplet": lambda size: pml.SoftTripleLoss(
        size.n_classes, size.dim, centers_per_class=default("softtriplet", "n_centroids")
    ),
    "subcenter_arcface": lambda size: pml.SubCenterArcFaceLoss(
        num_classes=size.n_classes,
        embedding_size=size.dim,
        sub_centers=default("subcenter_arcface", "n_subcenters"),
    ),
    "supcon": lambda size: pml.SupConLoss(),
    "triplet": lambda size: pml.TripletMarginLoss(),
}
PML_MINERS: dict[str, Callable[[], Any]] = {
    "distance": pml_miners.DistanceWeightedMiner,
    "hard": pml_miners.BatchHardMiner,
    "multisimilarity": pml_miners.MultiSimilarityMiner,
    "semihard": lambda: pml_miners.TripletMarginMiner(type_of_triplets="semihard"),
}


def default(name: str, hyperparameter: str) -> Any:
    """The default of a hyperparameter of our criterion, for theirs to work as much."""
    return hyperparameters(CRITERIA[name].load())[hyperparameter]


def pml_loss(name: str, size: Size, miner: str) -> tuple[Loss, nn.Module] | None:
    """Their loss behind their miner, where they have both, and the module of its parameters."""
    if name not in PML_LOSSES:
        return None
    loss = PML_LOSSES[name](size)
    mined = "miner" in inspect.signature(CRITERIA[name].load()).parameters
    if name == "multisimilarity":  # its mining is part of the loss
        mined, miner = True, "multisimilarity"
    if not mined:
        return loss, loss
    if miner == "random" and name in ("margin", "triplet"):  # drawn within the loss
        loss.triplets_per_anchor = 1
        return loss, loss
    if miner not in PML_MINERS:
        return None
    mine = PML_MINERS[miner]()
    return lambda embeds, labels: loss(embeds, labels, mine(embeds, labels)), loss


def pml_objective(ours: Criterion) -> tuple[Objective, nn.Module] | None:
    """Their loss behind a copy of our heads, where they have it, and the copy.

    SupConLoss is NT-Xent where an image has one positive; their NTXentLoss builds a matrix of all
    positives by all negatives, 4 GB for 512 images.
    """
    ours = copy.deepcopy(ours)
    if isinstance(ours, SimCLR):
        contrast = pml.SelfSupervisedLoss(pml.SupConLoss(ours.temperature))
        return lambda views, _: contrast(*(ours.projector(v.features) for v in views)), ours
    if isinstance(ours, VICReg):
        weights = (ours.invariance_weight, ours.variance_weight, ours.covariance_weight)
        loss = pml.VICRegLoss(*weights, eps=EPS)

        def vicreg(views: Sequence[Embedding], _: Batch) -> Tensor:
            first, second = (ours.projector(view.features) for view in views)
            return loss(first, ref_emb=second)

        return vicreg, ours
    if isinstance(ours, CLIP):
        one_way = pml.SupConLoss()

        def clip(views: Sequence[Embedding], batch: Batch) -> Tensor:
            images, texts = ours.project(views, batch)
            one_way.temperature = (-ours.log_scale).exp()
            rows, same = batch.rows, batch.rows.clone()  # with the same tensor, i and i are no pair
            of_images = one_way(images, rows, ref_emb=texts, ref_labels=same)
            of_texts = one_way(texts, rows, ref_emb=images, ref_labels=same)
            return (of_images + of_texts) / 2

        return clip, ours
    return None


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------
class Bench:
    """Batches of one size on one device, and the clock.

    The images of a class lie around a centre of their own, at a cosine of about 0.5 to each other,
    so that miners and hinges find some pairs easy and some hard.
    """

    def __init__(self, size: Size, device: torch.device, rounds: int) -> None:
        torch.manual_seed(0)
        self.size = size
        self.device = device
        self.rounds = rounds
        self.centres = F.normalize(torch.randn(size.n_classes, size.dim), dim=1)
        self.embeds, self.labels = self.draw_batch()

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        """Leaf embeddings (B, D) and labels (B,) of random classes."""
        classes = torch.randperm(self.size.n_classes)[: -(-self.size.batch // SAMPLES_PER_CLASS)]
        labels = classes.repeat_interleave(SAMPLES_PER_CLASS)[: self.size.batch]
        noise = F.normalize(torch.randn(self.size.batch, self.size.dim), dim=1)
        embeds = F.normalize(self.centres[labels] + noise, dim=1)
        return embeds.to(self.device).requires_grad_(), labels.to(self.device)

    def floor(self) -> Step:
        def step() -> None:
            loss = (self.embeds @ self.embeds.T).logsumexp(1).mean()
            torch.autograd.grad(loss, self.embeds)

        return step

    def step(self, loss: Loss, module: nn.Module, *leaves: Tensor) -> Step:
        """Forward and backward of ``loss``, to the embeddings, ``leaves`` and the parameters."""
        module.to(self.device)
        inputs = [self.embeds, *leaves, *(p for p in module.parameters() if p.requires_grad)]

        def step() -> None:
            torch.autograd.grad(loss(self.embeds, self.labels), inputs, allow_unused=True)

        return step

    def steps_of_many_batches(self, module: nn.Module) -> Step:
        """As ``step``, but each time with the next of as many batches as fill a memory."""
        module.to(self.device)
        batches = [self.draw_batch() for _ in range(-(-self.size.memory // self.size.batch))]
        for embeds, labels in batches:
            module(embeds, labels)
        turns = itertools.cycle(batches)

        def step() -> None:
            embeds, labels = next(turns)
            torch.autograd.grad(module(embeds, labels), embeds)

        return step

    def steps(self, criterion: Criterion, miner: str, name: str) -> tuple[Step, Step | None]:
        """A criterion's step, and theirs."""
        if type(criterion).compute is Criterion.compute:
            theirs = pml_loss(name, self.size, miner)
            return self.step(criterion, criterion), self.step(*theirs) if theirs else None
        views, batch, leaves = self.embedded(criterion)

        def step_of(objective: Objective, module: nn.Module) -> Step:
            return self.step(lambda embeds, labels: objective(views, batch), module, *leaves)

        found = pml_objective(criterion)
        return step_of(criterion.compute, criterion), step_of(*found) if found else None

    def embedded(self, criterion: Criterion) -> tuple[list[Embedding], Batch, list[Tensor]]:
        """All that an embedder returns of each view, the batch, and what gradients flow to."""
        n, rows = len(self.embeds), torch.arange(len(self.embeds), device=self.device)
        side = FEATURE_MAP if criterion.reads == "embeds" else 1
        views: list[Embedding] = []
        leaves: list[Tensor] = []
        for _ in range(criterion.n_views):
            feature_map = torch.randn(n, self.size.feature_dim, side, side, device=self.device)
            features = feature_map.mean(dim=(2, 3)).requires_grad_()
            views.append(Embedding(self.embeds, features, feature_map.requires_grad_()))
            leaves += views[-1][1:]
        images = tuple(view.features.detach() for view in views)  # as Features reads them
        return views, Batch(images, self.labels, rows, ("a caption",) * n), leaves

    def compare(self, name: str, ours: Step, theirs: Step | None) -> Times:
        steps = {"ours": ours, "floor": self.floor()}
        if theirs:
            steps["theirs"] = theirs
        times = self.interleaved(steps)
        return Times(name, times["ours"], times["floor"], times.get("theirs"))

    def interleaved(self, steps: dict[str, Step]) -> dict[str, float]:
        """Seconds of each step: they take turns, and within a turn repeat until SLOT is spent."""
        first = {name: self.seconds(step) for name, step in steps.items()}
        slow = {name for name, seconds in first.items() if seconds > PATIENCE}
        repeats = {}
        for name in steps.keys() - slow:
            estimate = min(self.seconds(steps[name]) for _ in range(3))  # also warms up
            repeats[name] = max(1, min(100, int(SLOT / estimate)))
        medians: dict[str, list[float]] = {name: [first[name]] for name in slow}
        for _ in range(self.rounds):
            for name, step in steps.items():
                if name not in slow:
                    times = [self.seconds(step) for _ in range(repeats[name])]
                    medians.setdefault(name, []).append(median(times))
        return {name: median(values) for name, values in medians.items()}

    def seconds(self, step: Step) -> float:
        self.synchronize()
        start = time.perf_counter()
        step()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def resnet50_step(self, image_size: int = 224) -> float:
        """Seconds of a training step of ResNet50 in bfloat16: forward, backward and Adam."""
        import timm

        layout = torch.channels_last
        model = timm.create_model("resnet50", pretrained=False, num_classes=self.size.dim)
        model = model.to(self.device).to(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        images = torch.randn(self.size.batch, 3, image_size, image_size, device=self.device)
        images = images.to(memory_format=layout)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                embeds = model(images)
            embeds.float().square().mean().backward()
            optimizer.step()

        return self.interleaved({"resnet50": step})["resnet50"]


def bench_loss(bench: Bench, name: str, miner: str, row: str) -> Times:
    """A criterion with a miner, if it takes one, and theirs."""
    criterion = build_criterion(name, bench.size, MINERS[miner].load()())
    return bench.compare(row, *bench.steps(criterion, miner, name))


def bench_losses(bench: Bench, names: Iterable[str]) -> list[Times]:
    """Each criterion, with distance mining where it takes a miner."""
    return [bench_loss(bench, name, "distance", name) for name in names]


def bench_miners(bench: Bench, names: Iterable[str]) -> list[Times]:
    """Each miner under the margin loss."""
    return [bench_loss(bench, "margin", name, f"margin + {name}") for name in names]


def bench_memory(bench: Bench, names: Iterable[str]) -> list[Times]:
    """Criteria that also compare the batch with a full cross-batch memory."""
    rows = []
    for name in names:
        criterion = build_criterion(name, bench.size, MINERS["distance"].load()())
        assert isinstance(criterion, PairCriterion)
        ours = CrossBatchMemory(criterion, bench.size.dim, size=bench.size.memory, start=0)
        theirs = pml.CrossBatchMemory(
            PML_LOSSES[name](bench.size),
            bench.size.dim,
            memory_size=bench.size.memory,
            miner=PML_MINERS["multisimilarity" if name == "multisimilarity" else "distance"](),
        )
        steps = map(bench.steps_of_many_batches, (ours, theirs))
        rows.append(bench.compare(f"xbm + {name}", *steps))
    return rows


# --------------------------------------------------------------------------------------------------
# Printing
# --------------------------------------------------------------------------------------------------
def table(title: str, rows: Sequence[Times], resnet50: float | None) -> str:
    """An aligned Markdown table."""
    head = [title, "ours ms", "/ floor", "PML ms", "PML / ours"]
    if resnet50:
        head.append("of a ResNet50 step")
    cells = [head]
    for row in rows:
        floors = row.ours / row.floor
        faster = row.theirs / row.ours if row.theirs else None
        cells.append(
            [
                row.name,
                f"{row.ours * 1e3:.2f}",
                f"{floors:.1f}",
                f"{row.theirs * 1e3:.2f}" if row.theirs else "-",
                f"{faster:.1f}" if faster else "-",
            ]
        )
        if resnet50:
            cells[-1].append(f"{row.ours / resnet50:.2%}")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    ]
    rule = [
        "-" * (width + 1) + ":" if column else "-" * (width + 2)
        for column, width in enumerate(widths)
    ]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def machine(device: torch.device) -> str:
    """Device, threads and versions, on one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    theirs = f"pytorch-metric-learning (PML) {version('pytorch-metric-learning')}"
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}; {versions}, {theirs}"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.criteria")
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="losses, miners, or xbm")
    add("--sizes", nargs="+", default=["112x128", "512x512"], metavar="BxD", help="batch x D")
    add("--classes", type=int, default=100, help="class vectors; more where a batch holds more")
    add("--small", action="store_true", help="features, heads, queues and memory of a few rows")
    add("--rounds", type=int, default=20, help="turns of each contestant")
    add("--threads", type=int, default=1, help="of torch")
    add("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(argv)
    unknown = set(args.only) - {*CRITERIA, *MINERS, "xbm"}
    if unknown:
        known = ", ".join(sorted({*CRITERIA, *MINERS, "xbm"}))
        parser.error(f"--only {' '.join(sorted(unknown))} is unknown; known: {known}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="pytorch_metric_learning")
    device = torch.device(args.device)
    print(machine(device))

    def chosen(names: Iterable[str]) -> list[str]:
        return [name for name in sorted(names) if not args.only or name in args.only]

    for text in args.sizes:
        batch, dim = map(int, text.split("x"))
        n_classes = max(args.classes, -(-batch // SAMPLES_PER_CLASS))
        size = Size(batch, dim, n_classes, args.small)
        bench = Bench(size, device, args.rounds)
        print(f"\n(B, D) = ({batch}, {dim}), {SAMPLES_PER_CLASS} images per class, ", end="")
        print(f"{size.n_classes} classes")
        resnet50 = bench.resnet50_step() if device.type == "cuda" else None
        if resnet50:
            print(f"ResNet50 at 224 px in bfloat16: {resnet50 * 1e3:.1f} ms a step")
        for title, rows in (
            ("loss", bench_losses(bench, chosen(CRITERIA))),
            ("miner", bench_miners(bench, chosen(MINERS))),
            ("memory", bench_memory(bench, REMEMBERED if chosen(["xbm"]) else ())),
        ):
            if rows:
                print(f"\n{table(title, rows, resnet50)}")


if __name__ == "__main__":
    main()
