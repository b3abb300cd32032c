"""A checkpoint gives its embedder back to the last bit, and says what is wrong when it cannot."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import evaluation
import main
import parameters
from architectures.load import evaluation_flags, load_embedder
from evaluation.preprocessing import preprocessing
from tests.architectures.saved import FLAGS, save_run
from utilities import checkpoint
from utilities.run_files import checkpoint_file


@pytest.mark.parametrize("arch", [FLAGS["arch"], "test_vit_double"])
def test_embeds_are_the_same_to_the_last_bit(tmp_path, arch):
    wanted = save_run(tmp_path, arch=arch)
    torch.manual_seed(9)
    images = torch.randn(5, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    trained = load_embedder(tmp_path)
    with torch.no_grad():
        assert torch.equal(trained.embedder(images).embeds, wanted(images).embeds)
    assert not trained.embedder.training
    assert (trained.file, trained.epoch) == (tmp_path / "last.pt", 4)
    assert trained.flags["arch"] == arch


def test_scores_are_those_of_training_to_the_last_digit(tmp_path):
    rng = np.random.default_rng(0)
    for label in range(8):
        folder = tmp_path / "animals" / "images" / f"class {label}"
        folder.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for image in range(6):
            pixels = np.clip(colour + rng.integers(-90, 90, (40, 48, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.png")
    names = ["e_recall@1", "nmi", "f1", "mAP", "c_recall@2"]
    scores = main.main(
        [
            *("--dataset", "animals", "--source_path", str(tmp_path), "--save_path", str(tmp_path)),
            *("--arch", "test_resnet_normalize", "--not_pretrained", "--image_size", "32"),
            *("--embed_dim", "8", "--bs", "8", "--kernels", "0", "--n_epochs", "2", "--lr", "1e-3"),
            *("--loss", "multisimilarity", "--seed", "3", "--augmentation", "big"),
            *("--evaluation_metrics", *names, "--no_report"),
        ]
    )
    trained = load_embedder(tmp_path / "animals" / "default_s3")
    args = argparse.Namespace(**evaluation_flags(trained, vars(parameters.parse([])), {}))
    prepare = preprocessing(vars(args), trained.embedder.mean, trained.embedder.std)
    assert prepare.image_size == 37  # "big" enlarges the 32 by 8/7
    data = datasets.build(args)
    for images in (data.test, data.train):
        again, _ = evaluation.run(
            trained.embedder, images, prepare.transform(), metrics=args.evaluation_metrics,
            bs=args.bs, workers=0, seed=args.seed,
        )  # fmt: skip
        split = images.name.partition(".")[2]
        for name in names:
            assert again[f"embeds/{name}"] == scores[f"{split}/embeds/{name}"]


def test_nothing_is_downloaded(tmp_path, monkeypatch):
    save_run(tmp_path, weights="gone.pth", not_pretrained=False)
    monkeypatch.setattr("architectures.weights.find", None)  # would fail if it were called
    assert load_embedder(tmp_path).flags["weights"] == "gone.pth"


def test_a_folder_gives_its_last_or_a_best_and_a_file_itself(tmp_path):
    save_run(tmp_path)
    save_run(tmp_path, "best_test_embeds_e_recall@1")
    best = tmp_path / "best_test_embeds_e_recall@1.pt"
    assert checkpoint_file(tmp_path) == tmp_path / "last.pt"
    assert checkpoint_file(tmp_path, "best_test/embeds/e_recall@1") == best
    assert load_embedder(best).file == best


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent does not exist"):
        load_embedder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no last.pt; a run saves one after each"):
        load_embedder(tmp_path)
    save_run(tmp_path, "best_val_embeds_nmi")
    with pytest.raises(FileNotFoundError, match=r"no last.pt; .*: best_val_embeds_nmi.pt"):
        load_embedder(tmp_path)


def rewrite(folder, **parts):
    checkpoint.save(folder / "last.pt", {**checkpoint.load(folder / "last.pt"), **parts})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({**FLAGS, "embed_dim": 16}, r"embedding.weight \(8, \d+\) for \(16, \d+\)"),
        ({**FLAGS, "arch": "test_vit"}, r"missing .* unexpected .*config.json"),
        ({**FLAGS, "arch": "tset_resnet"}, r"cannot be rebuilt: .*test_resnet"),
        ({"arch": "test_resnet"}, r"lacks the flags embed_dim, image_size"),
        ({**FLAGS, "arch": ["test_resnet"]}, r"--arch must be of type str; got \['test_resnet'\]"),
        ({**FLAGS, "embed_dim": "8"}, r"--embed_dim must be of type int; got '8'"),
        ({**FLAGS, "image_size": {"a": 1}}, r"--image_size must be of type int; got {'a': 1}"),
        ({**FLAGS, "image_size": -3}, r"cannot be rebuilt: .*cannot read images of -3"),
        ({**FLAGS, "dataset": 3}, r"--dataset must be of type str; got 3"),
    ],
    ids=[
        *("embed_dim", "backbone", "unknown", "lacking", "list", "text", "object", "negative"),
        "dataset",
    ],
)
def test_flags_that_do_not_fit_the_weights(tmp_path, flags, says):
    save_run(tmp_path)
    rewrite(tmp_path, flags={"augmentation": "base", "dataset": "emoji", **flags})
    with pytest.raises(ValueError, match=says) as caught:
        load_embedder(tmp_path)
    assert str(tmp_path / "last.pt") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("embedding.bias"), r"1 missing \(embedding.bias\)"),
        (lambda state: state.update(extra=torch.ones(2)), r"1 unexpected \(extra\)"),
        (lambda state: state.update({7: torch.ones(2)}), r"1 unexpected \(7\)"),
        (
            lambda state: state.update({"embedding.bias": torch.ones(3)}),
            r"1 of another shape \(embedding.bias \(3,\) for \(8,\)\)",
        ),
        (
            lambda state: state.update({"embedding.bias": "text"}),
            r"1 of another shape \(embedding.bias str for \(8,\)\)",
        ),
        (lambda state: state.clear(), r"missing"),
    ],
    ids=["missing", "extra", "number", "shape", "text", "empty"],
)
def test_weights_that_do_not_fit_are_named_in_one_line(tmp_path, change, says):
    save_run(tmp_path)
    state = checkpoint.load(tmp_path / "last.pt")["embedder"]
    change(state)
    rewrite(tmp_path, embedder=state)
    with pytest.raises(ValueError, match=says) as caught:
        load_embedder(tmp_path)
    assert str(tmp_path / "last.pt") in str(caught.value) and "\n" not in str(caught.value)


def test_an_epoch_that_is_no_number_is_refused(tmp_path):
    save_run(tmp_path)
    rewrite(tmp_path, epoch="four")
    with pytest.raises(ValueError, match=r"last.pt: epoch must be of type int; got 'four'"):
        load_embedder(tmp_path)


def test_a_checkpoint_without_the_layers_after_pooling_is_refused(tmp_path):
    save_run(tmp_path, arch="test_convnext", image_size=64)
    state = checkpoint.load(tmp_path / "last.pt")["embedder"]
    del state["pooled_by_head"]
    rewrite(tmp_path, embedder=state)
    with pytest.raises(ValueError, match=r"last.pt .* by an earlier version, which left"):
        load_embedder(tmp_path)


def test_files_that_are_no_checkpoint_of_a_run(tmp_path):
    checkpoint.save(tmp_path / "logits.pt", {"logits": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"logits.pt must hold flags and embedder; got logits"):
        load_embedder(tmp_path / "logits.pt")
    save_run(tmp_path)
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"last.pt cannot be read"):
        load_embedder(tmp_path)


def test_given_flags_go_before_saved_ones_and_those_before_defaults(tmp_path):
    save_run(tmp_path, bs=8, seed=5, gpu=3, forgotten=1, evaluation_metrics=["nmi"])
    trained = load_embedder(tmp_path)
    defaults = {**vars(parameters.parse([])), "eval_memory": 1.0}
    given = {"dataset": "cub200", "bs": 4, "arch": FLAGS["arch"]}
    merged = evaluation_flags(trained, defaults, given)
    assert merged.keys() == defaults.keys()
    assert (merged["dataset"], merged["bs"]) == ("cub200", 4)  # given
    assert (merged["seed"], merged["evaluation_metrics"]) == (5, ["nmi"])  # saved
    assert (merged["gpu"], merged["eval_memory"]) == (0, 1.0)  # this machine's; new since then
    json.dumps(merged)


@pytest.mark.parametrize(
    ("flag", "value"), [("arch", "resnet18"), ("embed_dim", 16), ("image_size", 64)]
)
def test_the_embedder_cannot_be_made_another(tmp_path, flag, value):
    save_run(tmp_path)
    trained = load_embedder(tmp_path)
    with pytest.raises(ValueError, match=rf"--{flag} must be .*last.pt was trained; got {value}"):
        evaluation_flags(trained, vars(parameters.parse([])), {flag: value})
