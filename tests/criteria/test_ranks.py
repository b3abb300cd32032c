"""Two and four processes against one: losses, gradients, draws and states of every objective."""

import math

import pytest
import torch
from torch.utils._pytree import tree_map

from parameters import MINED_LOSSES
from tests.criteria import ranks
from tests.launch import run

WORLDS = (2, 4)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each rank of each world saw, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    run(ranks.__file__, str(folder), *map(str, WORLDS), timeout=600)
    return {
        world: [
            torch.load(folder / f"{world}.{rank}.pt", weights_only=True) for rank in range(world)
        ]
        for world in WORLDS
    }


def distances(got, wanted, scale=None, where=""):
    """Yield the place of each pair of values in two nested ones, and their distance.

    Distances of numbers are relative to the largest entry of their tensor, or of all tensors of
    their dict or list, and to 1 where that is larger. Other values are 0 or infinity apart.
    """
    if isinstance(wanted, torch.Tensor):
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            yield f"{where}: {got.dtype} {got.shape} for {wanted.dtype} {wanted.shape}", math.inf
        elif not wanted.is_floating_point():
            yield f"{where}: {got} for {wanted}", 0 if torch.equal(got, wanted) else math.inf
        else:
            scale = max(largest([wanted]) if scale is None else scale, 1)
            yield where, largest([got - wanted]) / scale
        return
    if not isinstance(wanted, (dict, list, tuple)):
        yield f"{where}: {got} for {wanted}", 0 if got == wanted else math.inf
        return
    keys = list(wanted) if isinstance(wanted, dict) else range(len(wanted))
    if keys != (list(got) if isinstance(got, dict) else range(len(got))):
        yield f"{where}: {list(got)} for {list(wanted)}", math.inf
        return
    values = [wanted[key] for key in keys]
    together = all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)
    scale = largest(values) if together else None
    for key in keys:
        yield from distances(got[key], wanted[key], scale, f"{where}/{key}")


def differences(got, wanted, close):
    """List where two nested values are further apart than ``close``; NaN always is."""
    apart = distances(got, wanted)
    return [f"{where}: off by {off:.1e}" for where, off in apart if not off <= close]


def single_error(single, double):
    """Return the distance of one process's steps in single precision from those in double."""
    exact = tree_map(
        lambda x: x.float() if torch.is_tensor(x) and x.is_floating_point() else x, double
    )
    return max(torch.finfo(torch.float32).eps, *(off for _, off in distances(single, exact)))


def largest(tensors):
    """Largest absolute entry; NaN where there is one, which is close to nothing."""
    return max((t.abs().max().item() for t in tensors if t.numel()), default=0.0)


@pytest.fixture(scope="module")
def alone():
    """What one process sees of a case, with as many images lost as to so many ranks."""
    seen = {}

    def train(name, digits, world):
        case = ranks.CASES[name]
        key = name, digits, world if case.lost else 1
        if key not in seen:
            seen[key] = ranks.train(case, *ranks.PRECISIONS[digits], n_shares=world)
        return seen[key]

    return train


@pytest.mark.parametrize("name", ranks.CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_steps_draws_and_states_are_those_of_one_process(told, alone, name, world):
    wanted = alone(name, "double", world)
    assert len(wanted["steps"]) == 4
    for got in told[world]:
        assert not differences(got[name]["double"], wanted, 1e-10)


@pytest.mark.parametrize(
    ("world", "name"), [(world, name) for world in WORLDS for name in ranks.singles(world)]
)
def test_losses_and_gradients_are_those_of_one_process_in_single_precision(
    told, alone, name, world
):
    """Within 10 times the rounding of one process: ranks add the same terms in another order."""
    wanted = alone(name, "single", world)["steps"]
    close = 10 * single_error(wanted, alone(name, "double", world)["steps"][: len(wanted)])
    assert close < 1e-3
    for got in told[world]:
        assert not differences(got[name]["single"]["steps"], wanted, close)


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_stay_alike_to_the_last_bit(told, world):
    """Nothing would bring them together again."""
    first, *others = told[world]
    for name in ranks.CASES:
        for other in others:
            for digits in first[name]:
                for part in ("state", "triplets"):
                    got, wanted = (seen[name][digits][part] for seen in (other, first))
                    assert not differences(got, wanted, 0), name


@pytest.mark.parametrize("name", ranks.CASES)
def test_there_is_something_to_compare(alone, name):
    seen = alone(name, "double", 1)
    if ranks.CASES[name].loss in MINED_LOSSES:
        assert len(seen["triplets"][0][0])
    for step in seen["steps"][:3]:
        assert largest(step["grads"].values()) > 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_a_criterion_that_forgets_to_gather_is_found_out(told, world):
    wanted = ranks.train(ranks.ALONE, *ranks.PRECISIONS["double"])
    assert differences(told[world][0]["alone"], wanted, 1e-2)


@pytest.mark.parametrize("name", ranks.CASES)
def test_no_step_draws_from_the_global_generator(alone, name):
    """Which ranks would share, for different images."""
    assert not alone(name, "double", 1)["drew"]


@pytest.mark.parametrize("world", WORLDS)
def test_embeddings_labels_and_rows_are_all_that_travels(told, world):
    """Of float32 embeddings; features and maps stay. Beside them the size of the share."""
    share = ranks.BS // world
    for seen in told[world]:
        assert seen["travelled"] == {
            "all_gather": share * (4 * ranks.DIM + 8 + 8),
            "all_reduce": 4 * ranks.BS * ranks.DIM + 8,
        }
