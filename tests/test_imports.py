"""Imports go one way only, so that each folder can be lifted out into another pipeline."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "utilities": set(),
    "architectures": {"utilities"},
    "language": {"utilities"},
    "batchminer": {"utilities"},
    "datasets": {"utilities"},
    "datasampler": {"utilities", "datasets", "language"},
    "criteria": {"utilities", "batchminer", "language"},
    "metrics": {"utilities"},
    "evaluation": {"utilities", "metrics", "datasets"},
}
# What several entry points assemble alike: it may import everything, and only they import it.
SHARED = {f"evaluation.{name}" for name in ("searcher", "search_models", "text_reader")}
# parameters.py reads the names of components from tables that are free of torch and numpy.
TABLES = {"criteria", "batchminer", "datasampler", "utilities.registry"}
FLAGS = {  # of its parser
    f"utilities.{name}"
    for name in ("flag_parser", "flag_types", "files", "guidance", "unknown_words")
}
LONGEST = {"main": 283, "parameters": 853}  # lines; other files: 450


def module_of(path: Path, root: Path = ROOT) -> str:
    """Return the dotted name of a file; a package's is that of its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PRODUCT = {
    module_of(path): path
    for path in (
        ROOT / "main.py",
        ROOT / "parameters.py",
        *(path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))),
    )
}


def is_entry_point(module: str, text: str) -> bool:
    """Return whether a file only assembles; it may import everything and no other imports it."""
    guarded = any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(text).body
    )
    return guarded or module == "main" or module.endswith("__main__")


def imports(module: str, text: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """Yield the modules that a file imports, wherever the statement is, TYPE_CHECKING included.

    Of ours, named as deep as they are files: ``from utilities import log`` is ``utilities.log``.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{start}.{alias.name}"
                yield deeper if deeper in known else start


TEXTS = {module: path.read_text() for module, path in PRODUCT.items()}
IMPORTS = {
    module: set(imports(module, text, PRODUCT[module].name == "__init__.py", {*TEXTS}))
    for module, text in TEXTS.items()
}
ENTRY_POINTS = {module for module, text in TEXTS.items() if is_entry_point(module, text)}
OURS = {*MAY_IMPORT, "main", "parameters", "tests"}


def circle(imported: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, [] if there is none.

    A package's ``__init__`` may import its own modules; they import from each other.
    """
    graph = {
        module: {other for other in others if other in imported and other != module}
        for module, others in imported.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_the_table_allows(folder):
    assembled = ENTRY_POINTS | SHARED
    library = [name for name in TEXTS if name.split(".")[0] == folder and name not in assembled]
    assert library
    stray = {
        module: found
        for module in library
        if (found := {name.split(".")[0] for name in IMPORTS[module]} & OURS)
        - MAY_IMPORT[folder]
        - {folder}
    }
    assert not stray


def test_no_product_file_imports_an_entry_point():
    importers = {module: found for module in TEXTS if (found := IMPORTS[module] & ENTRY_POINTS)}
    assert "main" in ENTRY_POINTS and not importers


def test_only_entry_points_import_what_they_share():
    importers = {module for module in TEXTS if IMPORTS[module] & SHARED}
    assert {*TEXTS} >= SHARED and importers and importers <= ENTRY_POINTS | SHARED


def test_no_modules_import_each_other_in_a_circle():
    assert not circle(IMPORTS)


def test_a_file_is_one_job():
    lines = {module: len(text.splitlines()) for module, text in TEXTS.items()}
    assert not {name: n for name, n in lines.items() if n > LONGEST.get(name, 450)}


def test_parameters_import_tables_and_the_standard_library():
    """And the parser reads yaml, where --config names such a file."""
    allowed = {*sys.stdlib_module_names, "collections.abc", *TABLES, *FLAGS}
    assert IMPORTS["parameters"] | IMPORTS["utilities.flag_types"] <= allowed
    assert IMPORTS["utilities.flag_parser"] <= {*allowed, "yaml"}


@pytest.mark.parametrize("folder", ["architectures", "datasets", "evaluation", "language"])
def test_what_a_folder_exports_exists_and_is_not_called_as_one_of_its_files(folder):
    """Importing the file would hide it, and only from then on."""
    package = importlib.import_module(folder)
    exported = [name for names in package._EXPORTED.values() for name in names]
    assert exported and all(hasattr(package, name) for name in exported)
    assert not {*exported} & {path.stem for path in (ROOT / folder).iterdir()}


def test_help_needs_neither_torch_nor_numpy_nor_yaml():
    """Their imports take seconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.M))
    assert "--language_distill_w" in done.stdout and "parameters" in loaded
    assert not {"torch", "numpy", "yaml"} & loaded


@pytest.mark.parametrize(
    "command",
    [
        "main --evaluate_only --checkpoint nowhere",
        "architectures.export --checkpoint nowhere --out new",
        "datasets.check emoji --near 65",
        "evaluation.retrieve index . --checkpoint nowhere --index new",
        "evaluation.retrieve query nowhere.jpg --index new",
        "evaluation.retrieve query --words red --index nowhere",
        "evaluation.serve --index nowhere",
        "evaluation.words --checkpoint nowhere",
        "language.check emoji --seed -1",
        "language.neighbours --dataset openclipart --bs 0",
    ],
)
def test_what_cannot_work_is_refused_before_torch_is_imported(command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command.split()],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.M))
    assert done.returncode and "Traceback" not in done.stderr
    assert re.search(r"nowhere|must be", lines[-1]) and "argparse" in loaded
    assert not {"torch", "numpy", "timm", "transformers"} & loaded


def test_only_builders_see_the_flags():
    """Components are built from plain arguments; argparse stays at the doors of each folder."""
    doors = {"__init__.py", "from_flags.py", "registry.py"}
    seeing = {
        module
        for module, path in PRODUCT.items()
        if "argparse" in IMPORTS[module]
        and module not in ENTRY_POINTS | SHARED
        and path.name not in doors
        and not path.stem.endswith("_flags")  # of a command, before torch is imported
    }
    assert seeing <= {"parameters", *FLAGS}


# --------------------------------------------------------------------------------------------------
# The rules themselves
# --------------------------------------------------------------------------------------------------
def test_imports_are_found_wherever_they_are():
    text = (
        "import a.b as c\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from d import e\n"
        "def f():\n    from . import g\n    from .h import i\n    from d import j\n"
    )
    known = {"d.e", "p.g"}
    found = {"a.b", "typing", "d.e", "p.g", "p.h", "d"}
    assert set(imports("p.q", text, is_package=False, known=known)) == found
    assert set(imports("p", text, is_package=True, known=known)) == found


def test_entry_points_and_circles_are_found():
    assert is_entry_point("a.b", "if __name__ == '__main__':\n    main()\n")
    assert is_entry_point("a.__main__", "") and not is_entry_point("a", "x = '__main__'")
    assert set(circle({"a": {"b"}, "b": {"c", "numpy"}, "c": {"a"}, "d": {"a"}})) == {*"abc"}
    assert circle({"a": {"a.b", "a.c"}, "a.b": {"a.c"}, "a.c": set()}) == []
