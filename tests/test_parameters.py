"""Flags: published names and defaults, agreement with the registries, refusals that help."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import parameters
from batchminer import MINERS
from criteria import CRITERIA, LanguageDistillation
from datasampler import SAMPLERS
from utilities.registry import hyperparameters

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("choices", "registry"),
    [
        (parameters.LOSSES, CRITERIA),
        (parameters.MINERS, MINERS),
        (parameters.SAMPLERS, SAMPLERS),
    ],
)
def test_choices_are_the_registry(choices, registry):
    assert sorted(choices) == sorted(registry)


@pytest.mark.parametrize(
    ("prefix", "registry"), [("loss", CRITERIA), ("miner", MINERS)], ids=["loss", "miner"]
)
def test_flags_agree_with_constructors(prefix, registry):
    """Each hyperparameter has its flag with the same default, and each flag its hyperparameter."""
    args = vars(parameters.parse([]))
    expected = {
        f"{prefix}_{name}_{key}": default
        for name, component in registry.items()
        for key, default in hyperparameters(component).items()
    }
    flags = {key: value for key, value in args.items() if key.startswith(f"{prefix}_")}
    assert flags == expected


def test_language_flags_agree_with_the_distillation():
    args = vars(parameters.parse([]))
    for key, default in hyperparameters(LanguageDistillation).items():
        assert args[f"language_{key}"] == default


def test_published_defaults():
    args = parameters.parse([])
    published = {
        "bs": 112, "samples_per_class": 2, "fc_lr": -1, "decay": 4e-4, "optim": "adam",
        "scheduler": "step", "tau": [10000], "gamma": 0.3, "warmup": 0, "embed_dim": 128,
        "loss": "margin", "batch_mining": "distance", "data_sampler": "class_random",
        "language_distill_w": 0, "language_shift": 1, "language_temp": 1, "language_delay": 0,
        "language_distill_dir": "backward", "language_pseudoclass_topk": 5, "seed": 0, "kernels": 6,
        "savename": "group_plus_seed", "storage_metrics": ["e_recall@1"], "evaltypes": ["embeds"],
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published


def test_a_published_command_parses():
    args = parameters.parse(
        shlex.split(
            "--dataset cub200 --kernels 6 --source_path data --n_epochs 200 --tau 200 --gamma 1 "
            "--log_online --project LANG --group CUB_128 --seed 2 --gpu 0 --bs 90 "
            "--samples_per_class 2 --loss multisimilarity --batch_mining distance --embed_dim 128 "
            "--arch resnet50_frozen_normalize --no_train_metrics --language_distill_w 7.5 "
            "--language_pseudoclass --evaluate_on_cpu"
        )
    )
    assert args.language_words == "pseudolabels"
    assert args.wandb_mode == "online"
    assert args.language_distill_w == 7.5


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--bs 90 --samples_per_class 4", "does not divide --bs 90; use --bs 88 or 92"),
        ("--bs 2 --samples_per_class 4", "use --bs 4"),
        ("--loss margn", "margn is unknown; known, closest first: margin"),
        ("--batch_mining semi", "closest first: semihard"),
        ("--langage_distill_w 3", "did you mean --language_distill_w"),
        ("--lr 0", "0 is out of range; it must be above 0"),
        ("--lr nan", "nan is not finite"),
        ("--bs 1.5", "'1.5' is not a whole number"),
        ("--language_control permuted", "--language_distill_w 0"),
        ("--language_pseudoclass --language_words captions", "give one of the two"),
        ("--language_prompt photo", "--language_prompt 'photo'"),
        ("--weights x.pth --not_pretrained", "exclude each other"),
        ("--no_test_metrics --no_train_metrics", "--use_tv_split"),
        ("--warmup 5 --n_epochs 3", "at most --warmup 3"),
        ("--evaluate_only", "--checkpoint go together"),
        ("--checkpoint runs/a", "--checkpoint go together"),
        ("--loss supcon --samples_per_class 1", "use 2 or more"),
        ("--loss softmax --xbm_size 64", "--xbm_size 64 keeps images to compare with"),
        ("--data_sampler d2_coreset --data_batchmatch_bigbs 64", "bigbs 112 or more"),
        ("--data_mb_mom 1", "use one from 0 to below 1"),
        ("--data_sampler_lowproj_dim 0", "use -1 for no projection"),
        ("--batch_mining parametric", "hold some out with --use_tv_split"),
        ("--batch_mining parametric --use_tv_split --loss supcon", "--loss supcon mines nothing"),
        ("--batch_mining parametric --use_tv_split --loss s2sd", "--loss s2sd mines nothing"),
        ("--loss s2sd --loss_s2sd_source s2sd", "s2sd is unknown"),
        ("--tv_split_perc 1.5 --use_tv_split", "out of range"),
    ],
)  # fmt: skip
def test_refusals_name_flag_value_and_remedy(flags, says, capsys):
    with pytest.raises(SystemExit) as stop:
        parameters.parse(shlex.split(flags))
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_given_flags_are_those_that_were_typed():
    typed = parameters.given(["--bs", "8", "--no_report", "--tau", "3", "4"])
    assert typed == {"bs": 8, "no_report": True, "tau": [3, 4]}


def test_help_needs_no_torch():
    """``main.py --help`` ends before torch is imported, whose import takes seconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--language_distill_w" in done.stdout
    assert "torch" not in done.stderr and "numpy" not in done.stderr
