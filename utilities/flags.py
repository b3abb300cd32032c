"""Writes every flag of main.py as Markdown: ``python -m utilities.flags > docs/flags.md``."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import parameters
from datasets.recipes import OWN_CAPTIONS, OWN_IMAGES, RECIPES, SMALL, Recipe
from parameters import Flag
from utilities import startup
from utilities.flag_types import switch

OPENING = """\
# Flags

Every flag of `main.py`, as `python main.py --help` lists them. `python -m utilities.flags >
docs/flags.md` writes this page, and a test compares the two.

*By dataset* means the value of the dataset's recipe, in the [last table](#defaults-by-dataset). A
switch takes no value. `--config` reads flags from a file: YAML or JSON lines such as
`loss: multisimilarity`, or the `config.json` of a run, to run it again. Command-line flags override
the file.
"""
BY_DATASET = {field.name for field in fields(Recipe)}


def page() -> str:
    """Return the page: a table per group of flags, the other names, and the recipes."""
    head = ("flag", "default", "values", "meaning")
    groups = [
        section(title[:1].upper() + title[1:], head, [row(flag) for flag in flags])
        for title, flags in parameters.FLAGS.items()
    ]
    also = {f.also: (f.name,) for fs in parameters.FLAGS.values() for f in fs if f.also}
    others = also | parameters.OTHER_NAMES
    names = [(code(f"--{name}"), code(f"--{' '.join(flag)}")) for name, flag in others.items()]
    return "\n".join(
        [OPENING, *groups, section("Other names", ("name", "stands for"), names), recipes()]
    )


def row(flag: Flag) -> tuple[str, str, str, str]:
    """Return the cells of a flag: name, default, values, help."""
    meaning, _, default = flag.help.replace("%%", "%").partition(" (default: ")
    if default:
        default = default.removesuffix(")")
    elif flag.default is None:
        default = "*by dataset*" if flag.name in BY_DATASET else "none"
    else:
        default = "off" if flag.type is switch else code(flag.default)
    values = f"{flag.type}; one or more" if flag.nargs else str(flag.type)
    return code(f"--{flag.name}"), escaped(default), values, escaped(meaning)


def recipes() -> str:
    """Return a table of the flags that recipes fill in; equal recipes share a column."""
    named = {
        **RECIPES,
        "your own images": OWN_IMAGES,
        "small": SMALL,
        "your own captions": OWN_CAPTIONS,
    }
    flags = [flag.name for group in parameters.FLAGS.values() for flag in group]
    filled = [field.name for field in fields(Recipe) if field.name in flags]
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, recipe in named.items():
        column = tuple(code(getattr(recipe, flag)) for flag in filled)
        columns.setdefault(column, []).append(name)
    head = ("flag", *(", ".join(names) for names in columns.values()))
    rows = [
        (code(f"--{flag}"), *(column[place] for column in columns))
        for place, flag in enumerate(filled)
    ]
    return section("Defaults by dataset", head, rows)


def section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return f"## {title}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def code(value: Any) -> str:
    """Return a value as it would be typed; "none" if it is empty."""
    parts = value if isinstance(value, list | tuple) else [value]
    text = " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
    return f"`{text}`" if text else "none"


def escaped(text: str) -> str:
    """Return text that Markdown shows unchanged in a table."""
    return text.replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    startup.begin()
    print(page(), end="")
