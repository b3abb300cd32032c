"""Names to components: look one up, or build it from the flags that carry its prefix.

A component's hyperparameters are its keyword-only constructor parameters, and the flags
``--<prefix><name>`` set them: ``--loss_margin_beta 1.2`` becomes ``Margin(..., beta=1.2)``. Its
collaborators (a miner, the number of classes) are the other parameters and are given by name.
"""

import argparse
import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def closest_first(name: str, known: Iterable[str]) -> list[str]:
    """The known names, the most similar to ``name`` first, the others in alphabetical order."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=len(names), cutoff=0.5)
    return near + [other for other in names if other not in near]


def lookup(registry: Mapping[str, T], name: str, flag: str) -> T:
    """The entry called ``name``.

    Raises:
        ValueError: there is none; names the flag, the value and the known names, closest first.
    """
    if name not in registry:
        raise ValueError(
            f"{flag} {name} is unknown; known, closest first: "
            + ", ".join(closest_first(name, registry))
        )
    return registry[name]


def hyperparameters(component: type) -> dict[str, Any]:
    """Keyword-only constructor parameters of ``component`` and their defaults."""
    return {
        p.name: p.default
        for p in inspect.signature(component).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def from_flags(
    component: type[T], args: argparse.Namespace, prefix: str, **collaborators: Any
) -> T:
    """Build ``component`` from the flags of its prefix and the collaborators that it asks for.

    Args:
        prefix: what stands before a hyperparameter's name in its flag, such as ``loss_margin_``.
        collaborators: everything that a component of this kind may ask for, by parameter name; one
            that this component has no parameter for is left out.
    """
    parameters = inspect.signature(component).parameters
    asked = {name: value for name, value in collaborators.items() if name in parameters}
    chosen = {name: getattr(args, prefix + name) for name in hyperparameters(component)}
    return component(**asked, **chosen)
