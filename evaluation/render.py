"""Fills the templates of pages that open from disk, without network, all images included.

A template escapes its values, and its policy admits only the style and script that it was built
with: class names and paths are often folder names, which anyone can choose.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.pictures import shorten

PAGE = Path(__file__).with_name("page")
NAME_LENGTH = 60  # of names, in characters


def render(template: str, styles: Sequence[str], script: str | None = None, **values: Any) -> str:
    """Return the page of a template with these style sheets and, if any, a script in it."""
    parts = {"style": styles, "script": [script] if script else []}
    for part, files in parts.items():
        values[part] = "".join((PAGE / file).read_text(encoding="utf-8") for file in files)
        hashed = base64.b64encode(hashlib.sha256(values[part].encode()).digest())
        values[f"{part}_hash"] = f"sha256-{hashed.decode()}"
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "name": lambda text: shorten(text, NAME_LENGTH),
        "breakable": lambda text: Markup("/<wbr>").join(str(text).split("/")),
        "percent": lambda value: formatted(100 * value, ".1f"),
        "cosine": lambda value: formatted(value, ".2f"),
        "signed": lambda value: formatted(value, "+.1f"),
    }
    return environment.get_template(template).render(**values)


def formatted(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)
