import subprocess
import sys

import datasets


def test_recipes_are_read_without_torch_or_numpy():
    code = (
        "import sys, datasets.recipes; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_of_one_s_own_gets_the_benchmarks_setting():
    own, benchmark = datasets.recipe("my_shoes"), datasets.recipe("cub200")
    assert own.why != benchmark.why
    assert (own.arch, own.image_size, own.language_model) == (
        "resnet50_frozen_normalize",
        224,
        "clip",
    )
    assert own.evaluation_metrics == benchmark.evaluation_metrics


def test_every_public_name_is_there():
    assert all(getattr(datasets, name) is not None for name in datasets.__all__)
