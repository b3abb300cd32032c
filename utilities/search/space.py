"""The search space: what each flag is drawn from, and how a draw becomes a command line."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from utilities.finished import PLACES
from utilities.registry import closest_first

# Flags that the search sets itself; neither the command line nor the space may contain them.
OWN = frozenset(
    ("cv_folds", "cv_fold", "use_tv_split", "tv_split_by_samples", "tv_split_perc", "group",
     "savename", "resume", "skip_finished", "evaluate_only", "checkpoint", "dry_run",
     "no_test_metrics", "patience")
)  # fmt: skip
FIXED = OWN | PLACES | {  # the same for all trials
    "config", "dataset", "evaltypes", "evaluations", "help", "no_report", "no_train_metrics",
    "seed", "storage_metrics",
}  # fmt: skip

Flags = dict[str, Any]  # by name, as ``CommandLine.parse`` returns them


class Flag(NamedTuple):
    dest: str  # its name among the parsed flags
    nargs: int | str | None  # as argparse has it: None takes one value, 0 is a switch
    default: Any


@dataclass(frozen=True)
class CommandLine:
    """The command line of the program whose flags are searched."""

    flags: Mapping[str, Flag]  # by name without dashes
    parse: Callable[[Sequence[str]], Flags]  # words -> all flags; SystemExit if they cannot work
    given: Callable[[Sequence[str]], Flags]  # words -> only the flags that they name

    def words(self, chosen: Mapping[str, Any]) -> list[str]:
        """Return the words that set flags to texts of the space or values of a trial."""
        found: list[str] = []
        for name, value in chosen.items():
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            nargs = self.flags[name].nargs
            values = [text] if nargs is None else shlex.split(text)
            if nargs == 0:
                found += [f"--{name}"] if text == "on" else []
            elif len(values) == 1 and values[0].startswith("-"):
                found += [f"--{name}={values[0]}"]
            else:
                found += [f"--{name}", *values]
        return found

    def words_of(self, flags: Mapping[str, Any]) -> list[str]:
        """Return the words from which ``given`` reads ``flags``."""
        names = {flag.dest: name for name, flag in self.flags.items()}
        texts = {}
        for dest, value in flags.items():
            if isinstance(value, bool):
                value = "on" if value else "off"
            texts[names[dest]] = shlex.join(map(str, value)) if isinstance(value, list) else value
        return self.words({name: str(value) for name, value in texts.items()})


def read_space(
    texts: Sequence[str], fixed: Sequence[str], line: CommandLine
) -> dict[str, BaseDistribution]:
    """Return the distribution of each flag, by the flag's name without dashes.

    Args:
        texts: ``lr=1e-6..1e-3`` (a range), ``lr=1e-6..1e-3:log``, or ``loss=margin,triplet``
            (choices; on and off for a switch).
        fixed: words that all trials share; the program must accept each end and choice with them.
    """
    ends: dict[str, list[str]] = {}
    logarithmic = {}
    for text in texts:
        name, equals, values = text.removeprefix("--").partition("=")
        if not equals or not values:
            raise ValueError(f"--space {text}: give {name}=low..high, low..high:log or a,b,c")
        if name not in line.flags:
            near = ", ".join(f"--{known}" for known in closest_first(name, line.flags)[:3])
            raise ValueError(f"--space {text}: main.py has no --{name}; the nearest are {near}")
        flag = line.flags[name]
        if flag.dest in FIXED:
            raise ValueError(f"--space {text}: --{name} is the same for all trials; leave it out")
        if name in ends:
            raise ValueError(f"--space {text}: --{name} is there twice; give it once")
        if flag.dest in line.given(fixed):
            raise ValueError(f"--space {text}: --{name} is given after -- as well; drop one")
        interval = re.fullmatch(r"([^,]+?)\.\.([^,]+?)(:log)?", values)
        if interval:
            logarithmic[name] = bool(interval[3])
        ends[name] = [interval[1], interval[2]] if interval else values.split(",")
        if flag.nargs == 0 and set(ends[name]) != {"on", "off"}:
            raise ValueError(f"--space {text}: --{name} is a switch; give {name}=on,off")

    first = {name: listed[0] for name, listed in ends.items()}
    distributions: dict[str, BaseDistribution] = {}
    for name, listed in ends.items():
        parsed = [
            line.parse([*fixed, *line.words(first | {name: text})])[line.flags[name].dest]
            for text in listed
        ]
        distributions[name] = (
            distribution(name, parsed, logarithmic[name])
            if name in logarithmic
            else CategoricalDistribution(listed)
        )
    return distributions


def distribution(name: str, ends: Sequence[Any], log: bool) -> BaseDistribution:
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise ValueError(
            f"--space {name}: --{name} does not take a number; list its values: {name}=a,b"
        )
    low, high = ends
    if low >= high:
        raise ValueError(f"--space {name}: {low:g} is not below {high:g}")
    if log and low <= 0:
        raise ValueError(f"--space {name}: {low:g} has no logarithm; start above 0 or drop :log")
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=log)
