"""Differences between runs: two that are compared, or those that share a group by mistake."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from utilities.finished import PLACES
from utilities.results.runs import Groups, Result
from utilities.results.tables import Table, csv_text, rule_label

ABSENT = "–"
ENVIRONMENT = ("date", "python", "platform", "device")  # in config.json, with commit and packages


class Line(NamedTuple):
    """A value of both runs as text; the difference of scores."""

    name: str
    a: str
    b: str
    difference: str = ""


class Comparison(NamedTuple):
    """Two runs side by side."""

    a: Result
    b: Result
    flags: list[Line]  # those that differ and change what a run computes
    places: list[Line]  # those that differ and only say where it runs
    code: list[Line]  # commit, versions and device, where they differ
    scores: list[Line]  # all scores of both at the chosen epochs


def compare(a: Result, b: Result) -> Comparison:
    """Return the differences between two runs."""
    flags = _differing(a.run.flags, b.run.flags)
    scores = [Line("epoch", str(a.epoch), str(b.epoch))]
    for name in dict.fromkeys([*a.scores, *b.scores]):
        before, after = a.scores.get(name), b.scores.get(name)
        gain = math.nan if before is None or after is None else after - before
        texts = [ABSENT if score is None else f"{score:.4f}" for score in (before, after)]
        change = f"{gain:+.4f}" if math.isfinite(gain) else ABSENT
        scores.append(Line(name, texts[0], texts[1], change))
    return Comparison(
        a,
        b,
        [line._replace(name=f"--{line.name}") for line in flags if line.name not in PLACES],
        [line._replace(name=f"--{line.name}") for line in flags if line.name in PLACES],
        _differing(_code(a.run.config), _code(b.run.config)),
        scores,
    )


def tables(comparison: Comparison, chosen: str) -> list[Table]:
    """Return tables of the flags, the code and the scores; ``chosen`` says how epochs were."""
    a, b, flags, places, code, scores = comparison
    notes = [] if flags else ["Every flag that shapes a run is the same."]
    if places:
        moved = "; ".join(f"{line.name} {line.a} and {line.b}" for line in places)
        notes.append(f"Flags without effect on the scores: {moved}")
    return [
        Table(
            f"A is {a.run.folder}, B is {b.run.folder}",
            ["flag", "A", "B"],
            [list(line[:3]) for line in flags],
            notes,
        ),
        Table(
            "",
            ["code", "A", "B"],
            [list(line[:3]) for line in code],
            [] if code else ["Commit, packages and device are the same."],
        ),
        Table(
            "",
            ["score", "A", "B", "B − A"],
            [list(line) for line in scores],
            [f"Scores as recorded, {chosen}. Two runs say nothing about significance."],
        ),
    ]


def as_csv(comparison: Comparison, rule: str) -> str:
    """Return all lines as one CSV table: kind, name, a, b, difference."""
    a, b, flags, places, code, scores = comparison
    run = [
        Line("folder", str(a.run.folder), str(b.run.folder)),
        Line("epoch_by", rule_label(rule), rule_label(rule)),
    ]
    kinds = {"run": run, "flag": flags, "place": places, "code": code, "score": scores}
    lines = [(kind, *line) for kind, lines in kinds.items() for line in lines]
    return csv_text([("kind", "name", "a", "b", "difference"), *lines])


def mixed_flags(groups: Groups) -> list[str]:
    """Return notes on groups whose runs differ in more than the seed.

    A flag that is newer than a run is not compared.
    """
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
