"""The published commands, run on small copies of their datasets: real names, trees and lists."""

import shlex

import numpy as np
import pytest

import main
from tests.datasets import miniature
from tests.runs import benchmark_script

pytestmark = [
    pytest.mark.packages,  # of MiniLM, and of the classifier that gives pseudolabels
    pytest.mark.usefixtures("no_curves"),
]

# What makes a command small: the network, the words and what the cache is filled with.
SMALL = (
    *("--arch", "test_resnet_frozen_normalize", "--not_pretrained", "--image_size", "32"),
    *("--language_model", "minilm", "--language_pseudoclass_model", "efficientnet_lite0"),
    *("--kernels", "0", "--no_report"),
)


def commands(group, **environment):
    """Return the words after main.py in each command of a group of the benchmark script."""
    printed = benchmark_script(group, **environment).stdout
    return [shlex.split(line)[3:] for line in printed.splitlines()]


# The second of each two differs in --tau and --gamma alone (tests/test_benchmark_script.py).
PUBLISHED = [*commands("cub200"), *commands("cars196")][::2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """As many classes as the largest published batch needs, of two images, the fewest."""
    source = tmp_path_factory.mktemp("source")
    miniature.cub200(source, n_classes=108, per_class=2)
    miniature.cars196(source, n_classes=108, per_class=2)
    miniature.online_products(source)
    miniature.inshop(source)
    return source


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory):
    """Pseudolabels of a dataset are found once, by the first of its commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run_dry(source, tmp_path, caplog, *words):
    here = ("--source_path", str(source), "--save_path", str(tmp_path / "runs"), "--dry_run")
    scores = main.main([*words, *SMALL, *here])
    assert caplog.messages[-1].startswith("dry run: ok, ") and not (tmp_path / "runs").exists()
    return scores


@pytest.mark.parametrize("command", PUBLISHED, ids=lambda command: command[2])
def test_every_published_command_runs_dry(source, tmp_path, caplog, command):
    assert {"--data_class_replacement", "--loss_multisimilarity_released"} <= set(command)
    scores = run_dry(source, tmp_path, caplog, *command)
    assert scores["train/loss_match"] > 0 and np.isfinite(scores["train/loss"])
    for metric in ("e_recall@1", "e_recall@2", "e_recall@4", "e_recall@10", "nmi", "f1"):
        assert 0 <= scores[f"test/embeds/{metric}"] <= 1


@pytest.mark.parametrize(
    ("dataset", "loss"),
    [("online_products", "margin"), ("online_products", "oproxy"), ("inshop", "multisimilarity")],
)
def test_baselines_of_other_benchmarks_run_dry(source, tmp_path, caplog, dataset, loss):
    command, *_ = commands("baselines", DATASETS=dataset, LOSSES=loss)
    scores = run_dry(source, tmp_path, caplog, *command, "--bs", "8")
    assert 0 <= scores["test/embeds/e_recall@1"] <= 1
