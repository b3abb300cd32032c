"""What trials are drawn from, and how a draw becomes words of main.py's command line."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

import parameters
from utilities.finished import PLACES
from utilities.registry import closest_first

# Flags that the search gives itself, so that neither the command line nor the space may.
OWN = frozenset(
    ("cv_folds", "cv_fold", "use_tv_split", "tv_split_by_samples", "tv_split_perc", "group",
     "savename", "resume", "skip_finished", "evaluate_only", "checkpoint", "dry_run",
     "no_test_metrics")
)  # fmt: skip
FIXED = OWN | PLACES | {  # what a trial may not differ in
    "config", "dataset", "evaltypes", "evaluations", "help", "no_report", "no_train_metrics",
    "seed", "storage_metrics",
}  # fmt: skip

Flags = dict[str, Any]  # by their names in parameters.parse's answer

ACTIONS = {
    option.removeprefix("--"): action
    for action in parameters.build_parser()._actions
    for option in action.option_strings
    if option.startswith("--")
}


def read_space(texts: Sequence[str], fixed: Sequence[str]) -> dict[str, BaseDistribution]:
    """What to draw each flag from, by the flag's name without dashes.

    Args:
        texts: ``lr=1e-6..1e-3`` (a range), ``lr=1e-6..1e-3:log`` (of its logarithm),
            ``batch_mining=distance,semihard`` (a choice; of a flag that takes several values, each
            choice is values with spaces between; of a switch, the choices are on and off). A range
            of a flag that takes whole numbers is of whole numbers.
        fixed: the flags that all trials share; each end and choice must go with them.

    Raises:
        ValueError: a text of another form, an unknown flag, or one that cannot be searched.
        SystemExit: main.py's parser refuses an end or a choice; it says why.
    """
    ends: dict[str, list[str]] = {}
    logarithmic = {}
    for text in texts:
        name, equals, values = text.removeprefix("--").partition("=")
        if not equals or not values:
            raise ValueError(f"--space {text}: give {name}=low..high, low..high:log or a,b,c")
        if name not in ACTIONS:
            near = ", ".join(f"--{known}" for known in closest_first(name, ACTIONS)[:3])
            raise ValueError(f"--space {text}: main.py has no --{name}; the nearest are {near}")
        if ACTIONS[name].dest in FIXED:
            raise ValueError(f"--space {text}: --{name} is the same for all trials; leave it out")
        if name in ends:
            raise ValueError(f"--space {text}: --{name} is there twice; give it once")
        if ACTIONS[name].dest in parameters.given(fixed):
            raise ValueError(f"--space {text}: --{name} is given after -- as well; drop one")
        interval = re.fullmatch(r"([^,]+?)\.\.([^,]+?)(:log)?", values)
        if interval:
            logarithmic[name] = bool(interval[3])
        ends[name] = [interval[1], interval[2]] if interval else values.split(",")
        if ACTIONS[name].nargs == 0 and set(ends[name]) != {"on", "off"}:
            raise ValueError(f"--space {text}: --{name} is a switch; give {name}=on,off")

    first = {name: listed[0] for name, listed in ends.items()}
    distributions: dict[str, BaseDistribution] = {}
    for name, listed in ends.items():
        read = [
            vars(parameters.parse([*fixed, *words(first | {name: text})]))[ACTIONS[name].dest]
            for text in listed
        ]
        distributions[name] = (
            distribution(name, read, logarithmic[name])
            if name in logarithmic
            else CategoricalDistribution(listed)
        )
    return distributions


def distribution(name: str, ends: Sequence[Any], log: bool) -> BaseDistribution:
    """The range between two ends as the parser read them, whole numbers where it reads these.

    Raises:
        ValueError: they are no numbers, not in order, or not above 0 for a logarithm.
    """
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise ValueError(f"--space {name}: --{name} takes no number; list its values: {name}=a,b")
    low, high = ends
    if low >= high:
        raise ValueError(f"--space {name}: {low:g} is not below {high:g}")
    if log and low <= 0:
        raise ValueError(f"--space {name}: {low:g} has no logarithm; begin above 0 or drop :log")
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=log)


def words(chosen: Mapping[str, Any]) -> list[str]:
    """The words of a command line from flags by name: texts of the space, or a trial's values.

    Numbers are written with six digits: more say nothing, and a command has to be read.
    """
    found: list[str] = []
    for name, value in chosen.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        if ACTIONS[name].nargs == 0:
            found += [f"--{name}"] if text == "on" else []
        elif ACTIONS[name].nargs is not None:
            found += [f"--{name}", *text.split()]
        else:
            found += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return found


def command_line(flags: Mapping[str, Any]) -> list[str]:
    """The words that ``parameters.given`` reads ``flags`` from."""
    names = {action.dest: name for name, action in ACTIONS.items()}
    texts = {}
    for flag, value in flags.items():
        if isinstance(value, bool):
            value = "on" if value else "off"
        texts[names[flag]] = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return words(texts)
