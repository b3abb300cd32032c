"""Training steps as main.py takes them, in one process or on W gloo ranks, of every objective.

``python ranks.py FOLDER W ...`` takes them on W ranks, for each W in turn. Rank r writes its
results of each case to FOLDER/W.r.pt, for test_ranks.py to compare.
"""

import importlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing import start_processes

import batchminer
import criteria
from batchminer import Miner
from criteria.objective import Objective
from language.guide import LanguageGuide
from language.words import Words
from tests.criteria.caption_losses import Hashes, Letters
from tests.criteria.registered import MINERS, flags
from tests.launch import join
from utilities.distributed import data_parallel, rank, world_size
from utilities.structures import Batch, Embedding

FEATURE_DIM, DIM, N_CLASSES, N_IMAGES = 5, 6, 7, 30

# Classes of the images of each step. With two ranks or four some shares hold a single class, some
# no two images of one, and one batch nothing to compare. Classes 4 and 6 never come.
LABELS = (
    (0, 0, 3, 3, 1, 1, 5, 5),
    (0, 3, 1, 5, 0, 3, 1, 5),
    (5, 5, 5, 5, 0, 0, 3, 1),
    (2, 2, 2, 2, 2, 2, 2, 2),
)
BS = len(LABELS[0])
# Rounding grows from step to step, so that half of the digits last for less of them.
PRECISIONS = {"double": (torch.float64, len(LABELS)), "single": (torch.float32, 2)}
TEXTS = ("fox", "redcar", "sea", "a", "mountain", "cats", "treehouse", "blue", "dog", "wheel")


class Case(NamedTuple):
    """What is trained."""

    loss: str
    chosen: Mapping[str, Any] = MappingProxyType({})  # flags
    guide: str = ""  # level of the words, class or row; "": none
    proxies: str = ""  # class vectors of L_proxy, from words or free; "": none
    far_labels: bool = False  # labels that are no indices, for losses that only compare them
    warm_up: int = 0  # steps in which the backbone stays as it is
    lost: tuple[int, ...] = ()  # places of images that cannot be read, in each batch


ALONE = Case("each share alone")  # a criterion that forgets to gather


class Alone(criteria.MultiSimilarity):
    """Its loss is that of each share."""

    gathers = True


MEMORY = {"xbm_size": 12, "xbm_start": 1}
BRANCHES = {
    "loss_s2sd_w": 5.0, "loss_s2sd_feat_distill": True,
    "loss_s2sd_feat_distill_delay": 1,
}  # fmt: skip
QUEUE = {"loss_swav_freeze_steps": 1, "loss_swav_queue_start": 1, "loss_swav_queue_size": 8}
FORWARD = {"language_distill_dir": "forward", "language_temp": 0.2}

CASES = {
    **{name: Case(name) for name in criteria.CRITERIA},
    **{f"triplet, {name}": Case("triplet", {"batch_mining": name}) for name in MINERS},
    **{
        f"memory of {name}": Case(name, MEMORY)
        for name in ("multisimilarity", "smooth_ap", "lifted", "margin", "quadruplet")
    },
    "softhard quadruplet, memory": Case("quadruplet", {**MEMORY, "batch_mining": "softhard"}),
    "npair snr, memory": Case("snr", {**MEMORY, "batch_mining": "npair"}),
    "memory of fewer than a batch": Case("multisimilarity", {"xbm_size": 3, "xbm_start": 0}),
    "s2sd, distilled": Case("s2sd", BRANCHES),
    "s2sd, pooled": Case("s2sd", {**BRANCHES, "loss_s2sd_pool_aggr": True}),
    "s2sd of mined and class losses": Case(
        "s2sd", {**BRANCHES, "loss_s2sd_source": "margin", "loss_s2sd_target": "softtriplet"}
    ),
    "swav with its queue": Case("swav", QUEUE),
    "byol, fast": Case("byol", {"loss_byol_momentum": 0.5}),
    "barlowtwins of few images": Case("barlowtwins", {"loss_barlowtwins_proj_dim": 20}),
    "vicreg of few images": Case("vicreg", {"loss_vicreg_proj_dim": 20}),
    "clip, frozen": Case("clip", {"loss_clip_text": "frozen"}),
    "declip_nns, frozen": Case("declip_nns", {"loss_clip_text": "frozen"}),
    **{
        f"{loss}, words of each {level}": Case(loss, FORWARD if level == "row" else {}, level)
        for loss in ("multisimilarity", "s2sd", "simclr", "clip")
        for level in ("class", "row")
    },
    **{
        f"{loss}, {vectors} class vectors": Case(loss, proxies=vectors)
        for loss, vectors in (("multisimilarity", "words"), ("simclr", "words"), ("s2sd", "free"))
    },
    "words and class vectors of words": Case("multisimilarity", guide="class", proxies="words"),
    "class vectors, images lost": Case("margin", proxies="words", lost=(1,)),
    "memory and words": Case("margin", MEMORY, "class"),
    **{
        f"{name}, far labels": Case(name, far_labels=True)
        for name in ("multisimilarity", "quadruplet", "s2sd")
    },
    **{
        f"{name}, warm-up": Case(name, warm_up=1, guide="class")
        for name in ("margin", "simclr", "softmax")
    },
    **{
        f"{name}, images lost": Case(name, lost=(1,), guide="row")
        for name in ("margin", "simclr", "clip", "s2sd")
    },
}  # fmt: skip


class Toy(nn.Module):
    """Images (B, 3, 4, 4) to a map (B, 5, 2, 2), features (B, 5) and unit embeddings (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, FEATURE_DIM, 2, stride=2), nn.Tanh())
        self.embedding = nn.Linear(FEATURE_DIM, DIM)

    def forward(self, images):
        feature_map = self.backbone(images)
        features = feature_map.mean(dim=(2, 3))
        return Embedding(F.normalize(self.embedding(features), dim=1), features, feature_map)


def build(case: Case, dtype: torch.dtype, forward_bs: int = 0) -> Objective:
    torch.manual_seed(0)  # for the first weights, class vectors and queues, as main.py seeds
    args = flags(loss=case.loss, seed=3, **{"loss_s2sd_target_dims": (4, 7), **case.chosen})
    embedder = Toy()
    criterion = (
        Alone()
        if case is ALONE
        else criteria.build(
            args,
            n_classes=N_CLASSES,
            embed_dim=DIM,
            feature_dim=FEATURE_DIM,
            miner=batchminer.build(args),
            embedder=embedder,
            n_steps=len(LABELS),
            tokenizer=Letters,
            encoder=Hashes,
            forward_bs=forward_bs,
        )
    )
    for module in criterion.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()  # for the whole batch, SyncBatchNorm needs a GPU
    guide, distill = guidance(case.guide, args)
    proxies = class_vectors(case.proxies, DIM if criterion.reads == "embeds" else FEATURE_DIM)
    terms = guide, distill, 2.0, proxies, 0.5
    objective = Objective(embedder, criterion, *terms, forward_bs=forward_bs).to(dtype)
    for module in objective.modules():
        if isinstance(module, Miner):
            module.float()  # what it learns is float32 whatever it mines
    return objective


def guidance(level, args):
    if not level:
        return None, None
    generator = torch.Generator().manual_seed(4)
    embeds = F.normalize(torch.randn(9, 4, generator=generator), dim=1)
    n_items = N_CLASSES if level == "class" else N_IMAGES
    index = torch.randint(9, (n_items, 2), generator=generator)
    words = Words(tuple(f"text {i}" for i in range(9)), index, level)
    return LanguageGuide(embeds, words), criteria.build_distillation(args)


def class_vectors(vectors: str, dim: int) -> criteria.LanguageProxies | None:
    if not vectors:
        return None
    generator = torch.Generator().manual_seed(5)
    words = F.normalize(torch.randn(N_CLASSES, 4, generator=generator), dim=1)
    return criteria.LanguageProxies(N_CLASSES, dim, None if vectors == "free" else words)


def kept(case: Case, n_shares: int) -> list[int]:
    """Places of the images of a step: from each share as many as the smallest one has."""
    shares = [
        [place for place in share.tolist() if place not in case.lost]
        for share in torch.arange(BS).chunk(n_shares)
    ]
    return [place for share in shares for place in share[: min(map(len, shares))]]


def batch_of(case: Case, step: int, places: list[int], n_views: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(n_views, BS, 3, 4, 4, generator=generator)[:, places].to(dtype)
    rows = torch.randperm(N_IMAGES, generator=generator)[:BS][places]
    labels = torch.tensor(LABELS[step])[places]
    # "" stands for a caption that a frozen encoder does not know.
    captions = tuple("" if row % 7 == 0 else TEXTS[row % len(TEXTS)] for row in rows.tolist())
    return Batch(tuple(images), 1000 * labels - 7 if case.far_labels else labels, rows, captions)


def train(
    case: Case, dtype: torch.dtype, n_steps: int, n_shares: int = 1, forward_bs: int = 0
) -> dict[str, Any]:
    """Take a few steps; return what a rank, or one process, sees of them.

    Args:
        n_shares: in one process, how many ranks it stands for where images are lost.
        forward_bs: images and captions per pass of an encoder.
    """
    objective = build(case, dtype, forward_bs)
    module = data_parallel(objective, torch.device("cpu"))
    if world_size() > 1:
        share = torch.arange(BS).chunk(world_size())[rank()].tolist()
        places = [place for place in share if place not in case.lost]  # cut by the objective
    else:
        places = kept(case, n_shares)
    criterion = objective.criterion
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], lr=0.05, momentum=0.9
    )
    triplets: list[tuple[torch.Tensor, ...]] = []
    for part in criterion.modules():
        if isinstance(part, Miner):
            part.register_forward_hook(lambda *called: triplets.append(tuple(called[-1])))
    chance = torch.get_rng_state()
    steps = []
    for step in range(n_steps):
        objective.embedder.backbone.requires_grad_(step >= case.warm_up)
        batch = batch_of(case, step, places, criterion.n_views, dtype)
        outcome = module(batch, step > 0)
        optimizer.zero_grad()
        outcome.loss.backward()
        steps.append(
            {
                "loss": outcome.loss.detach(),
                "terms": outcome.terms,
                "embeds": outcome.embeds,
                "rows": outcome.rows,
                "grads": {
                    name: parameter.grad.clone()
                    for name, parameter in objective.named_parameters()
                    if parameter.grad is not None
                },
            }
        )
        optimizer.step()
        criterion.after_step(objective.embedder)
        if step % 2 and case.chosen.get("batch_mining") == "parametric":
            miner = next(part for part in criterion.modules() if isinstance(part, Miner))
            miner.adapt(outcome.embeds, torch.tensor(LABELS[step]))
    return {
        "steps": steps,
        "triplets": triplets,
        "state": objective.state_dict(),
        "drew": not torch.equal(chance, torch.get_rng_state()),
    }


def trained_by(n_ranks: int, digits: str) -> list[str]:
    """The cases that so many ranks train: all by two in double precision, each loss by the rest."""
    if n_ranks == 2 and digits == "double":
        return list(CASES)
    return [
        name for name, case in CASES.items() if name == case.loss or (case.lost and n_ranks > 2)
    ]


def travelled() -> dict[str, int]:
    """Bytes that a rank contributes to a step of the most common kind, by collective call."""
    sent = {"all_gather": 0, "all_reduce": 0}

    def count(name, send, *args, **kwargs):
        sent[name] += args[-1].nbytes if name == "all_gather" else args[0].nbytes
        return send(*args, **kwargs)

    case = CASES["multisimilarity"]
    objective = build(case, torch.float32)
    share = torch.arange(BS).chunk(world_size())[rank()].tolist()
    with (
        patch.object(dist, "all_gather", partial(count, "all_gather", dist.all_gather)),
        patch.object(dist, "all_reduce", partial(count, "all_reduce", dist.all_reduce)),
    ):
        objective(batch_of(case, 0, share, 1, torch.float32)).loss.backward()
    return sent


def work(own: int, folder: Path, n_ranks: int) -> None:
    join(own, n_ranks, folder / f"{n_ranks}.meet")
    seen: dict[str, Any] = {
        digits: {
            name: train(CASES[name], *PRECISIONS[digits]) for name in trained_by(n_ranks, digits)
        }
        for digits in (PRECISIONS if n_ranks == 2 else ["double"])
    }
    if n_ranks == 2:
        seen["in chunks"] = {
            name: train(CASES[name], *PRECISIONS["double"], forward_bs=3)
            for name in criteria.CRITERIA
        }
    seen["alone"] = train(ALONE, *PRECISIONS["double"])
    seen["travelled"] = travelled()
    torch.save(seen, folder / f"{n_ranks}.{own}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    importlib.import_module("torch._dynamo")  # with the first optimizer; seconds, once before forks
    for size in map(int, sys.argv[2:]):
        start_processes(work, (Path(sys.argv[1]), size), nprocs=size, start_method="fork")
