"""Tiny runs of main.py: their images and flags, starting them, and comparing what they leave."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from language.pseudolabels import imagenet_names
from utilities import checkpoint
from utilities.trainer import Trainer

ROOT = Path(__file__).parents[1]
RUN = Path("animals") / "default_s0"  # in the --save_path of ``tiny_run``
ANIMALS = (
    *("red fox", "gray wolf", "kit fox", "barn owl"),
    *("snowy owl", "house cat", "tabby", "eagle"),
)
MANY = (*ANIMALS, *(f"{size} {name}" for size in ("small", "tall") for name in ANIMALS[:6]))
WORD_METRICS = ("word_recall@1", "word_recall@10", "word_mAP", "named@1")
TIMED = {"train/images_per_second", "train/waiting_for_data"}


def write_animals(source, names=ANIMALS):
    """Write classes of six pictures, each class a colour with noise, and word vectors."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        folder = source / "animals" / "images" / name
        folder.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for image in range(6):
            noise = rng.integers(-40, 40, (40, 48, 3))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}_{image}.jpg")
    groups = {name: {"name": name, "group": name.split()[-1]} for name in names}
    (source / "animals" / "classes.json").write_text(json.dumps(groups))
    words = sorted({word for name in names for word in name.split()})
    of_labels = {word for name in imagenet_names() for word in re.findall(r"[a-z]+", name.lower())}
    words += sorted(of_labels.difference(words))  # for pseudolabels
    vectors = [f"{word} {' '.join(map(str, rng.normal(size=8)))}\n" for word in words]
    (source / "words.txt").write_text("".join(vectors))
    return source


def odd_file(path, kind):
    """Make what is no regular file: a named pipe, a folder, a device or a broken link."""
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")


def tiny_run(source, save_path, *more, report=False):
    """Return the flags of a run of seconds: timm's test network from scratch at 32 px.

    An epoch has three steps.
    """
    if not report:
        more += ("--no_report",)
    return [
        *("--dataset", "animals", "--source_path", str(source), "--save_path", str(save_path)),
        *("--arch", "test_resnet_normalize", "--not_pretrained", "--image_size", "32"),
        *("--embed_dim", "16", "--bs", "8", "--kernels", "0", "--n_epochs", "2", "--lr", "1e-3"),
        *("--language_model", str(source / "words.txt"), "--language_prompt", "{}"),
        *("--loss", "multisimilarity", *more),
    ]


# --------------------------------------------------------------------------------------------------
# Starting and stopping
# --------------------------------------------------------------------------------------------------
def start(words, n_processes=1, **environment):
    """Start main.py as a user does; with several processes, by torchrun."""
    program = ["main.py"]
    if n_processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        program = [*torchrun, f"--nproc_per_node={n_processes}", "main.py"]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def output(run, status=0):
    """Wait for a started run to end with ``status``; return what it printed."""
    printed, _ = run.communicate(timeout=600)
    assert run.returncode == status, printed
    return printed


def wait_for_an_epoch(run, folder):
    """Wait until a started run has finished its first epoch."""
    while not (folder / "last.pt").is_file():
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.02)


class Killed(BaseException):
    """Stands for a kill that no handler sees."""


@contextlib.contextmanager
def killed_at(iteration, error=Killed):
    """Expect ``error``, which is raised in place of the step after ``iteration``."""
    step = Trainer.step

    def stepping(self, *inputs):
        if self.iteration == iteration:
            raise error
        return step(self, *inputs)

    with mock.patch.object(Trainer, "step", stepping), pytest.raises(error):
        yield


def benchmark_script(*words, **environment):
    """Let the benchmark script print the commands that it would run."""
    return subprocess.run(
        ["bash", "language_guidance_benchmark_runs.sh", *words],
        cwd=ROOT, env=os.environ | {"DRY_RUN": "1"} | environment, capture_output=True, text=True,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# What a run leaves
# --------------------------------------------------------------------------------------------------
def without_times(scores):
    return {name: value for name, value in scores.items() if name not in TIMED}


def rows_of(folder):
    """Return the rows of metrics.jsonl, without what depends on the machine."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def same(one, other):
    """Return whether two nested parts of checkpoints are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())  # or both are NaN
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def assert_same_run(folder, whole):
    """Compare the files, rows and last checkpoints of two runs."""
    assert rows_of(folder) == rows_of(whole)
    last, expected = (checkpoint.load(path / "last.pt") for path in (folder, whole))
    for part in expected:
        if part != "flags":
            assert same(last[part], expected[part]), part
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    for path in whole.glob("*.safetensors"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
