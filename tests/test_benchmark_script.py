"""The benchmark script has every published command, and chooses and starts rows as it should."""

import os
import shlex
import subprocess

import pytest

import parameters
from tests.runs import ROOT, benchmark_script

ROWS = {
    "quick_start": 5,
    "emoji": 4,
    "emoji_validation": 6,
    "emoji_long": 2,
    "emoji_curve": 30,
    "emoji_weights": 9,
    "league": 2 * len(parameters.LABEL_LOSSES),
    "openclipart": 9,
    "openclipart_scratch": 10,
    "redcaps": 6,
    "cub200": 8,
    "cars196": 8,
    "baselines": 3 * len(parameters.LABEL_LOSSES),
}


def runs(*words, **environment):
    """Return the flags of each command that the script prints, as main.py parses them."""
    done = benchmark_script(*words, **environment)
    assert done.returncode == 0, done.stderr
    return [parameters.parse(shlex.split(line)[3:]) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("group", ROWS)
def test_benchmark_commands_parse(group):
    """Every command of the script, with its quoting, is one that main.py accepts."""
    rows = runs(group, "7", "--", "--lr", "1e-5")
    datasets = {
        "quick_start": {"emoji"},
        "league": {"emoji"},
        "baselines": {"cub200", "cars196", "online_products"},
    }
    assert all(row.seed == 7 and row.lr == 1e-5 and row.resume for row in rows)
    assert {row.dataset for row in rows} == datasets.get(group, {group.partition("_")[0]})
    folders = {(row.dataset, parameters.run_name(row)) for row in rows}
    assert len(folders) == len(rows) == ROWS[group]


def test_all_groups_are_the_groups():
    lines = benchmark_script("all", "7", "--list").stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, sum(ROWS.values()) + 1))


def test_published_commands_are_the_published_ones():
    """Roth et al., CVPR 2022: dimensions, loss, seed, epochs, batch, w, S2SD's w, example step."""
    expected = {
        "cub200": [
            (128, "multisimilarity", 2, 200, 90, 7.5, None, 28, 0.25),
            (128, "s2sd", 2, 300, 108, 1.5, 125, 144, 0.5),
            (512, "multisimilarity", 0, 150, 90, 10, None, 34, 0.25),
            (512, "s2sd", 0, 250, 108, 2, 60, 29, 0.5),
        ],
        "cars196": [
            (128, "multisimilarity", 1, 250, 108, 6, None, 102, 0.25),
            (128, "s2sd", 0, 250, 108, 2.5, 50, 110, 0.25),
            (512, "multisimilarity", 0, 250, 108, 5.5, None, 107, 0.25),
            (512, "s2sd", 0, 300, 108, 2, 40, 165, 0.1),
        ],
    }
    for dataset, published in expected.items():
        rows = runs(dataset)
        assert all(
            row.dataset == dataset and row.language_words == "pseudolabels"
            and row.loss_multisimilarity_released and row.samples_per_class == 2
            and row.data_sampler == "class_random" and row.data_class_replacement
            and row.arch == "resnet50_frozen_normalize"
            for row in rows
        )  # fmt: skip
        found = []
        for constant, step in zip(rows[::2], rows[1::2], strict=True):
            differ = {k for k, v in vars(constant).items() if vars(step)[k] != v}
            assert differ == {"group", "tau", "gamma"} and step.group == f"{constant.group}_step"
            assert (constant.tau, constant.gamma) == ([constant.n_epochs], 1)
            s2sd = None
            if constant.loss == "s2sd":
                s2sd = constant.loss_s2sd_feat_w
                assert constant.loss_s2sd_pool_aggr and constant.loss_s2sd_feat_distill
                assert constant.loss_s2sd_feat_distill_delay == 0
                assert constant.loss_s2sd_source == constant.loss_s2sd_target == "multisimilarity"
            found.append(
                (constant.embed_dim, constant.loss, constant.seed, constant.n_epochs, constant.bs,
                 constant.language_distill_w, s2sd, *step.tau, step.gamma)
            )  # fmt: skip
        assert found == published


def test_self_supervision_is_published_with_three_layers_and_first_norms_at_one():
    """El Banani et al., CVPR 2023: but SimSiam's residual blocks start at zero."""
    for row in runs("redcaps"):
        assert row.loss_simclr_layers == 3 and row.loss_simclr_hidden_dim == 2048
        assert row.not_pretrained and row.no_zero_init_last == (row.loss != "simsiam")


def test_baselines_draw_and_mine_as_released():
    """Roth et al., ICML 2020: with replacement, and distance mining has no upper cutoff."""
    for row in runs("baselines", "0", DATASETS="cub200"):
        assert row.data_class_replacement and row.batch_mining == "distance"
        mined = row.loss in parameters.MINED_LOSSES
        assert row.miner_distance_upper_cutoff == (2.1 if mined else 1.4)


def test_the_league_has_every_loss_with_and_without_words():
    named = [(run.loss, run.language_distill_w, run.group) for run in runs("league")]
    expected = [
        row
        for loss in parameters.LABEL_LOSSES
        for row in ((loss, 0.0, f"league_{loss}"), (loss, 7.5, f"league_{loss}_guided"))
    ]
    assert sorted(named) == sorted(expected)


def test_baselines_are_chosen_by_the_environment():
    rows = runs("baselines", "3", LOSSES="margin oproxy", DATASETS="cars196")
    assert [(row.dataset, row.loss, row.language_distill_w) for row in rows] == [
        ("cars196", "margin", 0.0),
        ("cars196", "oproxy", 0.0),
    ]


def test_one_row_runs_by_its_name_by_its_number_or_as_a_job_of_an_array():
    every = runs("emoji", "4", "5")
    assert [(row.group, row.seed) for row in every][4:] == [
        ("baseline", 5), ("classnames", 5), ("pseudolabels", 5), ("permuted", 5)
    ]  # fmt: skip
    assert runs("emoji", "4", "5", "--row", "classnames") == [every[1], every[5]]
    assert runs("emoji", "4", "5", "--row", "6") == [every[5]]
    lines = benchmark_script("emoji", "4", "5", "--list").stdout.splitlines()
    assert lines[5].split()[:2] == ["6", "classnames"] and len(lines) == 8
    for variable in ("JOB_INDEX", "SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "SGE_TASK_ID"):
        assert runs("emoji", "4", "5", "--array", **{variable: "6"}) == [every[5]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("cub", "unknown group: cub"),
        ("emoji --row clasnames", "emoji has no row clasnames; --list shows its 12 rows"),
        ("emoji --row 13", "emoji has no row 13"),
        ("emoji --row", "--row needs a name or a number"),
        ("emoji --array", "no job scheduler set an index"),
        ("emoji --log_online", "--log_online is no seed and no option; flags of main.py follow --"),
    ],
)
def test_refusals_of_the_script(words, says):
    done = benchmark_script(*words.split())
    assert done.returncode == 2 and says in done.stderr and "main.py" not in done.stdout


def test_parallel_runs_of_the_script_fail_where_one_fails(tmp_path):
    """JOBS=2 runs all of them, and its status says that one did not succeed."""
    interpreter = tmp_path / "python"
    interpreter.write_text(
        '#!/bin/sh\ncase "$*" in\n-c*) echo 2 ;;\n'
        f'*) echo "$OMP_NUM_THREADS $*" >> {tmp_path}/ran\n'
        '   case "$*" in *_guided*) exit 1 ;; esac ;;\nesac\n'
    )
    interpreter.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"PYTHON": str(interpreter), "JOBS": "2", "LOSSES": "circle supcon"}
    done = subprocess.run(
        ["bash", "language_guidance_benchmark_runs.sh", "league"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == 4 and all(line.startswith("1 main.py") for line in ran)
    assert done.returncode == 1
