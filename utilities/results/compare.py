"""Flags that differ between runs: of two that are compared, or within a group by mistake."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from utilities.finished import PLACES
from utilities.results.runs import Groups, Result
from utilities.results.tables import Table, csv_text, labelled_rule

NONE = "–"
CODE = ("date", "python", "platform", "device")  # of config.json, beside commit and packages


class Line(NamedTuple):
    """What differs, as text; of a score also by how much."""

    name: str
    a: str
    b: str
    difference: str = ""


class Comparison(NamedTuple):
    """Two runs side by side.

    Attributes:
        flags: those that differ and shape a run.
        places: those that differ and say where it happens (``utilities.finished.PLACES``).
        code: commit, versions and device, where they differ.
        scores: all of both, at the chosen epochs.
    """

    a: Result
    b: Result
    flags: list[Line]
    places: list[Line]
    code: list[Line]
    scores: list[Line]


def compare(a: Result, b: Result) -> Comparison:
    """What is different between two runs, from what they were asked to what came out."""
    flags = _differing(
        {f"--{flag}": value for flag, value in a.run.flags.items()},
        {f"--{flag}": value for flag, value in b.run.flags.items()},
    )
    scores = [
        Line(
            name,
            _score(a.scores.get(name)),
            _score(b.scores.get(name)),
            _score(_gain(a.scores, b.scores, name), "+"),
        )
        for name in dict.fromkeys([*a.scores, *b.scores])
    ]
    return Comparison(
        a,
        b,
        [line for line in flags if line.name[2:] not in PLACES],
        [line for line in flags if line.name[2:] in PLACES],
        _differing(_code(a.run.config), _code(b.run.config)),
        [Line("epoch", str(a.epoch), str(b.epoch)), *scores],
    )


def tables(comparison: Comparison, chosen: str) -> list[Table]:
    """Three tables: flags, code and machine, scores.

    Args:
        chosen: how the epochs were chosen, in words.
    """
    names = [str(result.run.folder) for result in (comparison.a, comparison.b)]
    places = [f"{line.name} {line.a} against {line.b}" for line in comparison.places]
    code = [] if comparison.code else ["Commit, packages and device are the same."]
    scores = [f"Scores as recorded, {chosen}. Two runs say nothing about significance."]
    return [
        Table(
            f"A is {names[0]}, B is {names[1]}",
            ["flag", "A", "B"],
            [list(line[:3]) for line in comparison.flags],
            [
                *(["Every flag that shapes a run is the same."] if not comparison.flags else []),
                *(["Where they ran, which shapes nothing: " + "; ".join(places)] if places else []),
            ],
        ),
        Table("", ["code", "A", "B"], [list(line[:3]) for line in comparison.code], code),
        Table("", ["score", "A", "B", "B − A"], [list(line) for line in comparison.scores], scores),
    ]


def as_csv(comparison: Comparison, rule: str) -> str:
    """All lines in one table: kind, name, a, b, difference.

    Args:
        rule: how the epochs were chosen.
    """
    kinds = {
        "run": [
            Line("folder", str(comparison.a.run.folder), str(comparison.b.run.folder)),
            Line("epoch_by", *[labelled_rule(rule)] * 2),
        ],
        "flag": comparison.flags,
        "place": comparison.places,
        "code": comparison.code,
        "score": comparison.scores,
    }
    lines = [(kind, *line) for kind, lines in kinds.items() for line in lines]
    return csv_text([("kind", "name", "a", "b", "difference"), *lines])


def mixed_flags(groups: Groups) -> list[str]:
    """Notes on groups whose runs differ in more than the seed: their mean is of no one setting.

    A flag that a run does not know, being older than the flag, is not compared.
    """
    notes = []
    for group, by_seed in groups.items():
        runs = [result.run.flags for result in by_seed.values()]
        differ = []
        for flag in dict.fromkeys(flag for flags in runs for flag in flags):
            values = list(dict.fromkeys(_text(flags[flag]) for flags in runs if flag in flags))
            if len(values) > 1 and flag not in PLACES | {"seed", "cv_fold", "savename"}:
                differ.append(f"--{flag} {' / '.join(values)}")
        if differ:
            notes.append(f"the runs of {group} differ in more than the seed: {', '.join(differ)}")
    return notes


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Line]:
    lines = [
        Line(name, _text(a[name]) if name in a else NONE, _text(b[name]) if name in b else NONE)
        for name in dict.fromkeys([*a, *b])
    ]
    return [line for line in lines if line.a != line.b]


def _code(config: Mapping[str, Any]) -> dict[str, Any]:
    git = config.get("git") or {}
    commit = git.get("commit", NONE) + (" and changes to it" if git.get("dirty") else "")
    known = {name: config[name] for name in CODE if name in config}
    return {"commit": commit, **known, **config.get("packages", {})}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "(empty)" if value == "" else str(value)


def _score(value: float | None, sign: str = "") -> str:
    if value is None:
        return NONE
    return f"{value:{sign}.4f}"


def _gain(a: Mapping[str, float], b: Mapping[str, float], name: str) -> float | None:
    if name not in a or name not in b:
        return None
    gain = b[name] - a[name]
    return gain if math.isfinite(gain) else None
