"""Image towers of CLIP and SigLIP, against transformers' with the same weights."""

from argparse import Namespace

import pytest
import timm
import torch

import architectures
from architectures.image_tower import TEXT_TOWERS, has_text_tower, image_tower
from tests.architectures import towers


@pytest.mark.parametrize("kind", towers.ARCHS)
def test_the_projection_of_the_embedders_features_is_that_of_the_whole_model(
    kind, tmp_path, monkeypatch
):
    arch, file = towers.ARCHS[kind], tmp_path / "tower.pth"
    towers.shrink(monkeypatch, arch)
    model = towers.save(kind, ["fox"], tmp_path / "tower")
    tower = image_tower(arch, file)
    embedder = architectures.create(f"{arch}_normalize", 4, weights=file).eval()
    with torch.no_grad():
        wanted = model.get_image_features(tower.images).pooler_output
        projected = tower.projection(embedder(tower.images).features)
    torch.testing.assert_close(projected, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tower.embeds, wanted, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in tower.projection.parameters())


def test_every_row_names_weights_of_timm():
    for name in TEXT_TOWERS:
        assert timm.models.is_model_pretrained(name) and has_text_tower(f"{name}_normalize")
    assert has_text_tower("vit_base_patch32_clip_quickgelu_224.openai")
    assert not has_text_tower("vit_base_patch32_clip_224.openai_ft_in1k")
    assert not has_text_tower("resnet50_frozen")


def build(arch, **flags):
    return architectures.build_image_tower(
        Namespace(arch=arch, **{"not_pretrained": False, "weights": None} | flags)
    )


def test_a_tower_that_cannot_be_used_says_why(tmp_path, monkeypatch, caplog):
    arch = towers.ARCHS["clip"]
    towers.shrink(monkeypatch, arch)
    towers.save("clip", ["fox"], tmp_path / "tower")
    state = torch.load(tmp_path / "tower.pth")
    torch.save({k: v for k, v in state.items() if "head" not in k}, tmp_path / "body.pth")
    for name, flags, reason in (
        (arch, {"not_pretrained": True}, "with --not_pretrained it has no trained projection"),
        (f"{arch}_double", {}, "_double pools otherwise"),
        ("vit_base_patch32_clip_224.openai", {}, f"use --arch {arch}"),
        (arch, {"weights": str(tmp_path / "body.pth")}, "missing (head.weight, head.bias)"),
    ):
        assert build(name, **flags) is None
        assert f"--arch {name} are left out: " in caplog.messages[-1]
        assert reason in caplog.messages[-1]


def test_other_backbones_are_passed_over_in_silence(caplog):
    assert build("resnet50_frozen_normalize") is None
    assert not caplog.messages
