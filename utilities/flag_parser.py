"""The parser of flags, which also reads them from a file and under other names."""

import argparse
import reprlib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utilities.files import distinct_keys, json_name, read_json
from utilities.flag_types import OneOf
from utilities.registry import closest_first

# Flags in a run's config.json that were chosen for the machine it ran on.
OF_THE_MACHINE = ("device", "gpu", "kernels", "resume", "skip_finished", "dry_run")


class Parser(argparse.ArgumentParser):
    """Names the file that a wrong flag is in."""

    file = ""

    def error(self, message: str) -> NoReturn:
        super().error(f"{self.file}: {message}" if self.file else message)


class DefaultsShown(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the choices and the default of each flag."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        described = action.help or ""
        if isinstance(action.type, OneOf) and not all(n in described for n in action.type.names):
            described += ": " + ", ".join(action.type.names)
        if action.default is None and "default" not in described:
            described += " (default: by dataset)"
        elif action.default not in (None, False, argparse.SUPPRESS):
            described += " (default: %(default)s)"
        return described


def expanded(
    argv: Sequence[str] | None,
    parser: Parser,
    named: argparse.ArgumentParser,
    other_names: Mapping[str, Sequence[str]],
    exclusive: Sequence[Sequence[str]],
) -> list[str]:
    """Return a command line whose ``--config`` and other names are replaced by flags.

    The file's flags are parsed on their own first, so that an error names the file.

    Args:
        named: ``parser`` without defaults.
        other_names: name -> the flag and value that it stands for.
        exclusive: flags that exclude each other: one on the command line drops all in the file.
    """
    finder = argparse.ArgumentParser(
        prog=parser.prog, usage=parser.usage, add_help=False, allow_abbrev=False
    )
    finder.add_argument("--config")
    found, typed = finder.parse_known_args(argv)
    typed = _renamed(typed, parser, other_names)
    if found.config is None:
        return typed
    parser.file = found.config
    flags = _read(parser, Path(found.config).expanduser(), other_names)
    override = vars(named.parse_known_args(typed)[0])
    dropped = {name for group in exclusive if set(group) & set(override) for name in group}
    words = [
        word
        for name, value in flags.items()
        if name not in dropped
        for word in _as_typed(parser, name, value, other_names)
    ]
    words = _renamed(words, parser, other_names)
    parser.parse_args(words)
    return words + typed


def changed(args: argparse.Namespace, rows: Sequence[Any], filled: Container[str]) -> list[str]:
    """Return the flags of ``rows`` that differ from their defaults and were not ``filled`` in."""
    values = {row.name: getattr(args, row.name) for row in rows if row.name not in filled}
    defaults = {row.name: row.default for row in rows}
    return [f"--{name} {v}" for name, v in values.items() if v not in (None, defaults[name])]


def differing(args: argparse.Namespace, others: argparse.Namespace) -> set[str]:
    """Return the flags whose values are not those of ``others``."""
    return {name for name, value in vars(args).items() if value != getattr(others, name)}


def _renamed(
    words: Sequence[str], parser: Parser, other_names: Mapping[str, Sequence[str]]
) -> list[str]:
    """Replace other names; refuse one whose flag is given a value, too."""
    renamed: list[str] = []
    for word in words:
        flag, *value = other_names.get(word.removeprefix("--"), [""])
        if not word.startswith("--") or not flag:
            renamed.append(word)
            continue
        given = [other.partition("=") for other in words]
        if value and any(name == f"--{flag}" and v != value[0] for name, _, v in given):
            parser.error(
                f"{word} is short for --{flag} {value[0]}, and --{flag} is given, too; drop one"
            )
        renamed += [f"--{flag}", *value]
    return renamed


def _read(parser: Parser, file: Path, other_names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the flags of a YAML or JSON file, or of a run without those of its machine."""
    if file.is_dir():
        file = file / "config.json"
    try:
        content = _read_yaml(parser, file) if file.suffix in (".yaml", ".yml") else read_json(file)
    except OSError as error:
        parser.error(f"--config cannot be read ({error}); give a YAML or JSON file or a run folder")
    except ValueError as error:
        message = str(error).removeprefix(f"{file} ")
        parser.error(
            f"--config {message}. It holds flags, in lines such as 'loss: multisimilarity' in a "
            "file that ends in .yaml"
        )
    is_run = isinstance(content, Mapping) and isinstance(content.get("flags"), Mapping)
    flags = content["flags"] if is_run else content
    if not is_run:
        return {str(name): value for name, value in flags.items()}
    # --max_steps decided n_epochs, and a flag under another name its value.
    worked_out = {"n_epochs"} if flags.get("max_steps") else set()
    worked_out |= {flag for other, (flag, *_) in other_names.items() if flags.get(other)}
    return {n: v for n, v in flags.items() if n not in worked_out.union(OF_THE_MACHINE)}


def _read_yaml(parser: Parser, file: Path) -> dict[str, Any]:
    """Return the content of a YAML file; aliases are refused, of which ten lines make gigabytes."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        parser.error("--config needs pyyaml to read YAML; pip install pyyaml, or write JSON")

    class Loader(yaml.SafeLoader):
        def compose_node(self, *above: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("an alias (*name) must be replaced by what it stands for")
            return super().compose_node(*above)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            return distinct_keys(self.construct_pairs(node, deep))

    data = file.read_bytes()
    try:
        content = yaml.load(data, Loader)
    except RecursionError as error:
        raise ValueError("is nested too deeply to be read") from error
    except Exception as error:  # whatever its constructors meet in a wrong value
        raise ValueError(f"is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"must hold an object; got {json_name(content)}")
    return content or {}


def _as_typed(
    parser: Parser, name: str, value: Any, other_names: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return a file's ``name: value`` as words of a command line."""
    if name in other_names:
        if not isinstance(value, bool | None):
            parser.error(f"--{name} is a switch; write true or false instead of {value!r}")
        return [f"--{name}"] if value else []
    actions = {
        key: action
        for action in parser._actions
        for key in (action.dest, *(flag.lstrip("-") for flag in action.option_strings))
        if action.dest not in ("help", "config")
    }
    if name not in actions:
        near = closest_first(name, actions)[0]
        parser.error(f"{name} is not a flag; did you mean {near}?")
    action = actions[name]
    flag = action.option_strings[0]
    if action.nargs == 0 and not isinstance(value, bool | None):
        parser.error(f"{flag} is a switch; write true or false instead of {value!r}")
    if value is None or value == [] or (value is False and action.nargs == 0):
        return []
    if action.nargs == 0:
        return [flag]
    several = isinstance(value, list)
    values = value if several and action.nargs else [value]
    if any(isinstance(item, bool | Mapping | list | None) for item in values):
        parser.error(
            f"{flag} takes {'numbers or texts' if action.nargs else 'one number or text'}"
            f"; got {reprlib.repr(value)}"
        )
    if several and len(value) > 1:
        return [flag, *map(str, value)]
    return [f"{flag}={value[0] if several else value}"]  # in one word: it may begin with a minus
