import pytest
import torch

pytest.register_assert_rewrite("tests.batchminer.mining")


@pytest.fixture(autouse=True)
def one_thread():
    """Batches of nine images: threads that wait for each other take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
