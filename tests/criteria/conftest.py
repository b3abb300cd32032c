import pytest
import torch

for contract in ("scalars", "pair_losses", "mined_losses"):
    pytest.register_assert_rewrite(f"tests.criteria.{contract}")


@pytest.fixture(autouse=True)
def one_thread():
    """Batches are tiny: threads that wait for each other take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc):
    """Run a contract's tests with each of its class's ``settings``, dicts of hyperparameters."""
    if "setting" in metafunc.fixturenames and metafunc.cls:
        metafunc.parametrize("setting", metafunc.cls.settings, ids=str)
