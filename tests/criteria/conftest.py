import pytest

for contract in ("scalars", "pair_losses", "mined_losses"):
    pytest.register_assert_rewrite(f"tests.criteria.{contract}")


def pytest_generate_tests(metafunc):
    """Run a contract's tests with each of its class's ``settings``, dicts of hyperparameters."""
    if "setting" in metafunc.fixturenames and metafunc.cls:
        metafunc.parametrize("setting", metafunc.cls.settings, ids=str)
