"""Steps in chunks of a batch are those of the whole batch, under every objective."""

import pytest
import torch

from tests.criteria import ranks
from tests.criteria.test_ranks import difference

SMALL = 3  # of a batch of 8, or of a share of 4


def train(name, digits="double", forward_bs=0):
    return ranks.train(ranks.CASES[name], *ranks.PRECISIONS[digits], forward_bs=forward_bs)


@pytest.mark.parametrize("name", ranks.CASES)
def test_losses_gradients_draws_and_states_are_those_of_the_whole_batch(name):
    """Four steps: triplets are drawn once, memories and queues are filled once."""
    got, wanted = train(name, forward_bs=SMALL), train(name)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ranks.trained_by(2, "single"))
def test_gradients_are_those_of_the_whole_batch_in_single_precision(name):
    got, wanted = train(name, "single", SMALL)["steps"][0], train(name, "single")["steps"][0]
    assert difference(got, wanted) < 1e-5
