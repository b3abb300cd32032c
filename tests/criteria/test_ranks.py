"""Two and four processes against one: losses, gradients, draws and states of every objective."""

from functools import cache

import pytest
import torch
from torch.utils._pytree import tree_leaves

import criteria
from parameters import MINED_LOSSES
from tests.criteria import ranks
from tests.launch import run

WORLDS = (2, 4)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Results of each rank of each world."""
    folder = tmp_path_factory.mktemp("ranks")
    run(ranks.__file__, str(folder), *map(str, WORLDS), timeout=600)
    return {
        world: [
            torch.load(folder / f"{world}.{rank}.pt", weights_only=True) for rank in range(world)
        ]
        for world in WORLDS
    }


def alone(name, digits, world):
    """Results of one process, with as many images lost as to so many ranks."""
    return _alone(name, digits, world if ranks.CASES[name].lost else 1)


@cache
def _alone(name, digits, n_shares):
    return ranks.train(ranks.CASES[name], *ranks.PRECISIONS[digits], n_shares=n_shares)


def difference(got, wanted):
    """Largest difference of two nested results, relative to each tensor's largest entry or 1.

    NaN where there is one, which is below no bound.
    """
    pairs = zip(tree_leaves(got), tree_leaves(wanted), strict=True)
    apart = [
        (x.double() - y.double()).abs().max() / y.abs().max().clamp(min=1)
        for x, y in pairs
        if torch.is_tensor(y) and y.is_floating_point() and y.numel()
    ]
    return torch.stack(apart).max().item()


@pytest.mark.parametrize(
    ("world", "name"),
    [(world, name) for world in WORLDS for name in ranks.trained_by(world, "double")],
)
def test_steps_draws_and_states_are_those_of_one_process(seen, world, name):
    wanted = alone(name, "double", world)
    assert len(wanted["steps"]) == 4
    for got in seen[world]:
        torch.testing.assert_close(got["double"][name], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_steps_in_chunks_of_a_share_are_those_of_one_process(seen, name):
    """Gradients are averaged once, although each encoder has run twice on each chunk."""
    for got in seen[2]:
        wanted = alone(name, "double", 2)
        torch.testing.assert_close(got["in chunks"][name], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ranks.trained_by(2, "single"))
def test_losses_and_gradients_are_those_of_one_process_in_single_precision(seen, name):
    """Within 10 times the rounding of one process: ranks add the same terms in another order."""
    wanted, exact = (alone(name, digits, 2)["steps"] for digits in ("single", "double"))
    rounding = max(torch.finfo(torch.float32).eps, difference(wanted, exact[: len(wanted)]))
    assert rounding < 2e-4
    for got in seen[2]:
        assert difference(got["single"][name]["steps"], wanted) <= 10 * rounding


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_stay_alike_to_the_last_bit(seen, world):
    """Nothing would bring them together again."""
    first, *others = seen[world]
    for digits in ranks.PRECISIONS:
        for name, wanted in first.get(digits, {}).items():
            for other in others:
                for part in ("state", "triplets"):
                    got = other[digits][name][part]
                    torch.testing.assert_close(got, wanted[part], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ranks.CASES)
def test_steps_have_something_to_compare_and_draw_nothing_globally(name):
    """Ranks would share what the global generator draws, for different images."""
    one = alone(name, "double", 1)
    if ranks.CASES[name].loss in MINED_LOSSES:
        assert len(one["triplets"][0][0])
    for step in one["steps"][:3]:
        assert max(grad.abs().max() for grad in step["grads"].values()) > 1e-4
    assert not one["drew"]


@pytest.mark.parametrize("world", WORLDS)
def test_a_criterion_that_forgets_to_gather_is_found_out(seen, world):
    wanted = ranks.train(ranks.ALONE, *ranks.PRECISIONS["double"])
    assert difference(seen[world][0]["alone"], wanted) > 1e-2


@pytest.mark.parametrize("world", WORLDS)
def test_embeddings_labels_and_rows_are_all_that_travels(seen, world):
    """As float32 embeddings and the size of the share; features and maps stay."""
    share = ranks.BS // world
    for of_rank in seen[world]:
        assert of_rank["travelled"] == {
            "all_gather": share * (4 * ranks.DIM + 8 + 8),
            "all_reduce": 4 * ranks.BS * ranks.DIM + 8,
        }
