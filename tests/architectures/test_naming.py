"""Architecture names: options in any order, aliases, and errors that name what is close."""

import pytest

from architectures.naming import ALIASES, ArchitectureName, resolve


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ArchitectureName("resnet18")),
        ("resnet18_frozen_normalize", ArchitectureName("resnet18", frozen=True, normalize=True)),
        (
            "resnet18_double_normalize_frozen",
            ArchitectureName("resnet18", frozen=True, normalize=True, double=True),
        ),
        (
            "vit_small_patch16_224_normalize",
            ArchitectureName("vit_small_patch16_224", normalize=True),
        ),
        ("resnet50_frozen", ArchitectureName("resnet50.tv_in1k", frozen=True)),
        ("resnet50.a1_in1k_double", ArchitectureName("resnet50.a1_in1k", double=True)),
        ("efficientnet_lite0", ArchitectureName("tf_efficientnet_lite0")),
    ],
)
def test_parse(name, expected):
    assert ArchitectureName.parse(name) == expected


def test_unknown_backbone_names_the_closest_first():
    with pytest.raises(ValueError, match=r"--arch resnet500_normalize.*'resnet500'.*: resnet50,"):
        ArchitectureName.parse("resnet500_normalize")


def test_unknown_option_is_part_of_no_backbone():
    with pytest.raises(ValueError, match="frozen, normalize, double"):
        ArchitectureName.parse("resnet18_normalise")


def test_option_alone_is_no_backbone():
    with pytest.raises(ValueError, match="no model 'normalize'"):
        ArchitectureName.parse("normalize")


def test_option_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        ArchitectureName.parse("resnet18_frozen_normalize_frozen")


def test_unknown_tag_names_those_that_exist():
    with pytest.raises(ValueError, match="resnet50 has no weights 'tv_in2k'; it has tv_in1k"):
        resolve("resnet50.tv_in2k")


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_a_model_with_weights(alias):
    assert resolve(resolve(alias)) == ALIASES[alias]
