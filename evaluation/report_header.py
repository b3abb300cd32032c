"""The header of a report (data, model, objective, command, code) and its list of flags."""

from collections.abc import Container, Mapping
from datetime import datetime
from typing import Any

from evaluation.pictures import shorten
from utilities.guidance import describe_guidance

FLAG_LENGTH = 200


def facts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return label and text of what config.json says of a run; nothing for what it lacks."""
    flags, git = config.get("flags", config), config.get("git") or {}
    found = {}
    if "dataset" in flags and "loss" in flags:
        dim = flags["embed_dim"] or "all"
        model = f"{flags['arch']}, {dim} dimensions, {flags['image_size']} px"
        found = {"dataset": flags["dataset"], "model": model, "objective": flags["loss"]}
        found["guidance"] = describe_guidance(flags) or "none"
    if "date" in config:
        found["date"] = f"{datetime.fromisoformat(config['date']):%d %B %Y, %H:%M %Z}".lstrip("0")
    if git:
        found["commit"] = git["commit"][:12] + ", with uncommitted changes" * git["dirty"]
    return {label: shorten(text, FLAG_LENGTH) for label, text in found.items()}


def flag_lists(
    config: Mapping[str, Any], changed: Container[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the ``changed`` flags and the other ones, then the rest of config.json."""
    lines = _flags({name: value for name, value in config.items() if name != "command"})
    first = [line for line in lines if line[0] in changed]
    return first, [line for line in lines if line not in first]


def _flags(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return flags as they would be typed, then the rest of config.json, its levels dotted."""
    lines: list[tuple[str, str]] = []
    if isinstance(config.get("flags"), Mapping):
        lines = _flags(config["flags"])
        config = {name: value for name, value in config.items() if name != "flags"}
    for name, value in config.items():
        if isinstance(value, Mapping):
            lines += [(f"{name}.{key}", text) for key, text in _flags(value)]
        else:
            plain = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            lines.append((str(name), shorten(plain, FLAG_LENGTH)))
    return lines
