"""The table of ``tests.benchmarks.device`` on tiny sizes: all of its rows, and their failures."""

import contextlib
import re
import warnings

import pytest
import torch
from torch import nn

from batchminer import Random
from criteria import MultiSimilarity
from tests import launch, pretend
from tests.benchmarks import device, device_checks, processes
from tests.benchmarks.evaluation import Size
from utilities.structures import Triplets

TINY = device.SCALES["small"]._replace(
    flags=("--arch", "test_resnet_frozen_normalize", "--image_size", "16", "--bs", "8",
           "--embed_dim", "16"),
    rounds=1, images=4, gallery=Size(300, 16, 20),
)  # fmt: skip


@pytest.fixture
def table(monkeypatch, capsys):
    """Runs the command; returns its exit status and the result of each row by name."""
    monkeypatch.setattr(device, "SCALES", {"small": TINY, "full": TINY})
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)  # takes a minute
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)  # refused by pretend

    def run(*words):
        status = device.main(words)
        rows = re.findall(r"^\| (.+?) \| (.*?) \| (.*?) \|$", capsys.readouterr().out, re.M)
        return status, {name: result for name, result, _ in rows[1:]}

    return run


@pytest.fixture
def in_this_process(monkeypatch):
    """Trains in this process instead of several, which is quicker."""

    def run(_module, _name, *words, timeout):
        with pytest.MonkeyPatch.context() as kept:
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                kept.setenv(name, "")  # put back at the end
            processes.main(list(words))

    monkeypatch.setattr(launch, "run", run)


def test_every_row_is_measured(table, in_this_process):
    status, rows = table("--device", "cpu", "--only", *device.CHECKS)
    assert [*rows] == [line.name for lines in device.CHECKS.values() for line in lines]
    assert status == 0 and not any("FAILED" in result for result in rows.values())
    assert re.search(r"\d images/s, [\d.]+% of the bare step's \d", rows["step, fp16"])
    assert rows["loss and gradient of objectives"].startswith("33 agree")
    assert rows["step of processes"].startswith("1 by gloo")


@pytest.mark.slow
def test_what_works_on_an_accelerator_is_measured_there(table):
    with pretend.accelerator():
        only = ("step", "waits", "evaluation", "memory")
        status, rows = table("--only", *only)
    assert status == 0, rows
    assert rows["memory, evaluation"] == "not counted on pretend"


def test_compiling_is_left_out_on_a_cpu_unless_it_is_named(table):
    _, rows = table("--device", "cpu", "--only", "machine", "compile", "waits")
    assert "images/s" in rows["step, bf16, --compile"]
    setting = device_checks.Setting(torch.device("cpu"), TINY)
    assert device_checks.speed(setting, "--compile").startswith("not measured")


def test_what_fails_is_one_line_and_the_rest_goes_on(table, monkeypatch):
    def fail(self):
        raise RuntimeError("Failed to find C compiler |\n\nSet TORCHDYNAMO_VERBOSE=1" + "!" * 900)

    monkeypatch.setattr(nn.Module, "compile", fail)
    status, rows = table("--device", "cpu", "--only", "compile", "evaluation")
    assert status == 1
    failure = rows.pop("step, bf16, --compile")
    assert failure.startswith("FAILED: RuntimeError: Failed to find C compiler / Set TORCHDYNAMO")
    assert len(failure) < 300
    assert len(rows) == 3 and not any("FAILED" in result for result in rows.values())


def test_numbers_that_a_device_gets_wrong_are_named(table, monkeypatch):
    loss, mine = MultiSimilarity.forward, Random.forward

    def wrong(self, embeds, *more):
        return loss(self, embeds, *more) * (1.01 if embeds.device.type == "pretend" else 1)

    def swapped(self, embeds, *more):
        anchors, positives, negatives = mine(self, embeds, *more)
        return Triplets(anchors, negatives, positives)

    monkeypatch.setattr(MultiSimilarity, "forward", wrong)
    monkeypatch.setattr(Random, "forward", swapped)
    with pretend.accelerator():
        status, rows = table("--only", "numbers")
    assert status == 1
    of_losses, of_miners, _ = rows.values()
    assert re.match(r"FAILED: multisimilarity: off by \S+; s2sd: off by \S+$", of_losses)
    assert re.match(r"FAILED: random: ValueError: random: 8 of 8 triplets are wrong$", of_miners)


def test_ranks_of_torch_and_faiss_that_differ_are_named(table, monkeypatch):
    monkeypatch.setattr(device_checks, "ranks", lambda setting: ({"recall@1": 0.0}, 1.0))
    status, rows = table("--device", "cpu", "--only", "evaluation")
    assert status == 1 and rows["ranks by FAISS"].endswith("another than ours")


def test_the_memory_of_an_evaluation_is_that_of_a_new_one(monkeypatch):
    setting, sizes = device_checks.Setting(torch.device("cpu"), TINY), []
    device_checks.by_torch(setting)  # kept for the rows that compare with it
    score = device_checks.metrics.compute
    monkeypatch.setattr(
        device_checks.metrics,
        "compute",
        lambda *given: sizes.append(1) or score(*given),
    )
    monkeypatch.setattr(device_checks.devices, "peak_memory_gib", lambda _: float(len(sizes)))
    assert device_checks.memory(setting, device_checks.by_torch) == "2.00 GiB"


@pytest.mark.parametrize(("most", "fails"), [(2, False), (1, True)])
def test_waits_are_counted_by_what_cuda_says(monkeypatch, most, fails):
    def step():
        for message in ("called a synchronizing CUDA operation", "something else") * 2:
            warnings.warn(message, stacklevel=1)

    modes = []
    monkeypatch.setattr(device_checks, "steps", lambda args, where: {"step": step})
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    setting = device_checks.Setting(torch.device("cuda"), TINY)
    expected = pytest.raises(device_checks.MissedError) if fails else contextlib.nullcontext()
    with pytest.warns(UserWarning), expected:  # of the steps that warm up
        assert device_checks.waits(setting, most).startswith("2 a step test_benchmark_device.py:")
    assert modes == ["warn", "default"]


def test_the_driver_is_asked_by_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\n[ $# = 0 ] && echo "| NVIDIA-SMI 550  CUDA Version: 12.4 |" '
        '|| echo "550.54, 81559 MiB"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert device_checks.driver(None) == "550.54, 81559 MiB; for CUDA 12.4"


def test_a_device_that_is_not_there_is_refused(table, capsys):
    with pytest.raises(SystemExit):
        table("--device", "cuda")
    assert "sees no cuda on this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path):
    out = tmp_path / "found.json"
    words = (*TINY.flags, "--device", "cpu", "--loss", "multisimilarity")
    launch.run("-m", "tests.benchmarks.processes", str(out), "2", *words, timeout=240)
    assert re.match(r'{"loss": [\d.e-]+, "gradient": [\d.e-]+}', out.read_text())
