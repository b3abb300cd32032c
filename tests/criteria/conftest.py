import pytest

pytest.register_assert_rewrite("tests.criteria.pair_losses")
