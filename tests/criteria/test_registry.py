"""The tables of losses and miners: readable without torch, and true to the classes they name."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import batchminer
import criteria
from criteria import CRITERIA, PairCriterion

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["criteria", "batchminer"])
def test_the_table_is_read_without_torch(package):
    code = f"import sys, {package}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_loss_needs_what_its_row_says(name):
    needs, loss = CRITERIA[name].needs, CRITERIA[name].load()
    assert needs <= {"labels", "pairs", "miner", "views", "captions"}
    assert ("labels" in needs) == (loss.reads == "embeds")
    assert ("labels" in needs) != bool(needs & {"views", "captions"})
    assert ("pairs" in needs) == issubclass(loss, PairCriterion)
    assert ("miner" in needs) == ("miner" in inspect.signature(loss).parameters)
    assert ("views" in needs) == (loss.n_views > 1)


@pytest.mark.parametrize("name", batchminer.MINERS)
def test_a_miner_needs_what_its_row_says(name):
    adapts = batchminer.MINERS[name].load().adapt is not batchminer.Miner.adapt
    assert batchminer.MINERS[name].needs == ({"feedback"} if adapts else set())


def test_classes_are_imported_by_name():
    for package, table in ((criteria, CRITERIA), (batchminer, batchminer.MINERS)):
        for row in table.values():
            assert getattr(package, row.name) is row.load()
    with pytest.raises(AttributeError, match="has no attribute 'Tripplet'"):
        criteria.Tripplet  # noqa: B018
