import pytest

pytest.register_assert_rewrite("tests.batchminer.mining")
