"""How long each criterion takes, forward and backward, beside pytorch-metric-learning.

    python -m tests.benchmarks.criteria                     # losses, miners, cross-batch memory
    python -m tests.benchmarks.criteria --only margin circle --sizes 112x128 --rounds 15

Every registered criterion and miner is timed at its default hyperparameters, from a leaf embedding
to its gradient and those of the criterion's own parameters. The floor, in the same units, is the
cheapest loss that looks at all pairs: ``(e @ e.T).logsumexp(1).mean()``. Measurements take turns
(ours, theirs, floor, ours, ...), so that a busy moment of the machine hits all alike; a time is the
median over rounds of the median within a round.
"""

import argparse
import inspect
import itertools
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytorch_metric_learning.distances as pml_distances
import pytorch_metric_learning.losses as pml
import pytorch_metric_learning.miners as pml_miners
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchminer import MINERS, Miner
from criteria import CRITERIA, Criterion
from criteria.base import PairCriterion
from criteria.xbm import CrossBatchMemory
from utilities.registry import hyperparameters
from utilities.structures import Batch, Embedding

SAMPLES_PER_CLASS = 2
FEATURE_DIM = 2048  # of a ResNet50, for criteria that read the features under the embedding
FEATURE_MAP = 7  # pixels, side of its feature map at 224 px
MEMORY = 4096  # embeddings that the cross-batch memory holds
SLOT = 0.01  # seconds of a contestant's turn; short, so that turns alternate often
PATIENCE = 2.0  # seconds; whatever takes longer runs in the first round alone

REMEMBERED = ("contrastive", "multisimilarity")  # losses shown with a memory
TRIPLET_LOSSES = ("contrastive", "margin", "triplet")  # with distance mining: floor and PML targets

Loss = Callable[[Tensor, Tensor], Tensor]  # (embeds, labels) -> scalar
Step = Callable[[], Any]  # one forward and backward


class Size(NamedTuple):
    batch: int
    dim: int
    n_classes: int


class Target(NamedTuple):
    """At most ``floors`` times the floor, and at least ``faster`` times as fast as theirs."""

    floors: float | None = None
    faster: float | None = None

    def __str__(self) -> str:
        parts = [f"<= {self.floors:g} floors"] if self.floors else []
        parts += [f">= {self.faster:g}x PML"] if self.faster else []
        return ", ".join(parts) or "-"

    def met(self, floors: float, faster: float | None) -> str:
        checks = [floors <= self.floors] if self.floors else []
        checks += [faster >= self.faster] if self.faster and faster else []
        return ("yes" if all(checks) else "no") if checks else "-"


class Times(NamedTuple):
    """Seconds of one forward and backward."""

    name: str
    target: Target
    ours: float
    floor: float
    theirs: float | None


# --------------------------------------------------------------------------------------------------
# Ours: from the registries
# --------------------------------------------------------------------------------------------------
def build_criterion(name: str, size: Size, miner: Miner) -> Criterion:
    """A registered criterion with default hyperparameters and the collaborators that it names."""
    collaborators = {
        "n_classes": size.n_classes,
        "embed_dim": size.dim,
        "feature_dim": FEATURE_DIM,
        "miner": miner,
        "make": lambda child, embed_dim: build_criterion(
            child, size._replace(dim=embed_dim), miner
        ),
    }
    asked = inspect.signature(CRITERIA[name]).parameters
    return CRITERIA[name](**{key: value for key, value in collaborators.items() if key in asked})


def target_of(name: str) -> Target:
    """By what the constructor asks for: a miner, class vectors, or neither."""
    asked = inspect.signature(CRITERIA[name]).parameters
    if name in TRIPLET_LOSSES:
        return Target(floors=3, faster=5)
    if "miner" in asked or "make" in asked:
        return Target()
    return Target(faster=1) if "n_classes" in asked else Target(floors=2)


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
    return hyperparameters(CRITERIA[name])[hyperparameter]


def pml_loss(name: str, size: Size, miner: str) -> tuple[Loss, nn.Module] | None:
    """Their loss behind their miner, where they have both, and the module of its parameters."""
    if name not in PML_LOSSES:
        return None
    loss = PML_LOSSES[name](size)
    mined = "miner" in inspect.signature(CRITERIA[name]).parameters
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
        batches = [self.draw_batch() for _ in range(-(-MEMORY // self.size.batch))]
        for embeds, labels in batches:
            module(embeds, labels)
        turns = itertools.cycle(batches)

        def step() -> None:
            embeds, labels = next(turns)
            torch.autograd.grad(module(embeds, labels), embeds)

        return step

    def ours(self, criterion: Criterion) -> Step:
        """A criterion that reads more than the embeddings gets all that an embedder returns."""
        if type(criterion).compute is Criterion.compute:
            return self.step(criterion, criterion)
        side, n = FEATURE_MAP, len(self.embeds)
        feature_map = torch.randn(n, FEATURE_DIM, side, side, device=self.device).requires_grad_()
        features = feature_map.detach().mean(dim=(2, 3)).requires_grad_()
        view = Embedding(self.embeds, features, feature_map)
        batch = Batch((feature_map,), self.labels, torch.arange(n, device=self.device))
        return self.step(
            lambda embeds, labels: criterion.compute([view], batch),
            criterion,
            features,
            feature_map,
        )

    def compare(self, name: str, target: Target, ours: Step, theirs: Step | None) -> Times:
        steps = {"ours": ours, "floor": self.floor()}
        if theirs:
            steps["theirs"] = theirs
        times = self.interleaved(steps)
        return Times(name, target, times["ours"], times["floor"], times.get("theirs"))

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


def bench_loss(bench: Bench, name: str, miner: str, row: str, target: Target) -> Times:
    """A criterion with a miner, if it takes one, and theirs."""
    ours = bench.ours(build_criterion(name, bench.size, MINERS[miner]()))
    theirs = pml_loss(name, bench.size, miner)
    return bench.compare(row, target, ours, bench.step(*theirs) if theirs else None)


def bench_losses(bench: Bench, names: Iterable[str]) -> list[Times]:
    """Each criterion, with distance mining where it takes a miner."""
    return [bench_loss(bench, name, "distance", name, target_of(name)) for name in names]


def bench_miners(bench: Bench, names: Iterable[str]) -> list[Times]:
    """Each miner under the margin loss."""
    targets = {"distance": target_of("margin")}
    return [
        bench_loss(bench, "margin", name, f"margin + {name}", targets.get(name, Target()))
        for name in names
    ]


def bench_memory(bench: Bench, names: Iterable[str]) -> list[Times]:
    """Criteria that also compare the batch with a full cross-batch memory."""
    rows = []
    for name in names:
        criterion = build_criterion(name, bench.size, MINERS["distance"]())
        assert isinstance(criterion, PairCriterion)
        ours = CrossBatchMemory(criterion, bench.size.dim, size=MEMORY, start=0)
        theirs = pml.CrossBatchMemory(
            PML_LOSSES[name](bench.size),
            bench.size.dim,
            memory_size=MEMORY,
            miner=PML_MINERS["multisimilarity" if name == "multisimilarity" else "distance"](),
        )
        steps = map(bench.steps_of_many_batches, (ours, theirs))
        rows.append(bench.compare(f"xbm + {name}", Target(), *steps))
    return rows


# --------------------------------------------------------------------------------------------------
# Printing
# --------------------------------------------------------------------------------------------------
def table(title: str, rows: Sequence[Times], resnet50: float | None) -> str:
    """An aligned Markdown table."""
    head = [title, "ours ms", "/ floor", "PML ms", "PML / ours", "target", "met"]
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
                str(row.target),
                row.target.met(floors, faster),
            ]
        )
        if resnet50:
            cells[-1].append(f"{row.ours / resnet50:.2%}")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = (0, 5)  # columns of words, to the left; numbers to the right
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column in text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    ]
    rule = [
        "-" * (width + 2) if column in text else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def machine(device: torch.device) -> str:
    """Device, threads and versions, on one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    theirs = f"pytorch-metric-learning (PML) {version('pytorch-metric-learning')}"
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}; {versions}, {theirs}"


def processor() -> str:
    """The model name that Linux knows, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.criteria")
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="losses, miners, or xbm")
    add("--sizes", nargs="+", default=["112x128", "512x512"], metavar="BxD", help="batch x D")
    add("--classes", type=int, default=100, help="class vectors; more where a batch holds more")
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
        size = Size(batch, dim, max(args.classes, -(-batch // SAMPLES_PER_CLASS)))
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
