"""What docs/ says of components, flags and files is so."""

import re
from pathlib import Path

import pytest

import parameters
from batchminer import MINERS
from criteria import CRITERIA
from datasampler import SAMPLERS
from metrics import METRICS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
OBJECTIVES = (ROOT / "docs" / "objectives.md").read_text()
ACTIONS = {
    flag: action for action in parameters.build_parser()._actions for flag in action.option_strings
}
OF_OTHER_COMMANDS = {
    *("--classes", "--device", "--only", "--rounds", "--sizes", "--threads"),  # benchmarks
    *("--index", "--k", "--save", "--json"),  # evaluation.retrieve
    *("--format", "--out"),  # architectures.export
    "--versus",  # utilities.results
    "--dev",  # requirements.sh
}
TABLES = [  # section, what stands before a hyperparameter in its flag, registry
    ("Objectives", "--loss_{}_", CRITERIA),
    ("Miners", "--miner_{}_", MINERS),
    ("Samplers", "--data_", SAMPLERS),
]


def rows(section):
    """The cells of each table row of a section that begins with a name in backticks, by name."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", OBJECTIVES, re.M | re.S)
    found = re.findall(r"^\| `(\w+)` +\|(.*)\|$", text, re.M)
    assert len({name for name, _ in found}) == len(found)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def flags(section, prefix):
    """Flag to default, as text, of every row: its third cell holds `name default`, `switch`."""
    return {
        prefix.format(name) + key: value
        for name, cells in rows(section).items()
        for key, _, value in (entry.partition(" ") for entry in re.findall("`(.*?)`", cells[1]))
    }


def same(text, default):
    """Whether a documented default is the parser's; a switch, which is off, has no text."""
    if default is False:
        return text == ""
    if isinstance(default, (list, tuple)):
        return text.split() == [str(item) for item in default]
    return text == default if isinstance(default, str) else float(text) == default


@pytest.mark.parametrize(("section", "prefix", "registry"), TABLES)
def test_a_row_for_each_component(section, prefix, registry):
    assert sorted(rows(section)) == sorted(registry)


@pytest.mark.parametrize(("section", "prefix", "registry"), TABLES)
def test_each_flag_is_documented_with_its_default(section, prefix, registry):
    documented = flags(section, prefix)
    stem = prefix.partition("{")[0]
    chooses = {"--data_sampler"}  # which component, and no hyperparameter of one
    assert documented.keys() == {flag for flag in ACTIONS if flag.startswith(stem)} - chooses
    for flag, text in documented.items():
        assert same(text, ACTIONS[flag].default), f"{flag} {text}"


def test_the_flags_of_the_memory_are_documented():
    memory = {flag for flag in ACTIONS if flag.startswith("--xbm_")}
    assert memory and all(f"`{flag}" in OBJECTIVES for flag in memory)


def test_each_metric_is_defined():
    defined = re.findall(r"`([^`]+)`", (ROOT / "docs" / "evaluation.md").read_text())
    aliases = {"dists@inter", "dists@intra_over_inter"}  # named by the first of them
    known = {name.replace("rho_spectrum@k", "rho_spectrum@m") for name in METRICS}
    assert known - aliases <= set(defined)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_flag_exists(path):
    named = set(re.findall(r"(?<![\w-])--[A-Za-z]\w*", path.read_text()))
    placeholders = {flag for flag in named if flag.endswith("_")}  # `--loss_<name>_<param>`
    assert all(any(flag.startswith(stem) for flag in ACTIONS) for stem in placeholders)
    assert named - placeholders <= ACTIONS.keys() | OF_OTHER_COMMANDS


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        target, _, anchor = link.partition("#")
        linked = path.parent / target if target else path
        assert linked.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            slugs = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
            assert anchor in slugs, link
