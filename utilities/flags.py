"""Every flag of main.py as a page of Markdown, from the parser itself.

python -m utilities.flags > docs/flags.md
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import parameters
from datasets.recipes import OWN_CAPTIONS, OWN_IMAGES, RECIPES, Recipe

OPENING = """\
# Flags

Every flag of `main.py`, as `python main.py --help` has them. `python -m utilities.flags >
docs/flags.md` writes this page, and a test compares the two.

A flag that the command line leaves out has its default; *by dataset* is the value of the dataset's
recipe, in the [last table](#defaults-by-dataset). A switch takes no value. Flags may also come from
a file, with `--config`: YAML or JSON lines such as `loss: multisimilarity`, or the `config.json` of
a run, which then is run again. What the command line says goes before the file.
"""
BY_DATASET = {field.name for field in fields(Recipe)}


def page() -> str:
    """The page: a table for each group of flags, and one of what recipes fill in."""
    sections = [OPENING]
    for group in parameters.build_parser()._action_groups:
        shown = [a for a in group._group_actions if a.option_strings and a.dest != "help"]
        if shown:
            rows = [row(action) for action in shown]
            title = (group.title or "")[:1].upper() + (group.title or "")[1:]
            sections.append(section(title, ("flag", "default", "values", "what it is"), rows))
    sections.append(recipes())
    return "\n".join(sections)


def row(action: argparse.Action) -> tuple[str, str, str, str]:
    """One flag: its name, default, values, and the help without the default."""
    text = (action.help or "").replace("%%", "%")
    said = re.search(r" \(default: (.*)\)$", text, re.DOTALL)
    if said:
        text, default = text[: said.start()], said[1]
    elif action.default is None:
        default = "*by dataset*" if action.dest in BY_DATASET else "none"
    else:
        default = "off" if action.nargs == 0 else code(action.default)
    return code(action.option_strings[0]), escaped(default), values(action), escaped(text)


def values(action: argparse.Action) -> str:
    """What a flag accepts."""
    kind = action.type
    if action.nargs == 0:
        return "switch"
    if isinstance(kind, parameters.OneOf):
        said = ", ".join(map(code, kind.names))
    elif isinstance(kind, parameters.Number):
        said = f"{'whole number' if kind.kind is int else 'number'} {kind.bound}".strip()
    elif kind is parameters.period:
        said = "steps, or minutes such as `15m`"
    else:
        said = "number" if kind is float else "text"
    return f"{said}; one or more" if action.nargs == "+" else said


def recipes() -> str:
    """The flags that recipes fill in: a column for each recipe, or for those of the same values."""
    flags = {action.dest: action for action in parameters.build_parser()._actions}
    filled = [field.name for field in fields(Recipe) if field.name in flags]
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, recipe in {
        **RECIPES, "your own images": OWN_IMAGES, "your own captions": OWN_CAPTIONS
    }.items():  # fmt: skip
        column = tuple(code(getattr(recipe, flag)) for flag in filled)
        columns.setdefault(column, []).append(name)
    head = ("flag", *(", ".join(names) for names in columns.values()))
    rows = [
        (code(f"--{flag}"), *(column[place] for column in columns))
        for place, flag in enumerate(filled)
    ]
    return section("Defaults by dataset", head, rows)


def section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A heading and a table."""
    lines = (head, ["---"] * len(head), *rows)
    return f"## {title}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def code(value: Any) -> str:
    """A value as it would be typed; "none" where there is nothing to type."""
    parts = value if isinstance(value, list | tuple) else [value]
    text = " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
    return f"`{text}`" if text else "none"


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is in a table."""
    return text.replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
