"""All of main.py and the other commands on a pretend accelerator: nothing mixes, no step waits.

Every objective, miner, sampler of pairs and way of loading is trained here.
"""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import main
import parameters
from architectures import export
from architectures.weights import Classifier
from batchminer import MINERS
from evaluation import retrieve
from evaluation import words as find_words
from language import neighbours
from tests import pretend
from tests import test_main_captions as with_captions
from tests.runs import (
    MANY,
    RUN,
    assert_same_run,
    killed_at,
    tiny_run,
    without_times,
    write_animals,
)
from tests.test_dry_run import ALL_METRICS
from tests.utilities.test_trainer import Regression
from utilities import checkpoint, device
from utilities.optimization import build_optimizer
from utilities.trainer import Trainer

OPTIMIZERS, PRECISIONS = ("adam", "adamw", "sgd"), ("fp32", "bf16", "fp16")
CONTROLS = ("none", "permuted", "uniform")
pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")
captioned = with_captions.source

UNMINED = sorted({*parameters.LABEL_LOSSES} - {*parameters.MINED_LOSSES})
MINED = [
    (parameters.MINED_LOSSES[number % len(parameters.MINED_LOSSES)], miner)
    for number, miner in enumerate(MINERS)
]
PLACES = ("smooth_ap",)  # unmined, and looks up the places of its positive pairs
# One epoch of three steps, of which the first sends what is sent but once.
SHORT = ("--n_epochs", "1", "--evaluation_metrics", "e_recall@1", "--no_train_metrics")
GUIDED = ("--language_distill_w", "2", "--language_words", "classnames")


@pytest.fixture
def waits_of_a_step(monkeypatch):
    """Runs main.py on the pretend device; returns scores, and waits between the last two steps."""
    seen = []
    step = Trainer.step

    def run(words):
        with pretend.accelerator() as waits:

            def stepping(self, *inputs):
                seen.append(Counter(waits))
                return step(self, *inputs)

            monkeypatch.setattr(Trainer, "step", stepping)
            scores = main.main(words)
        assert len(seen) == 3 and all(map(np.isfinite, scores.values())), scores
        return scores, dict(seen[-1] - seen[-2])

    return run


# --------------------------------------------------------------------------------------------------
# main.py
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", UNMINED)
def test_an_objective_without_a_miner_never_waits(animals, tmp_path, waits_of_a_step, loss):
    """With all kinds of batches, optimizers, precisions and words in turn."""
    number = UNMINED.index(loss)
    samplers = (*parameters.CLASS_SAMPLERS, "random")
    more = [
        *("--loss", loss, "--data_sampler", samplers[number % len(samplers)], "--bs", "8"),
        *("--optim", OPTIMIZERS[number % 3], "--data_batchmatch_bigbs", "16"),
        *("--precision", PRECISIONS[number % 3], *GUIDED),
        *("--language_control", CONTROLS[number // 2 % 3]),
    ]
    if loss in parameters.PAIR_LOSSES:
        more += ["--xbm_size", "16", "--xbm_start", "1"]
    if loss == "s2sd":
        more += ["--loss_s2sd_target_dims", "12", "--loss_s2sd_feat_distill"]
        more += ["--loss_s2sd_feat_distill_delay", "0"]
    scores, waits = waits_of_a_step(tiny_run(animals, tmp_path, *SHORT, *more))
    assert sum(waits.values()) == (1 + ("--xbm_size" in more) if loss in PLACES else 0), waits
    assert scores["train/loss_match"] > 0


@pytest.mark.parametrize(("loss", "miner"), MINED)
def test_a_mined_objective_waits_once(animals, tmp_path, waits_of_a_step, loss, miner):
    """For the number of its triplets; the feedback of a miner comes every 30 steps."""
    more = ("--loss", loss, "--batch_mining", miner, "--bs", "8", *GUIDED)
    if miner == "parametric":
        more += ("--use_tv_split", "--tv_split_perc", "0.5", "--bs", "4")
    scores, waits = waits_of_a_step(tiny_run(animals, tmp_path, *SHORT, *more))
    assert sum(waits.values()) == 1, waits
    assert scores["train/loss_match"] > 0


@pytest.mark.parametrize("loss", with_captions.SSL)
def test_an_objective_over_views_never_waits(captioned, tmp_path, waits_of_a_step, loss):
    """Its views are coloured on the device; pairs of each sampler in turn."""
    number = with_captions.SSL.index(loss)
    more = ["--loss", loss, *with_captions.texts_of(captioned, loss)]
    if loss in parameters.VIEW_LOSSES:
        more += ["--data_sampler", parameters.PAIR_SAMPLERS[number % 3]]
        more += ["--augmentation", "slip" if loss == "slip" else "simclr"]
    words = with_captions.flags(captioned, tmp_path, *more, length=("--max_steps", "3"))
    _, waits = waits_of_a_step(words)
    assert not waits


@pytest.mark.parametrize(
    "more",
    [
        ("--augmentation", "adv"),
        ("--augmentation", "big", "--deterministic"),
        ("--cache_images", "--evaluate_on_cpu"),
        ("--language_proxy_w", "0.03"),
        ("--language_proxy_w", "0.03", "--language_proxy_vectors", "free", "--language_distill_w",
         "2"),
        ("--language_distill_w", "2", "--language_pseudoclass"),
        ("--language_distill_w", "2", "--language_pseudoclass", "--language_pseudoclass_level",
         "sample"),
        ("--forward_bs", "3", "--arch", "test_resnet_frozen_normalize", "--grad_checkpointing"),
        ("--clip_grad", "0.5", "--ema", "0.9", "--precision", "fp16"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_way_of_loading_guiding_or_saving_memory_makes_a_step_wait(
    animals, tmp_path, waits_of_a_step, monkeypatch, more
):
    monkeypatch.setattr("architectures.from_flags.classifier", small_classifier)
    try:
        _, waits = waits_of_a_step(tiny_run(animals, tmp_path, *SHORT, "--bs", "8", *more))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not waits


def test_words_search_on_the_device_as_on_the_cpu(tmp_path, capsys):
    """In a run, in the command that fits the map again, and in a query."""
    source = write_animals(tmp_path / "source", MANY)
    more = ("--language_proxy_w", "0.03", "--n_epochs", "1")
    with pretend.accelerator():
        there = main.main(tiny_run(source, tmp_path / "there", *more))
    here = main.main(tiny_run(source, tmp_path / "here", *more))
    assert "test/words/word_mAP" in here
    assert without_times(here) == pytest.approx(without_times(there), rel=1e-4, abs=1e-4)
    run = tmp_path / "there" / RUN
    kept = run / "last.words.safetensors"
    content = kept.read_bytes()
    on = ("--device", "pretend:0", "--kernels", "0")
    query = ("query", "--words", "red fox", "--index", str(tmp_path / "index"), "--json")
    with pretend.accelerator():
        find_words.main(["--checkpoint", str(run), *on])
        images, index = str(source / "animals" / "images"), ("--index", str(tmp_path / "index"))
        retrieve.main(["index", images, "--checkpoint", str(run), *index, *on])
        capsys.readouterr()
        retrieve.main([*query, *on[:2]])
    assert kept.read_bytes() == content
    found = capsys.readouterr().out
    retrieve.main([*query, "--device", "cpu"])
    assert found == capsys.readouterr().out


def small_classifier(name):
    """Return a classifier of ImageNet's names, for pseudolabels."""
    model = nn.Sequential(nn.Conv2d(3, 1000, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(model, (0.5,) * 3, (0.5,) * 3, image_size=32, crop_ratio=1.0)


def test_a_run_is_the_same_on_the_device_as_on_the_cpu(animals, tmp_path):
    """The same numbers, so that no copy was read before it arrived."""
    words = (*GUIDED, "--evaluation_metrics", *ALL_METRICS, "--n_epochs", "1",
             "--evaluation_language_model", str(animals / "words.txt"))  # fmt: skip
    with pretend.accelerator():
        there = main.main(tiny_run(animals, tmp_path, *words, "--group", "there"))
    here = main.main(tiny_run(animals, tmp_path, *words, "--group", "here"))
    assert without_times(here) == pytest.approx(
        without_times(there), rel=1e-4, abs=1e-4, nan_ok=True
    )
    config = json.loads((tmp_path / "animals" / "there_s0" / "config.json").read_text())
    assert config["device"] == "pretend:0"


def test_a_run_on_the_device_is_resumed_to_the_last_bit(animals, tmp_path, monkeypatch):
    """With its random state, its loss scaler and the steps that were skipped."""
    more = ("--precision", "fp16", "--loss", "margin", "--data_sampler", "fid_batchmatch",
            "--data_batchmatch_bigbs", "16", "--checkpoint_every", "1", "--optim", "sgd",
            "--evaluation_metrics", "e_recall@1", "--no_train_metrics")  # fmt: skip
    step = Trainer.step

    def chancy(self, *inputs):
        outcome = step(self, *inputs)
        with torch.no_grad():  # a draw of the device, added to a weight
            weight = next(self.objective.parameters())
            weight += torch.rand(weight.shape, device=weight.device) * 1e-3
        return outcome

    monkeypatch.setattr(Trainer, "step", chancy)
    with pretend.accelerator():
        main.main(tiny_run(animals, tmp_path / "whole", *more))
    with pretend.accelerator(), killed_at(4):
        main.main(tiny_run(animals, tmp_path / "parts", *more))
    with pretend.accelerator():
        main.main(tiny_run(animals, tmp_path / "parts", *more, "--resume"))
    assert_same_run(tmp_path / "parts" / RUN, tmp_path / "whole" / RUN)
    kept = torch.load(tmp_path / "whole" / RUN / "last.pt", weights_only=True)
    assert {tensor.device.type for tensor in tensors(kept)} == {"cpu"}  # read without the device
    assert set(kept["rng"]["device"]) == {"pretend"}


def tensors(part):
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, dict | list | tuple):
        for item in part.values() if isinstance(part, dict) else part:
            yield from tensors(item)


def test_all_that_is_done_with_a_run_is_done_on_the_device(captioned, tmp_path, capsys):
    """Every protocol of evaluation, then --evaluate_only, retrieve, neighbours and export."""
    more = ("--evaluations", "retrieval", "linear_probe", "fewshot", "knn")
    with pretend.accelerator():
        trained = main.main(with_captions.flags(captioned, tmp_path, *more))
    folder = with_captions.run_folder(tmp_path)
    on = ("--device", "pretend:0", "--kernels", "0")
    with pretend.accelerator():
        only = ("--evaluate_only", "--checkpoint", str(folder), "--save_path", str(tmp_path))
        again = main.main([*only, *on])
    found = {name: value for name, value in trained.items() if not name.startswith("train/")}
    assert len(found) == 5 and {name: again[name] for name in found} == pytest.approx(found)
    pictures = captioned / "shades" / "images"
    first = str(min(pictures.rglob("*.jpg")))
    with pretend.accelerator():
        index = ("--index", str(tmp_path / "index"), "--json", *on[:2])
        retrieve.main(["index", str(pictures), "--checkpoint", str(folder), *index, *on[2:]])
        capsys.readouterr()
        retrieve.main(["query", first, *index])
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["neighbours"][0]["path"] == first
    with pretend.accelerator():
        for kind in ("flat", "ivf"):
            neighbours.main(
                ["--dataset", "drawings", "--source_path", str(captioned), "--by", "visual",
                 "--checkpoint", str(folder), "--index", kind, *on]
            )  # fmt: skip
        export.main(["--checkpoint", str(folder), "--out", str(tmp_path / "exported")])
    assert any((tmp_path / "exported").iterdir())


# --------------------------------------------------------------------------------------------------
# The pretence
# --------------------------------------------------------------------------------------------------
def test_what_a_gpu_refuses_is_refused():
    with pretend.accelerator():
        there, here = torch.ones(3, 2, device="pretend"), torch.ones(3, 2)
        rows = torch.tensor([0, 2], device="pretend")
        for refused in (
            lambda: there + here,
            lambda: here[rows],
            lambda: there @ here.T,
            lambda: torch.cat([there, here]),
            lambda: there.numpy(),
            lambda: np.asarray(there),
            lambda: there.index_select(0, rows.cpu()),
            lambda: torch.rand(3, device="pretend", generator=torch.default_generator),
        ):
            with pytest.raises((pretend.MixedError, RuntimeError)):
                refused()
        assert there[rows.cpu()].device == pretend.DEVICE  # torch copies such an index


def test_waits_are_counted():
    with pretend.accelerator() as waits:
        there = torch.arange(6.0, device="pretend").view(2, 3)
        assert not waits
        for waiting in (
            lambda: there.sum().item(),
            lambda: bool(there.any()),
            lambda: float(there[0, 0]),
            there.nonzero,
            lambda: there[there > 2],
            there.unique,
            there.tolist,
            there.cpu,
            lambda: torch.tensor([1.0], device="pretend"),
            lambda: torch.ones(2).to("pretend", non_blocking=True),  # from memory not pinned
            lambda: torch.ones(2).pin_memory().to("pretend"),
            lambda: there[torch.tensor([0])],
            lambda: there.repeat_interleave(torch.tensor([1, 2]).pin_memory().to("pretend"), dim=0),
        ):
            before = waits.total()
            waiting()
            assert waits.total() > before
        before = waits.total()
        rows = device.send(torch.tensor([0, 1]), pretend.DEVICE)
        loss = (there[rows] @ there.T).logsumexp(1).mean()
        there.new_full((), 2.0), torch.where(there > 2, there, 0.0), there.cumsum(1), loss + 1
        assert waits.total() == before
    assert not torch.accelerator.is_available()


def test_a_copy_is_nonsense_until_it_arrives():
    with pretend.accelerator() as waits:
        there = torch.ones(3, device="pretend")
        arriving = device.PendingCopy(there, there.bool())
        assert arriving._copies[0].tolist() == [-77] * 3
        assert not arriving.ready() and arriving.ready() and not waits
        assert [copy.tolist() for copy in arriving.wait()] == [[1] * 3, [True] * 3]
        assert not waits
        (copy,) = device.PendingCopy(there).wait()
        assert copy.tolist() == [1] * 3 and waits.total() == 1


def test_the_device_draws_for_itself():
    with pretend.accelerator():
        torch.manual_seed(3)
        kept, first = checkpoint.rng_state(pretend.DEVICE), torch.rand(2)
        drawn = torch.rand(4, device="pretend").cpu()
        torch.manual_seed(3)
        assert torch.equal(torch.rand(2), first)  # the CPU's, whatever the device drew
        checkpoint.set_rng_state(kept, pretend.DEVICE)
        assert torch.equal(torch.rand(4, device="pretend").cpu(), drawn)


def test_a_watched_value_is_some_steps_old():
    with pretend.accelerator() as waits:
        watched, seen = device.DelayedValue(), []
        for step in range(7):
            value = torch.full((), float(step), device="pretend")
            arrived = watched.poll(value)
            seen.append(None if arrived is None else float(arrived))
        assert seen == [None, 0, None, 2, None, 4, None] and not waits
    watched = device.DelayedValue()
    assert [float(watched.poll(torch.tensor(float(step)))) for step in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_steps_left_out_on_the_device_are_known_some_steps_later(optim, caplog):
    with pretend.accelerator() as waits:
        model = Regression().to("pretend")
        optimizer = build_optimizer(
            optim, [{"params": list(model.parameters())}], lr=0.1, decay=0.0
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        trainer = Trainer(model, optimizer, scheduler, device=pretend.DEVICE, most_skipped=6)
        x = device.send(torch.ones(4, 3), pretend.DEVICE)
        before = [p.detach().cpu() for p in model.parameters()]
        waits.clear()
        trainer.step(x, float("nan"))
        trainer.step(x, float("inf"))
        assert not waits and caplog.messages == [
            "skipped 1 step(s) up to step 2: the loss or its gradient was not finite"
        ]
        assert trainer.skipped == 2
        for parameter, value in zip(model.parameters(), before, strict=True):
            assert torch.equal(parameter.detach().cpu(), value)
        with pytest.raises(FloatingPointError, match=r"not finite in [678] steps in a row"):
            for _ in range(9):
                trainer.step(x, float("nan"))
        assert trainer.iteration <= 8
