"""Differences between runs: two that are compared, or those that share a group by mistake."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from utilities.finished import PLACES
from utilities.results.runs import Groups, Result
from utilities.results.tables import Cell, Table, csv_text, rule_label

ABSENT = "–"
ENVIRONMENT = ("date", "python", "platform", "device")  # in config.json, with commit and packages


class Line(NamedTuple):
    name: str
    a: str
    b: str
    difference: str = ""


Comparison = dict[str, list[Line]]  # run, flag, place, code, score


def compare(a: Result, b: Result, rule: str) -> Comparison:
    """Return the differences between two runs, and all scores of both at the chosen epochs."""
    flags = _differing(a.run.flags, b.run.flags)
    scores = [Line("epoch", str(a.epoch), str(b.epoch))]
    for name in dict.fromkeys([*a.scores, *b.scores]):
        before, after = a.scores.get(name), b.scores.get(name)
        gain = math.nan if before is None or after is None else after - before
        texts = [ABSENT if score is None else f"{score:.4f}" for score in (before, after)]
        change = f"{gain:+.4f}" if math.isfinite(gain) else ABSENT
        scores.append(Line(name, texts[0], texts[1], change))
    return {
        "run": [
            Line("folder", str(a.run.folder), str(b.run.folder)),
            Line("epoch_by", rule_label(rule), rule_label(rule)),
        ],
        "flag": [line._replace(name=f"--{line.name}") for line in flags if line.name not in PLACES],
        "place": [line._replace(name=f"--{line.name}") for line in flags if line.name in PLACES],
        "code": _differing(_code(a.run.config), _code(b.run.config)),
        "score": scores,
    }


def tables(comparison: Comparison, chosen: str) -> list[Table]:
    folders, _ = comparison["run"]
    flags, code = comparison["flag"], comparison["code"]
    notes = [] if flags else ["Every flag that shapes a run is the same."]
    if comparison["place"]:
        places = "; ".join(f"{line.name} {line.a} and {line.b}" for line in comparison["place"])
        notes.append(f"Flags that only say where they ran: {places}")
    same_code = [] if code else ["Commit, packages and device are the same."]
    caveat = f"Scores as recorded, {chosen}. Two runs say nothing about significance."
    scores: list[list[Cell]] = [[*line] for line in comparison["score"]]
    title = f"A is {folders.a}, B is {folders.b}"
    return [
        Table(title, ["flag", "A", "B"], [list(line[:3]) for line in flags], notes),
        Table("", ["code", "A", "B"], [list(line[:3]) for line in code], same_code),
        Table("", ["score", "A", "B", "B − A"], scores, [caveat]),
    ]


def as_csv(comparison: Comparison) -> str:
    lines = [(kind, *line) for kind, lines in comparison.items() for line in lines]
    return csv_text([("kind", "name", "a", "b", "difference"), *lines])


def mixed_flags(groups: Groups) -> list[str]:
    """Return notes on groups whose runs differ in more than the seed, in flags that they share."""
    notes = []
    for group, by_seed in groups.items():
        runs = [result.run.flags for result in by_seed.values()]
        differing = []
        for flag in dict.fromkeys(flag for flags in runs for flag in flags):
            values = list(dict.fromkeys(_text(flags[flag]) for flags in runs if flag in flags))
            if len(values) > 1 and flag not in PLACES | {"seed", "cv_fold", "savename"}:
                differing.append(f"--{flag} {' / '.join(values)}")
        if differing:
            listed = ", ".join(differing)
            notes.append(f"the runs of {group} differ in more than the seed: {listed}")
    return notes


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Line]:
    lines = [
        Line(name, *(_text(side[name]) if name in side else ABSENT for side in (a, b)))
        for name in dict.fromkeys([*a, *b])
    ]
    return [line for line in lines if line.a != line.b]


def _code(config: Mapping[str, Any]) -> dict[str, Any]:
    git = config.get("git") or {}
    commit = git.get("commit", ABSENT) + (" and changes to it" if git.get("dirty") else "")
    known = {name: config[name] for name in ENVIRONMENT if name in config}
    return {"commit": commit, **known, **config.get("packages", {})}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "(empty)" if value == "" else str(value)
