"""Tables of components that can be read without importing them, and building one from its flags.

A component's hyperparameters are its keyword-only constructor parameters, set by the flags
``--<prefix><name>``: ``--loss_margin_beta 1.2`` becomes ``Margin(..., beta=1.2)``. Its other
parameters are collaborators (a miner, the number of classes).
"""

import argparse
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Component:
    """A row of a folder's table."""

    module: str  # that defines the class, such as "criteria.margin"
    name: str  # of the class or function, such as "Margin"
    needs: frozenset[str] = frozenset()  # such as "labels" or "miner"; words of the folder's table

    def load(self) -> Any:
        return getattr(import_module(self.module), self.name)


def needing(registry: Mapping[str, Component], *needs: str) -> tuple[str, ...]:
    """Return the names of the components that need all of ``needs``, in the table's order."""
    return tuple(name for name, row in registry.items() if row.needs.issuperset(needs))


def exporter(package: str, registry: Mapping[str, Component]) -> Callable[[str], Any]:
    """Return a module ``__getattr__`` (PEP 562) that imports what the table names on first use.

    So a command of the package can refuse a wrong flag before torch is imported.
    """
    exported = {row.name: row for row in registry.values()}

    def attribute(name: str) -> Any:
        if name not in exported:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return exported[name].load()

    return attribute


def listed(modules: Mapping[str, Iterable[str]]) -> dict[str, Component]:
    """Return a table for ``exporter`` of what each module exports: its classes, functions, …"""
    return {name: Component(module, name) for module, names in modules.items() for name in names}


def closest_first(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names, the most similar to ``name`` first, the rest alphabetically.

    Upper and lower case count as alike.
    """
    names = sorted(known)
    lower = [other.lower() for other in names]
    near = difflib.get_close_matches(name.lower(), lower, n=len(names), cutoff=0.5)
    return sorted(names, key=lambda other: (*near, other.lower()).index(other.lower()))


def lookup(registry: Mapping[str, T], name: str, flag: str) -> T:
    """Return the entry called ``name``; ValueError lists the known ones, closest first."""
    if name not in registry:
        raise ValueError(
            f"{flag} {name} is unknown; known, closest first: "
            + ", ".join(closest_first(name, registry))
        )
    return registry[name]


def hyperparameters(component: Callable[..., Any]) -> dict[str, Any]:
    """Return the keyword-only parameters of ``component`` with their defaults."""
    return {
        p.name: p.default
        for p in inspect.signature(component).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def from_flags(
    component: Callable[..., T], args: argparse.Namespace, prefix: str, **collaborators: Any
) -> T:
    """Build ``component`` from the flags of its prefix and those ``collaborators`` that it takes.

    A ValueError that begins with a hyperparameter ("beta must be …") begins with its flag instead
    ("--loss_margin_beta must be …").
    """
    parameters = inspect.signature(component).parameters
    taken = {name: value for name, value in collaborators.items() if name in parameters}
    chosen = {name: getattr(args, prefix + name) for name in hyperparameters(component)}
    try:
        return component(**taken, **chosen)
    except ValueError as error:
        first, _, rest = str(error).partition(" ")
        if first not in chosen:
            raise
        raise ValueError(f"--{prefix}{first.rstrip('_')} {rest}") from error


def pick(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return some flags by name, to be passed on as arguments."""
    return {name: getattr(args, name) for name in names}
