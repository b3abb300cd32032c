"""Looking names up and building from flags by prefix."""

from types import SimpleNamespace

import pytest

from utilities.registry import (
    Component,
    closest_first,
    exporter,
    from_flags,
    hyperparameters,
    lookup,
    needing,
)


class Margin:
    def __init__(
        self, n_classes: int, miner: str = "distance", *, beta: float = 1.2, nu: float = 0
    ):
        self.given = (n_classes, miner, beta, nu)


def test_lookup_returns_the_entry():
    assert lookup({"margin": Margin}, "margin", "--loss") is Margin


def test_unknown_name_lists_all_the_closest_first():
    with pytest.raises(ValueError) as caught:
        lookup(dict.fromkeys(["angular", "triplet", "margin"]), "tripplet", "--loss")
    assert str(caught.value) == (
        "--loss tripplet is unknown; known, closest first: triplet, angular, margin"
    )


def test_closest_first_keeps_every_name_once():
    names = ["margin", "multisimilarity", "triplet", "npair"]
    assert closest_first("margn", names)[0] == "margin"
    assert sorted(closest_first("margn", names)) == sorted(names)
    assert closest_first("zzz", names) == sorted(names)
    assert closest_first("MARGIN", ["mArgin", "margins", *names])[:2] == ["mArgin", "margin"]


def test_hyperparameters_are_the_keyword_only_ones():
    assert hyperparameters(Margin) == {"beta": 1.2, "nu": 0}


def test_from_flags_slices_the_prefix_and_passes_what_is_asked():
    args = SimpleNamespace(loss_margin_beta=0.6, loss_margin_nu=0.1, loss_triplet_margin=9.0)
    built = from_flags(Margin, args, "loss_margin_", n_classes=5, miner="semihard", embed_dim=128)
    assert built.given == (5, "semihard", 0.6, 0.1)


def test_from_flags_without_a_collaborator_uses_its_default():
    args = SimpleNamespace(loss_margin_beta=0.6, loss_margin_nu=0.1)
    assert from_flags(Margin, args, "loss_margin_", n_classes=5).given[1] == "distance"


def test_from_flags_names_a_flag_that_does_not_exist():
    with pytest.raises(AttributeError, match="loss_margin_nu"):
        from_flags(Margin, SimpleNamespace(loss_margin_beta=1.0), "loss_margin_", n_classes=5)


TABLE = {
    "margin": Component("criteria.margin", "Margin", frozenset({"labels", "miner"})),
    "simclr": Component("criteria.simclr", "SimCLR", frozenset({"views"})),
}


def test_names_follow_from_what_components_need():
    assert needing(TABLE, "labels") == ("margin",)
    assert needing(TABLE, "labels", "views") == ()
    assert needing(TABLE) == ("margin", "simclr")


def test_a_table_imports_a_class_on_first_use():
    attribute = exporter("package", {"path": Component("pathlib", "PurePath")})
    assert attribute("PurePath").__module__.startswith("pathlib")
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'Path'"):
        attribute("Path")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("nu must be >= 0; got -1", "--loss_margin_nu must be >= 0; got -1"),
        ("nubeta must be 1", "nubeta must be 1"),
        ("", ""),
    ],
)
def test_an_error_of_a_component_names_its_flag(said, shown):
    class Refusing:
        def __init__(self, *, nu: float = 0):
            raise ValueError(said)

    with pytest.raises(ValueError) as caught:
        from_flags(Refusing, SimpleNamespace(loss_margin_nu=-1.0), "loss_margin_")
    assert str(caught.value) == shown
