import torch
from torch import nn

from utilities.optimization import decay_groups, split_decay


class Tower(nn.Module):
    """One of each kind of parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False))
        self.positions = nn.Parameter(torch.zeros(7, 5))
        self.scale = nn.Parameter(torch.zeros(()))


def names(module, parameters):
    known = {id(p): name for name, p in module.named_parameters()}
    return [known[id(p)] for p in parameters]


def test_matrices_decay_and_vectors_do_not():
    tower = Tower()
    decayed, rest = split_decay(tower)
    assert names(tower, decayed) == ["positions", "conv.weight", "head.0.weight", "head.2.weight"]
    assert names(tower, rest) == [
        "scale", "conv.bias", "norm.weight", "norm.bias", "head.0.bias", "head.1.weight",
        "head.1.bias",
    ]  # fmt: skip


def test_names_without_decay():
    outer = nn.Module()
    outer.tower = Tower()
    for module in (outer, outer.tower):
        decayed, rest = split_decay(module, undecayed=["positions", "ead.0.weight"])
        assert "positions" not in {n.split(".")[-1] for n in names(module, decayed)}
        assert names(module, rest)[0].endswith("positions")
        assert len(decayed) == 3  # half a name is none


def test_frozen_parameters_are_left_out():
    tower = Tower()
    tower.head.requires_grad_(False)
    held = [p for part in split_decay(tower) for p in part]
    assert not any(name.startswith("head") for name in names(tower, held))


def test_shared_parameters_are_held_once():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    decayed, rest = split_decay([first, second])
    assert [id(p) for p in decayed] == [id(first.weight)]
    assert [id(p) for p in rest] == [id(first.bias), id(second.bias)]


def test_modules_may_be_an_iterator():
    layers = [nn.Linear(2, 3), nn.Linear(3, 4)]
    matrices, vectors = decay_groups(iter(layers), lr=0.25)
    assert [id(p) for p in matrices["params"]] == [id(layer.weight) for layer in layers]
    assert [id(p) for p in vectors["params"]] == [id(layer.bias) for layer in layers]


def test_an_optimizer_shrinks_matrices_alone():
    layer = nn.Linear(2, 3)
    groups = decay_groups(layer, lr=0.5)
    optimizer = torch.optim.SGD(groups, lr=9.0, weight_decay=0.1)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, weight * (1 - 0.5 * 0.1))
    assert torch.equal(layer.bias, bias)


def test_empty_groups_are_left_out():
    (group,) = decay_groups(nn.Linear(2, 3, bias=False), lr=1.0)
    assert "weight_decay" not in group
    (group,) = decay_groups(nn.LayerNorm(2), lr=1.0)
    assert group["weight_decay"] == 0.0
    assert decay_groups(nn.ReLU(), lr=1.0) == []
