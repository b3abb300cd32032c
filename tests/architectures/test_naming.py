"""Architecture names: options in any order, aliases, and errors that name what is close."""

import pytest

from architectures.naming import ALIASES, ArchitectureName, resolve


@pytest.mark.parametrize(
    ("name", "backbone", "options"),
    [
        ("resnet18", "resnet18", ()),
        ("resnet18_frozen_normalize", "resnet18", ("frozen", "normalize")),
        ("resnet18_double_normalize_frozen", "resnet18", ("frozen", "normalize", "double")),
        ("vit_small_patch16_224_normalize", "vit_small_patch16_224", ("normalize",)),
        ("resnet18_root_frozen", "resnet18", ("frozen", "root")),
        ("resnet50_frozen", "resnet50.tv_in1k", ("frozen",)),
        ("resnet50.a1_in1k_double", "resnet50.a1_in1k", ("double",)),
        ("efficientnet_lite0", "tf_efficientnet_lite0", ()),
    ],
)
def test_parse(name, backbone, options):
    assert ArchitectureName.parse(name) == ArchitectureName(
        backbone, **dict.fromkeys(options, True)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet500_normalize", r"no model 'resnet500'; closest: resnet50,"),
        ("resnet18_normalise", "frozen, normalize, double, root"),
        ("normalize", "no model 'normalize'"),  # an option alone
        ("resnet18_frozen_normalize_frozen", "must not repeat"),
        ("resnet50.tv_in2k", "resnet50 has no weights 'tv_in2k'; it has tv_in1k"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        ArchitectureName.parse(name)


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_a_model_with_weights(alias):
    assert resolve(resolve(alias)) == ALIASES[alias]
