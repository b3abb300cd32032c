"""Every family of timm trains and is exported, or is refused in a sentence."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.architectures.families import families
from tests.runs import ROOT

REFUSED = {"efficientvim"}  # its last features are neither a map nor tokens


@pytest.mark.slow
def test_a_model_of_every_family_trains_and_is_exported(tmp_path):
    """In a process each, so that memory that is overwritten shows in how it ends."""

    def result(module, name):
        folder = tmp_path / module
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.architectures.families", name, str(folder)],
            cwd=ROOT, capture_output=True, text=True, timeout=900,
            env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )  # fmt: skip
        if done.returncode:
            return f"died ({done.returncode}): {done.stderr[-500:]}"
        return json.loads(done.stdout.splitlines()[-1])

    models = families()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(models, pool.map(result, models, models.values()), strict=True))
    print("\n".join(f"{module} {models[module]}: {text}" for module, text in results.items()))
    kinds = {
        kind: {module for module, text in results.items() if text.startswith(kind)}
        for kind in ("trained", "refused", "skipped", "died")
    }
    print({kind: len(modules) for kind, modules in kinds.items()})
    assert not kinds["died"] and kinds["refused"] <= REFUSED
