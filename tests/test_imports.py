"""Imports go one way only, so that each folder can be lifted out into another pipeline."""

import ast
import sys
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
# Entry points: like main.py they assemble, so the table leaves them more.
ENTRY_POINTS = {
    "architectures/export.py": {"evaluation"},
    "evaluation/retrieve.py": {"architectures"},
    "language/neighbours.py": {"architectures", "datasets", "evaluation"},
    "utilities/completion.py": {"parameters"},
    "utilities/flags.py": {"datasets", "parameters"},
    "utilities/search/__main__.py": {"parameters"},
}
OURS = {*MAY_IMPORT, "main", "parameters", "tests"}


def imports(path: Path) -> set[str]:
    """Top-level names of the modules that ``path`` imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folder_imports_only_what_the_table_allows(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        name = str(path.relative_to(ROOT))
        allowed = MAY_IMPORT[folder] | {folder} | ENTRY_POINTS.get(name, set())
        stray = (imports(path) & OURS) - allowed
        assert not stray, f"{name} imports {stray}"


def test_parameters_import_only_the_standard_library():
    """And yaml, where a --config is one: not at the top, so that --help never needs it."""
    path = ROOT / "parameters.py"
    assert imports(path) <= {*sys.stdlib_module_names, "yaml"}
    top = ast.Module(ast.parse(path.read_text()).body, [])
    top.body = [node for node in top.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "yaml" not in ast.dump(top)


def test_only_builders_see_the_flags():
    """Components are built from plain arguments; argparse stays at the doors of each folder."""
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            doors = {"__init__.py", "build.py", "registry.py", "recipes.py", "splits.py"}
            if path.name not in doors and "__main__" not in path.read_text():
                assert "argparse" not in imports(path), path
