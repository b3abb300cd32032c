import argparse
from dataclasses import fields

import pytest

import datasets
import parameters
from datasets import fill_by_recipe, splits
from datasets.recipes import fill


def test_a_name_of_one_s_own_gets_the_benchmarks_setting():
    own, benchmark = datasets.recipe("my_shoes"), datasets.recipe("cub200")
    assert own.why != benchmark.why
    assert (own.arch, own.image_size, own.language_model) == (
        "resnet50_frozen_normalize",
        224,
        "clip",
    )
    assert own.evaluation_metrics == benchmark.evaluation_metrics


def test_every_public_name_is_there():
    exported = [name for names in datasets._EXPORTED.values() for name in names]
    assert all(getattr(datasets, name) is not None for name in exported)


def test_captions_of_one_s_own_get_a_setting_for_captions():
    own = datasets.recipe("my_captions", captions=True)
    assert (own.language_words, own.optim, own.scheduler) == ("captions", "adamw", "warmup_cosine")
    assert datasets.recipe("openclipart", captions=True) is datasets.RECIPES["openclipart"]


@pytest.mark.parametrize("captions", [False, True])
@pytest.mark.parametrize("name", [*datasets.RECIPES, "my_shoes"])
def test_a_recipe_fills_what_is_open_with_what_the_flag_would_accept(name, captions):
    """A default that no flag would take could not be typed again by who wants to change it."""
    parser = parameters.build_parser()
    args = parser.parse_args(["--dataset", name])
    filled = fill(args, datasets.recipe(name, captions))
    typed = ["--dataset", name]
    for flag, value in filled.items():
        values = list(value) if isinstance(value, tuple) else [value]
        typed += [f"--{flag}", *map(str, values)] if values else []
    again = parser.parse_args(typed)
    again.evaluation_datasets = again.evaluation_datasets or []
    assert again == args


def test_a_recipe_leaves_what_is_given_and_knows_no_other_flags():
    args = argparse.Namespace(dataset="openclipart", lr=0.5, decay=None, seed=None)
    assert fill(args, datasets.recipe("openclipart")) == {"decay": 0.01}
    assert args == argparse.Namespace(dataset="openclipart", lr=0.5, decay=0.01, seed=None)


def test_every_default_of_a_recipe_has_its_flag():
    """But for the reason, and for the crops, which come with the images."""
    names = {field.name for field in fields(datasets.Recipe)}
    known = vars(parameters.build_parser().parse_args([]))
    assert names - set(known) == {"why", "crop_ratio", "train_scale"}
    assert all(known[name] is None for name in names & set(known))


def test_openclipart_is_read_by_its_captions_and_judged_on_emoji():
    chosen = datasets.recipe("openclipart")
    assert (chosen.language_words, chosen.evaluation_datasets) == ("captions", ("emoji",))
    emoji = datasets.recipe("emoji")
    for shared in ("image_size", "crop_ratio", "language_model", "evaluation_language_model"):
        assert getattr(chosen, shared) == getattr(emoji, shared)


@pytest.mark.parametrize("guidance", ["--language_distill_w 2", "--language_proxy_w 0.03"])
@pytest.mark.parametrize(
    ("more", "searched", "encoder"),
    [
        ("", True, "clip"),
        ("--language_model minilm", True, "minilm"),  # of which nothing else needs CLIP
        ("--language_model minilm --evaluation_language_model bert", True, "bert"),
        ("--dataset emoji --language_model bert", True, "minilm"),  # as emoji's other runs
        ("--language_words names+tags", True, "clip"),
        ("--evaluation_metrics mAP@R", False, "clip"),
        ("--evaluations knn", False, "clip"),
        ("--language_words pseudolabels", False, "clip"),  # of names that may say nothing
        ("--dataset openclipart", False, "minilm"),
    ],
)
def test_runs_guided_by_class_names_search_by_words(guidance, more, searched, encoder):
    parser = parameters.build_parser()
    args = parser.parse_args([*f"--dataset my_shoes {more} {guidance}".split()])
    filled, _ = datasets.fill_by_recipe(args)
    assert ("word_mAP" in args.evaluation_metrics) == searched
    assert len({*args.evaluation_metrics}) == len(args.evaluation_metrics)
    assert args.evaluation_language_model == encoder
    assert all(getattr(args, flag) == value for flag, value in filled.items() if flag != "why"
               and not isinstance(value, tuple))  # fmt: skip


def test_unguided_runs_do_not_search_by_words():
    args = parameters.build_parser().parse_args(["--dataset", "my_shoes"])
    datasets.fill_by_recipe(args)
    assert args.evaluation_metrics == [*datasets.recipe("my_shoes").evaluation_metrics]


def own_images(folder, n):
    (folder / "mine" / "images" / "a").mkdir(parents=True)
    for row in range(n):
        (folder / "mine" / "images" / "a" / f"{row}.jpg").touch()
    return ["--dataset", "mine", "--source_path", str(folder)]


@pytest.mark.parametrize(
    ("n", "more", "expected"),
    [
        (3, "", "small"),
        (4, "", "standard"),
        (3, "--recipe standard", "standard"),
        (4, "--recipe small", "small"),
        (3, "--not_pretrained", "standard"),  # random features rank nothing
        (3, "--loss simclr", "standard"),
    ],
)
def test_own_labelled_images_are_small_up_to_a_number(tmp_path, monkeypatch, n, more, expected):
    monkeypatch.setattr("datasets.from_flags.MOST_SMALL", 3)
    args = parameters.parse([*own_images(tmp_path, n), *more.split()])
    fill_by_recipe(args)
    assert args.recipe == expected
    assert args.embed_dim == (0 if expected == "small" else 128)


def test_a_manifest_is_counted_and_a_benchmark_is_not_small(tmp_path):
    folder = tmp_path / "listed"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.jpg").touch()
    (folder / "manifest.csv").write_text("path,label\na.jpg,x\nb.jpg,y\n")
    assert splits.n_labelled(folder) == 2 and splits.n_labelled(tmp_path) == 0
    args = parameters.parse(["--dataset", "cub200", "--source_path", str(tmp_path)])
    fill_by_recipe(args)
    assert (args.recipe, args.embed_dim) == ("standard", 128)


def test_what_is_typed_stays_in_a_small_set(tmp_path):
    """The images of a class in a batch give way to a typed size that they do not divide."""
    args = parameters.parse([*own_images(tmp_path, 3), "--bs", "6", "--embed_dim", "64"])
    fill_by_recipe(args)
    assert (args.bs, args.samples_per_class, args.embed_dim, args.embed_init) == (
        6,
        2,
        64,
        "whiten",
    )


@pytest.mark.parametrize("flag", ["--recipe small", "--embed_init whiten"])
@pytest.mark.parametrize("more", ["--not_pretrained", "--loss simclr"])
def test_a_small_recipe_needs_features_and_labels(flag, more, capsys):
    with pytest.raises(SystemExit):
        parameters.parse([*flag.split(), *more.split()])
    assert f"{flag} is for pretrained features and losses that" in capsys.readouterr().err
