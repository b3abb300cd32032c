"""Flags: published names and defaults, agreement with the registries, refusals that help."""

import json
import shlex
import sys

import pytest

import parameters
from batchminer import MINERS
from criteria import CRITERIA, LanguageDistillation
from datasampler import SAMPLERS
from datasets import RECIPES, fill_by_recipe
from language import SCOPES, SEVERAL, SOURCES
from language.guide import LanguageGuide
from language.search import Options
from utilities.registry import hyperparameters
from utilities.unknown_words import FAMILIAR


def loaded(registry):
    return {name: row.load() for name, row in registry.items()}


def test_losses_need_what_their_classes_read():
    """Those of views take two or more of them, those of labels take one and read embeddings."""
    for name, criterion in loaded(CRITERIA).items():
        labels, views = name in parameters.LABEL_LOSSES, name in parameters.VIEW_LOSSES
        assert views == (criterion.n_views > 1)
        assert labels == (criterion.reads == "embeds")
        assert labels != (views or name in parameters.CAPTION_LOSSES)


@pytest.mark.parametrize(
    ("prefix", "registry"), [("loss", CRITERIA), ("miner", MINERS)], ids=["loss", "miner"]
)
def test_flags_agree_with_constructors(prefix, registry):
    """Each hyperparameter has its flag with the same default, and each flag its hyperparameter."""
    args = vars(parameters.parse([]))
    expected = {
        f"{prefix}_{name}_{key}": default
        for name, component in loaded(registry).items()
        for key, default in hyperparameters(component).items()
    }
    flags = {key: value for key, value in args.items() if key.startswith(f"{prefix}_")}
    assert flags == expected


def test_sampler_flags_agree_with_constructors_and_the_search_for_partners():
    """Some flags serve several samplers; those of partners found beforehand go to the search."""
    args = vars(parameters.parse([]))
    expected = {
        f"data_{key}": default
        for sampler in loaded(SAMPLERS).values()
        for key, default in hyperparameters(sampler).items()
    }
    options = Options()
    expected |= {
        "data_sampler": "class_random", "data_pairs_by": "language", "data_pairs_checkpoint": None,
        "data_pairs_from": None,
        "data_pairs_k": options.k, "data_pairs_scope": options.scope,
        "data_pairs_distinct": options.distinct, "data_pairs_csls": options.csls,
    }  # fmt: skip
    assert {key: value for key, value in args.items() if key.startswith("data_")} == expected
    assert {"data_pairs_threshold", "data_pairs_self"} <= set(expected)
    rows = {flag.name: flag for group in parameters.FLAGS.values() for flag in group}
    assert rows["data_pairs_scope"].type.names == SCOPES
    assert rows["language_words"].type.names == SOURCES
    assert rows["language_several"].type.names == (*SEVERAL,)


def test_samplers_of_one_flag_and_the_distillation_agree_on_its_default():
    args = parameters.parse(["--dataset", "cub200"])
    fill_by_recipe(args)
    for prefix, components in (
        ("data", loaded(SAMPLERS).values()),
        ("language", [LanguageDistillation, LanguageGuide]),
    ):
        for component in components:
            for key, default in hyperparameters(component).items():
                assert getattr(args, f"{prefix}_{key}") == default


def test_published_defaults():
    """Those that a dataset may change are None until its recipe, here cub200's, fills them in."""
    args = parameters.parse(["--dataset", "cub200"])
    filled, why = fill_by_recipe(args)
    assert set(filled) == {
        "arch", "image_size", "language_model", "language_words", "language_pseudoclass_model",
        "language_prompt", "language_shift", "language_proxy_w",
        "bs", "n_epochs", "max_steps", "optim", "lr", "lr_base_bs", "decay", "scheduler",
        "warmup_steps", "embed_dim", "embed_init", "fc_lr", "samples_per_class",
        "evaluate_every", "evaluation_metrics", "evaluation_language_model", "evaluation_datasets",
    }  # fmt: skip
    assert why.startswith("the published setting")
    published = {
        "bs": 112, "samples_per_class": 2, "fc_lr": -1, "decay": 4e-4, "optim": "adam",
        "scheduler": "step", "tau": [10000], "gamma": 0.3, "warmup": 0, "embed_dim": 128,
        "loss": "margin", "batch_mining": "distance", "data_sampler": "class_random",
        "language_distill_w": 0, "language_shift": 1, "language_temp": 1, "language_delay": 0,
        "language_distill_dir": "backward", "language_pseudoclass_topk": 5, "seed": 0, "kernels": 6,
        "savename": "group_plus_seed", "storage_metrics": ["e_recall@1"], "lr": 1e-5,
        "n_epochs": 150, "max_steps": 0, "lr_base_bs": 0, "warmup_steps": 0, "augmentation": "base",
        "image_size": 224, "arch": "resnet50_frozen_normalize", "language_model": "clip",
        "language_words": "classnames", "evaluations": ["retrieval"], "evaluation_datasets": [],
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published


def test_a_recipe_adds_the_term_of_words_to_guided_runs_alone():
    for typed, weight in (
        ([], 0), (["--language_distill_w", "7.5"], 0.03),
        (["--language_distill_w", "7.5", "--language_proxy_w", "0"], 0),
        (["--language_proxy_w", "0.1"], 0.1),
        (["--language_distill_w", "7.5", "--language_words", "pseudolabels"], 0.03),
        (["--language_distill_w", "7.5", "--language_words", "captions"], 0),
        (["--language_distill_w", "7.5", "--language_prompt", "{}"], 0),  # as older runs set it
        (["--language_distill_w", "7.5", "--language_shift", "0"], 0),
        (["--language_distill_w", "7.5", "--language_words", "pseudolabels",
          "--language_pseudoclass_level", "sample"], 0),
    ):  # fmt: skip
        args = parameters.parse(["--dataset", "emoji", *typed])
        fill_by_recipe(args)
        assert args.language_proxy_w == weight
        assert args.language_shift == 0 and args.language_prompt == ["{}"]


@pytest.mark.parametrize("dataset", RECIPES)
def test_flags_go_before_any_recipe(dataset):
    typed = [
        *("--dataset", dataset, "--optim", "sgd", "--decay", "0.5", "--scheduler", "cosine"),
        *("--max_steps", "7", "--warmup_steps", "3", "--lr_base_bs", "9", "--language_words"),
        *("captions", "--evaluation_datasets", "dtd", "mine:groups"),
    ]
    args = parameters.parse(typed)
    filled, _ = fill_by_recipe(args)
    assert (args.optim, args.decay, args.scheduler) == ("sgd", 0.5, "cosine")
    assert (args.max_steps, args.warmup_steps, args.lr_base_bs) == (7, 3, 9)
    assert args.language_words == "captions" and args.evaluation_datasets == ["dtd", "mine:groups"]
    assert filled and not set(filled) & set(parameters.given(typed))


@pytest.mark.parametrize(
    ("typed", "sampler", "augmentation"),
    [
        ("", "class_random", "base"),
        ("--data_sampler random", "random", "base"),
        ("--loss simclr", "augmented_pairs", "simclr"),
        ("--loss simclr --data_sampler language_pairs", "language_pairs", "global_crop"),
        ("--loss byol --data_sampler random_pairs", "random_pairs", "global_crop"),
        ("--loss clip", "augmented_pairs", "global_crop"),
        ("--loss declip_nns --data_sampler random", "random", "global_crop"),
        ("--loss slip", "augmented_pairs", "slip"),
        ("--loss lgslip", "augmented_pairs", "simclr"),
        ("--loss lgslip --data_sampler language_pairs", "language_pairs", "global_crop"),
        ("--loss nnclr --augmentation base", "augmented_pairs", "base"),
        ("--loss slip --augmentation simclr", "augmented_pairs", "simclr"),
    ],
)
def test_sampler_and_augmentation_follow_the_objective(typed, sampler, augmentation):
    args = parameters.parse(shlex.split(typed))
    assert (args.data_sampler, args.augmentation) == (sampler, augmentation)


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
        ("--loss_margin_beta=nan", "nan is not finite"),
        ("--loss_softtriplet_margin_delta=inf", "inf is not finite"),
        ("--language_shift=-inf", "-inf is not finite"),
        ("--loss_margin_beta 1e300", "1e300 is too large; it must be at most 1,000,000,000"),
        ("--language_shift=-1e39", "-1e39 is too large"),
        ("--language_temp 1e-46", "1e-46 is too small; it must be at least 1e-30"),
        ("--bs 2147483648", "2147483648 is too large; it must be at most 1,000,000"),
        ("--embed_dim 9999999999999", "is too large"),
        ("--image_size 9999999999", "is too large"),
        ("--loss_s2sd_target_dims 64 2147483648", "2147483648 is too large"),
        (f"--kernels {10**400}", "is too large; it must be at most 4,294,967,295"),
        ("--n_epochs 99999999999", "is too large"),
        ("--seed 4294967296", "4294967296 is too large; it must be at most 4,294,967,295"),
        ("--bs 1.5", "'1.5' is not a whole number"),
        ("--language_control permuted", "--language_distill_w, such as 7.5, or --language_proxy_w"),
        ("--language_proxy_vectors free", "--language_proxy_w; set it, such as 0.03"),
        ("--train_classes 9 --use_tv_split --tv_split_by_samples", "drop one of them"),
        (
            "--language_control permuted --language_proxy_w 0.1 --language_proxy_vectors free",
            "replaces words, but no term reads any",
        ),
        ("--language_pseudoclass --language_words captions", "is given, too; drop one"),
        ("--language_words nope", "nope is unknown; known, closest first: captions, classnames, "),
        ("--language_words classname --language_distill_w 1", "closest first: classnames, "),
        ("--language_words words.jsn", "pseudolabels, or a .json file"),
        ("--language_prompt photo", "--language_prompt must contain {}"),
        ("--language_prompt {} 'a {} {}'", "--language_prompt must contain {}, the place of the"),
        (
            "--language_prompt {} 'a {}' --language_words descriptions",
            "--language_prompt has 2 prompts, but --language_words descriptions takes none",
        ),
        ("--language_several mean", "needs several words of a class, by --language_words desc"),
        ("--language_several mean --language_words names+tags", "got --language_words names+tags"),
        ("--weights x.pth --not_pretrained", "exclude each other"),
        ("--no_test_metrics --no_train_metrics", "--use_tv_split"),
        ("--patience 2 --evaluations knn", "or add retrieval to --evaluations knn"),
        ("--test_classes 0 --no_train_metrics", "--test_classes 0 --no_train_metrics leave"),
        ("--test_fraction 0 --no_train_metrics", "--test_fraction 0 --no_train_metrics leave"),
        ("--test_fraction 0.2 --test_classes 3", "both choose the test classes; drop one of them"),
        ("--test_fraction 1.2", "1.2 is out of range"),
        ("--warmup 5 --n_epochs 3", "at most --warmup 3"),
        ("--evaluate_only", "--checkpoint go together"),
        ("--checkpoint runs/a", "--checkpoint go together"),
        ("--loss supcon --samples_per_class 1", "use 2 or more"),
        ("--loss softmax --xbm_size 64", "--xbm_size 64 needs a loss over pairs of images"),
        ("--data_sampler d2_coreset --data_batchmatch_bigbs 64 --bs 90", "at least --bs 90; got"),
        ("--data_mb_mom 1", "--data_mb_mom must be in [0, 1), or -1 to disable; got 1"),
        ("--data_sampler_lowproj_dim 0", "must be at least 1, or -1 to disable; got 0"),
        ("--batch_mining parametric", "hold some out with --use_tv_split"),
        ("--batch_mining parametric --use_tv_split --loss supcon", "no effect on --loss supcon"),
        ("--batch_mining parametric --use_tv_split --loss s2sd", "has no effect on --loss s2sd"),
        ("--loss s2sd --loss_s2sd_source s2sd", "s2sd is unknown"),
        ("--loss s2sd --loss_s2sd_target simclr", "simclr is unknown"),
        ("--loss simclr --data_sampler class_random", "--loss simclr compares two views"),
        ("--loss slip --data_sampler random", "use one of augmented_pairs, language_pairs, random"),
        ("--loss margin --data_sampler language_pairs", "--loss margin compares labels"),
        ("--loss clip --data_sampler language_pairs", "use augmented_pairs, or --loss lgslip"),
        ("--loss declip_nns --data_sampler random_pairs", "--data_sampler random_pairs yields two"),
        ("--loss simclr --augmentation slip", "not those of --loss simclr; use global_crop or"),
        ("--augmentation slip", "--augmentation slip makes the three views of --loss slip"),
        ("--max_steps 9 --n_epochs 3", "--max_steps 9 and --n_epochs 3 both set the length"),
        (
            "--data_class_replacement --data_sampler class_related",
            "is for --data_sampler class_random; got --data_sampler class_related",
        ),
        ("--data_class_replacement --data_sampler d2_coreset", "got --data_sampler d2_coreset"),
        ("--no_zero_init_last", "add --not_pretrained"),
        ("--loss simclr --xbm_size 64", "--loss simclr is not; use one of"),
        ("--data_pairs_threshold 1.5", "1.5 is out of range; it must be at least -1 and at most 1"),
        ("--data_pairs_self 2", "2 is out of range"),
        ("--data_pairs_k 0", "0 is out of range; it must be at least 1"),
        ("--data_pairs_scope month", "known, closest first: "),
        ("--loss_clip_text frozn", "closest first: frozen"),
        ("--loss_byol_momentum 1.1", "at least 0 and at most 1"),
        ("--evaluations probe", "closest first: linear_probe"),
        ("--max_steps -1", "-1 is out of range"),
        ("--tv_split_perc 1.5 --use_tv_split", "out of range"),
        ("--cv_folds 1", "--cv_folds must be 0 or at least 2; got 1"),
        ("--cv_folds 4 --cv_fold 4", "must be below --cv_folds; got --cv_fold 4 --cv_folds 4"),
        ("--data_pairs_csls -1", "-1 is out of range"),
        ("--data_pairs_csls 10 --data_pairs_from DIR", "--csls to python -m language.neighbours"),
        ("--cv_fold 2", "must be below --cv_folds; got --cv_fold 2 --cv_folds 0"),
        ("--cv_folds 4 --use_tv_split", "both hold out training classes"),
        ("--config nowhere.yaml", "nowhere.yaml: --config cannot be read"),
    ],
)  # fmt: skip
def test_refusals_name_flag_value_and_remedy(flags, says, capsys):
    with pytest.raises(SystemExit) as stop:
        parameters.parse(shlex.split(flags))
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("shop", "shop follows no flag; did you mean --dataset shop --source_path data?"),
        ("data/shop/", "did you mean --dataset shop --source_path data?"),
        ("shop --source_path elsewhere", "shop follows no flag; did you mean --dataset shop --so"),
        ("mine --source_path elsewhere", "mine follows no flag; did you mean --dataset mine?"),
        ("built --lr 1e-3", "built follows no flag; did you mean --dataset built?"),
        ("typo", "typo follows no flag; a dataset is given as --dataset NAME"),
        ("--batch-size 3", "--batch-size is not a flag; did you mean --batch_size?"),
        ("-bs 3", "-bs is not a flag; did you mean --bs?"),
        ("--optimizer=sgd", "--optimizer=sgd is not a flag; did you mean --optim?"),
    ],
)
def test_a_bare_word_or_a_familiar_name_is_answered_with_the_flag(
    typed, says, tmp_path, own_cache, monkeypatch, capsys
):
    for folder in ("data/shop", "elsewhere/mine"):
        (tmp_path / folder / "images").mkdir(parents=True)
    (own_cache / "datasets" / "built").mkdir(parents=True)
    (own_cache / "datasets" / "built" / "manifest.csv").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parameters.parse(shlex.split(typed))
    assert says in capsys.readouterr().err


def test_all_unknown_words_are_reported_at_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "shop" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parameters.parse(shlex.split("--langage_model minilm --bs 8 --nmu_workers 2 3 shop"))
    *_, first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert first.endswith("3 words are unknown")  # and not the values 2 and 3
    assert second.startswith("  --langage_model is not a flag; did you mean --language_model")
    assert third.startswith("  --nmu_workers is not a flag")
    assert fourth == "  shop follows no flag; did you mean --dataset shop --source_path .?"


def test_flags_of_other_programs_are_those_of_this_one(capsys):
    args = parameters.parse(
        shlex.split("--batch_size=8 --epochs 3 --learning_rate 0.1 --model resnet18")
    )
    assert (args.bs, args.n_epochs, args.lr, args.arch) == (8, 3, 0.1, "resnet18")
    assert not {"batch_size", "epochs", "learning_rate", "model"} & vars(args).keys()
    known = {flag.name for group in parameters.FLAGS.values() for flag in group}
    assert set(FAMILIAR.values()) <= known and not set(FAMILIAR) & known


def test_negative_shifts_and_several_prompts_are_read():
    words = "--language_shift -0.5 --language_prompt {} 'a photo of a {}' --language_centre"
    args = parameters.parse(shlex.split(f"{words} --language_several mean --language_words w.json"))
    assert args.language_shift == -0.5 and args.language_prompt == ["{}", "a photo of a {}"]


def test_changed_flags_are_neither_defaults_nor_chosen_for_the_objective():
    args = parameters.parse(["--loss", "simclr", "--lr", "0.1", "--gamma", "0.3", "--kernels", "1"])
    args.decay, args.arch = 0.5, "resnet18"  # the second by a recipe
    assert args.augmentation == "simclr"
    assert parameters.changed(args, {"arch"}) == {"loss", "lr", "decay"}
    assert parameters.changed(parameters.parse([]), ()) == set()


def test_given_flags_are_those_that_were_typed():
    typed = parameters.given(["--bs", "8", "--no_report", "--tau", "3", "4"])
    assert typed == {"bs": 8, "no_report": True, "tau": [3, 4]}


def test_validation_classes_of_folds_serve_as_those_of_the_split():
    folds = (
        "--cv_folds 5 --cv_fold 4 --no_test_metrics --no_train_metrics --batch_mining parametric"
    )
    args = parameters.parse(shlex.split(folds))
    assert (args.cv_folds, args.cv_fold) == (5, 4)
    assert parameters.run_name(args) == "default_s0_f4"


# --------------------------------------------------------------------------------------------------
# Flags from a file
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "typed",
    [
        "",
        "--dataset cub200 --loss s2sd --loss_s2sd_pool_aggr --loss_s2sd_target_dims 8 16",
        "--fc_lr=-1e-05 --tau 3 4 '--language_prompt=-{}' --no_norm_decay --lr 3e-05",
        "--max_steps 9 --use_float16 --language_pseudoclass --log_online --tensorboard",
        "--loss simclr --data_pairs_threshold -0.5 --group=-x --weights a.pth --optim sgd",
        "--use_tv_split --evaluation_metrics e_recall@1 nmi --loss_softtriplet_lambda 3",
    ],
)
def test_a_runs_config_gives_its_flags_again(typed, tmp_path):
    """As main.py writes it: with what recipe, device and length of the sampler have filled in."""
    args = parameters.parse(shlex.split(typed))
    whole = parameters.parse(shlex.split(typed))
    fill_by_recipe(whole)
    whole.n_epochs = 17 if whole.max_steps else whole.n_epochs
    (tmp_path / "config.json").write_text(json.dumps({"flags": vars(whole), "git": None}))
    for place in (tmp_path, tmp_path / "config.json"):
        again = parameters.parse(["--config", str(place)])
        worked_out = {"n_epochs"} if args.max_steps else set()
        found, kept = (json.loads(json.dumps(vars(flags))) for flags in (again, whole))
        differ = {name for name, value in kept.items() if value not in (found[name], [])}
        assert differ == worked_out
        assert all(vars(again)[name] is None for name in worked_out)


def test_other_names_of_older_runs_are_read(tmp_path):
    flags = {
        "use_float16": True,
        "precision": "bf16",
        "log_online": True,
        "wandb_mode": "online",
        "language_pseudoclass": False,
        "language_words": "captions",
        "skip_finished": True,
    }
    (tmp_path / "config.json").write_text(json.dumps({"flags": flags}))
    args = parameters.parse(["--config", str(tmp_path)])
    assert (args.precision, args.wandb_mode, args.language_words) == ("half", "online", "captions")
    assert not args.resume


def test_what_a_machine_decided_is_not_taken_over(tmp_path):
    args = parameters.parse(shlex.split("--gpu 3 --kernels 1 --skip_finished --resume --seed 5"))
    (tmp_path / "config.json").write_text(json.dumps({"flags": vars(args)}))
    again = parameters.parse(["--config", str(tmp_path)])
    assert (again.gpu, again.kernels, again.resume) == (0, 6, False)
    assert again.seed == 5


YAML = """
dataset: cub200        # as on the command line, without the dashes
loss: multisimilarity
lr: 1e-5
tau: [100, 150]
loss_softtriplet_lambda: 4
language_pseudoclass: true
no_report: false
weights: null
max_steps: 300
"""


@pytest.fixture
def config(tmp_path):
    def write(text, name="flags.yaml"):
        (tmp_path / name).write_text(text)
        return ["--config", str(tmp_path / name)]

    return write


def test_the_command_line_goes_before_the_file(config):
    words = config(YAML)
    args = parameters.parse(words)
    assert (args.dataset, args.lr, args.tau, args.max_steps) == ("cub200", 1e-5, [100, 150], 300)
    assert args.loss_softtriplet_lambda_ == 4 and args.language_words == "pseudolabels"
    assert not args.no_report and args.weights is None and "config" not in vars(args)
    typed = ["--lr", "0.1", *words, "--n_epochs", "3", "--language_words", "captions"]
    args = parameters.parse(typed)
    assert (args.lr, args.n_epochs, args.max_steps) == (0.1, 3, None)
    assert args.language_words == "captions" and args.tau == [100, 150]
    named = parameters.given(typed)
    assert named["lr"] == 0.1 and named["loss"] == "multisimilarity" and "seed" not in named
    assert "max_steps" not in named and not {"lr", "loss"} & set(fill_by_recipe(args)[0])


@pytest.mark.parametrize("text", ["", "{}", "flags: {}"])
def test_a_file_may_be_empty(config, text):
    assert vars(parameters.parse(config(text))) == vars(parameters.parse([]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("langage_distill_w: 3", "langage_distill_w is not a flag; did you mean language_distill_"),
        ("config: other.yaml", "config is not a flag"),
        ("loss: margn", "--loss: margn is unknown; known, closest first: margin"),
        ("lr: 0", "--lr/--learning_rate: 0 is out of range; it must be above 0"),
        ("bs: 1.5", "--bs/--batch_size: '1.5' is not a whole number"),
        ("bs: [8, 16]", "--bs takes one number or text; got [8, 16]"),
        ("seed: yes", "--seed takes one number or text; got True"),
        ("bs: {a: 1}", "--bs takes one number or text; got {'a': 1}"),
        ("resume: 1", "--resume is a switch; write true or false instead of 1"),
        ("bs: [1, [2]]", "--bs takes one number or text; got [1, [2]]"),
        ("tau: [1, [2]]", "--tau takes numbers or texts; got [1, [2]]"),
        ("evaluation_metrics: [{nmi: 1}]", "--evaluation_metrics takes numbers or texts; got"),
        ("arch: [resnet50]", "--arch takes one number or text; got ['resnet50']"),
        ("- lr", "--config must hold an object; got a list"),
        ("lr", "--config must hold an object; got a text"),
        ("lr: [", "--config is not valid YAML"),
        ("lr: 1\nlr: 2", "--config is not valid YAML: the key 'lr' appears twice"),
        ("batch_size: 0", "--bs/--batch_size: 0 is out of range"),
        ("loss: &a margin\ngroup: *a", "--config is not valid YAML: an alias (*name) must be"),
        ("group: &a [*a]", "--config is not valid YAML: an alias (*name) must be"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nloss: [*b, *b]", "--config is not valid YAML: an alias"),
        ("lr: !!timestamp 2001-99-99", "--config is not valid YAML: month must be"),
        ("lr: !!bool foo", "--config is not valid YAML: 'foo'"),
        ("? [a]\n: b", "--config is not valid YAML: unhashable"),
        ("loss: " + "[" * 5000, "--config is nested too deeply"),
    ],
)
def test_refusals_name_the_file(config, text, says, capsys):
    words = config(text)
    with pytest.raises(SystemExit) as stop:
        parameters.parse(words)
    message = capsys.readouterr().err.replace("argument ", "")
    assert stop.value.code == 2 and f"flags.yaml: {says}" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "--config is nested too deeply to be read. It holds flags, in lines such"),
        ('{"lr": ' + "[" * 900 + "]" * 900 + "}", "--lr takes one number or text; got [[[[[["),
        ('{"lr": 1, "lr": 2}', "--config is not JSON: the key 'lr' appears twice"),
        ("[]", "--config must hold an object; got a list"),
        ('{"flags": {"loss": ["margin"]}}', "--loss takes one number or text; got ['margin']"),
        ('{"flags": [1]}', "flags is not a flag"),
    ],
)
def test_json_of_another_shape_is_refused_by_file(config, text, says, capsys):
    words = config(text, "flags.json")
    with pytest.raises(SystemExit) as stop:
        parameters.parse(words)
    assert stop.value.code == 2 and f"flags.json: {says}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["flags.json", "flags.yaml"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read(config, name, encoding):
    words = config("", name)
    with open(words[1], "w", encoding=encoding) as file:  # noqa: PTH123
        file.write('{"seed": 4}')
    assert parameters.parse(words).seed == 4


def test_flags_of_the_guidance_without_it_are_named():
    """Those that nothing else reads; not those that the dataset's recipe filled in."""

    def summary(*typed):
        args = parameters.parse(["--dataset", "mine", *typed])
        chosen = fill_by_recipe(args)
        sizes = {"mine.train": "1 image"}
        return parameters.summary(args, chosen, {}, sizes, "cpu", "runs/a", (1, 1))

    typed = ("--language_words", "captions", "--language_temp", "2", "--language_prompt", "{}")
    said = "guidance: none, ignored without it: --language_words captions --language_temp 2.0"
    assert said in summary(*typed) and "--language_prompt" not in summary(*typed)
    related = summary(*typed, "--data_sampler", "class_related")
    assert "ignored without it: --language_temp 2.0" in related
    assert "effect" not in summary() and "effect" not in summary(
        *typed, "--language_distill_w", "1"
    )


def test_json_needs_no_yaml(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)  # an import would raise
    assert parameters.parse(config('{"seed": 4}', "flags.json")).seed == 4
    for text, name, says in (
        ("seed: 4", "flags.json", "in a file that ends in .yaml"),
        ("seed: 4", "flags.yml", "pip install pyyaml"),
    ):
        with pytest.raises(SystemExit):
            parameters.parse(config(text, name))
        assert says in capsys.readouterr().err
