"""The choice of the device, and its errors. Copies are tested in tests/test_pretend.py."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import main
from tests import pretend
from tests.runs import output, start, tiny_run
from tests.test_imports import MAY_IMPORT as FOLDERS
from utilities import device

HEADER = "| NVIDIA-SMI 550.54   Driver Version: 550.54   {}: {} |"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put an nvidia-smi that prints a text on PATH."""

    def answers(text, status=0):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return answers


def test_nothing_else_asks_for_a_kind_of_gpu():
    root = Path(__file__).parents[2]
    product = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    product += [root / "main.py", root / "parameters.py"]
    asking = [path.name for path in product if "torch.cuda" in (text := path.read_text())
              or ".is_cuda" in text]  # fmt: skip
    assert len(product) > 100 and not asking


def test_the_cpu_where_there_is_nothing_else():
    assert device.choose() == device.choose("cpu") == torch.device("cpu")


def test_the_accelerator_where_there_is_one():
    with pretend.accelerator():
        assert device.choose() == device.choose("pretend") == device.choose("pretend:0")
        assert device.choose() == pretend.DEVICE and device.choose("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("pretending", "name", "gpu", "message"),
    [
        (False, "gpu", 0, "--device must be auto or a device of torch; got gpu"),
        (False, "cuda:x", 0, "got cuda:x"),
        (False, "cuda", 0, "--device cuda: torch .* sees no cuda on this machine; use cpu"),
        (False, "auto", 3, "--gpu 3: torch .* sees no GPU on this machine; leave --gpu out"),
        (True, "cuda", 0, "--device cuda: torch .* sees no cuda .*; use cpu or pretend"),
        (True, "pretend:2", 0, "--device pretend:2: this machine has 1 of type pretend, from 0 on"),
        (True, "auto", 1, "--gpu 1: this machine has 1 of type pretend, from 0 on"),
        (True, "pretend", 4, "--gpu 4: this machine has 1"),
    ],
)
def test_a_device_that_is_not_there_is_refused(pretending, name, gpu, message):
    there = pretend.accelerator() if pretending else nullcontext()
    with there, pytest.raises(ValueError, match=message):
        device.choose(name, gpu)


@pytest.mark.parametrize(
    "message",
    [
        "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx",
        "Failed to find C compiler. Please specify via CC environment variable.\n\nSet TORCHDYNAMO",
        "Cannot find a working triton installation.\nSet TORCH_LOGS",
        "",
    ],
)
def test_compile_without_a_compiler_is_refused_before_training(
    animals, tmp_path, monkeypatch, message
):
    def fails(_):
        def call(_):
            raise RuntimeError(message)

        return call

    monkeypatch.setattr(torch, "compile", fails)
    says = re.escape(message.splitlines()[0] if message else "RuntimeError")
    with pytest.raises(ValueError, match=rf"^--compile .*\({says}\); install .*\+\+") as error:
        main.main(tiny_run(animals, tmp_path, "--compile"))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compile_is_refused_where_torch_finds_no_compiler(animals, tmp_path):
    run = start(tiny_run(animals, tmp_path, "--compile"), CXX="/nowhere/g++")
    (line,) = [line for line in output(run, status=1).splitlines() if line.startswith("error:")]
    assert "--compile does not work on this machine (InvalidCxxCompiler: No working C++" in line


@pytest.mark.parametrize(("kernels", "used"), [(6, 2), (9, 2), (2, 2), (0, 0)])
def test_loading_processes_are_at_most_the_cores_and_fewer_than_typed_are_told(
    kernels, used, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(device.os, "cpu_count", lambda: 2)
    args = main.parameters.parse(["--kernels", str(kernels)])
    main.set_up(args)
    assert args.kernels == used
    told = f"--kernels {kernels}: loading with 2 processes, one per core"
    assert (told in caplog.messages) == (kernels > 2)


def test_each_process_of_torchrun_takes_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pretend.accelerator():  # a process alone, whatever its launcher exports
        assert device.choose("pretend") == pretend.DEVICE
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device.choose() == device.choose("cpu") == torch.device("cpu")
    says = "torchrun started 2 or more processes here: this machine has 1 of type pretend"
    with pretend.accelerator(), pytest.raises(ValueError, match=says):
        device.choose()
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pretend.accelerator():
        assert device.choose("pretend", 3) == pretend.DEVICE


@pytest.mark.parametrize("wording", ["CUDA Version", "CUDA UMD Version"])
def test_a_driver_that_torch_cannot_use_is_reported(driver, wording, monkeypatch):
    driver(HEADER.format(wording, "12.4"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    line = device.idle_driver()
    assert line.startswith("an NVIDIA driver for CUDA 12.4 answers, but torch ")
    assert "is built for CUDA 13.0 and sees no GPU" in line and "requirements.sh" in line
    with pytest.raises(ValueError, match=r"--device cuda: an NVIDIA driver for CUDA 12\.4 .* cpu$"):
        device.choose("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a CPU build" in device.idle_driver()
    with pretend.accelerator():
        assert device.idle_driver() is None  # a GPU is used


def test_a_driver_of_unknown_version_is_reported_and_one_that_fails_is_not(driver):
    driver("no header")
    assert device.idle_driver().startswith("an NVIDIA driver answers, but torch")
    driver("NVIDIA-SMI has failed because it could not communicate with the driver", status=9)
    assert device.idle_driver() is None


@pytest.mark.usefixtures("own_cache")
def test_a_run_warns_of_an_idle_driver_unless_the_cpu_was_chosen(driver, animals, tmp_path, caplog):
    driver(HEADER.format("CUDA Version", "12.8"))
    words = tiny_run(animals, tmp_path, "--dry_run", "--evaluation_metrics", "e_recall@1")
    main.main(words)
    assert "an NVIDIA driver for CUDA 12.8 answers" in caplog.text
    caplog.clear()
    main.main([*words, "--device", "cpu"])
    assert "NVIDIA" not in caplog.text
    with pytest.raises(SystemExit):
        main.main([*words, "--device", "cpu", "--gpu", "1"])


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "half"])
def test_half_is_what_the_device_is_fast_in(name):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert device.precision(name, cpu) == {"half": "bf16"}.get(name, name)
    assert device.precision(name, gpu) == {"half": "fp16"}.get(name, name)
    with device.autocast(cpu, name):
        assert torch.is_autocast_enabled("cpu") == (name != "fp32")
