"""What docs/ says of components, flags and files is so."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import parameters
from batchminer import MINERS
from criteria import CRITERIA
from datasampler import SAMPLERS
from datasets import downstream
from language import neighbours
from metrics import METRICS
from utilities import flags as pages

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.name: path.read_text() for path in DOCS}
OBJECTIVES = (TEXTS["objectives.md"], TEXTS["self_supervision.md"])  # with labels, and without
ACTIONS = {
    flag: action for action in parameters.build_parser()._actions for flag in action.option_strings
}
COMMANDS = [  # of ours beside main.py: what has a command line reads it by flags in quotes
    path
    for folder in ("architectures", "datasets", "evaluation", "language", "tests", "utilities")
    for path in (ROOT / folder).rglob("*.py")
    if "__main__" in path.read_text()
]
OF_OTHER_COMMANDS = {
    *(flag for path in COMMANDS for flag in re.findall(r'"(--\w+)"', path.read_text())),
    *(flag for action in neighbours.build_parser()._actions for flag in action.option_strings),
    "--nproc_per_node",  # torchrun
    *("--embeddings", "--index_path", "--metric_type", "--max_index_memory_usage"),  # autofaiss
    "--distributed",  # autofaiss, too
    "--dev",  # requirements.sh
    *("--list", "--row", "--array"),  # language_guidance_benchmark_runs.sh
    *("--gres", "--wrap"),  # sbatch
}
TABLES = [  # section, what stands before a hyperparameter in its flag, registry
    ("Objectives", "--loss_{}_", CRITERIA),
    ("Miners", "--miner_{}_", MINERS),
    ("Samplers", "--data_", SAMPLERS),
]


def section_of(text, section):
    """What stands under a heading of the second level; nothing where there is none."""
    return "".join(re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.M | re.S))


def rows(section):
    """The cells of each table row of a section that begins with a name in backticks, by name.

    Of both pages of objectives; a name stands in one of them.
    """
    text = "\n".join(section_of(page, section) for page in OBJECTIVES)
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
    """Whether a documented default is the parser's; None and False, a switch, have no text."""
    if default is None or default is False:
        return text == ""
    if isinstance(default, (list, tuple)):
        return text.split() == [str(item) for item in default]
    return text == default if isinstance(default, str) else float(text) == default


def test_the_page_of_flags_is_that_of_the_parser():
    assert TEXTS.get("flags.md") == pages.page(), (
        "docs/flags.md is not what the parser says; python -m utilities.flags > docs/flags.md"
    )


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
    assert memory and all(f"`{flag}" in OBJECTIVES[0] for flag in memory)


@pytest.mark.parametrize("loss", sorted({*parameters.VIEW_LOSSES, *parameters.CAPTION_LOSSES}))
def test_each_objective_without_labels_has_an_equation(loss):
    """Named before the formula that is its own, or that it shares."""
    _, _, equations = OBJECTIVES[1].partition("### Equations")
    equations, _, _ = equations.partition("### How they differ")
    assert re.search(rf"`{loss}`[^#]*?```math", equations)


@pytest.mark.parametrize("sampler", parameters.PAIR_SAMPLERS)
@pytest.mark.parametrize("loss", parameters.VIEW_LOSSES)
def test_the_views_of_each_sampler_are_documented(loss, sampler):
    """The row of the usual augmentation names the sampler, or the objective itself."""
    table = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section_of(OBJECTIVES[1], "Views"), re.M))
    default_for = table[parameters.usual_augmentation(loss, sampler)].rpartition("|")[2]
    assert {sampler, loss} & set(re.findall(r"`(\w+)`", default_for))


def test_the_neighbours_of_the_command_and_of_training_have_the_same_flags():
    """The table of partners: each flag with its default, and that of training beside it."""
    options = {
        flag: action.default
        for action in neighbours.build_parser()._actions
        for flag in action.option_strings
    }
    section = section_of(OBJECTIVES[1], "Partners")
    lines = re.findall(r"^\| (`--[^|]+) \| ([^|]*) \|", section, re.M)
    documented = set()
    for command, training in lines:
        for cell, defaults in (
            (command, options),
            (training, {flag: action.default for flag, action in ACTIONS.items()}),
        ):
            for flag, _, value in (entry.partition(" ") for entry in re.findall("`(.*?)`", cell)):
                assert flag in defaults
                documented.add(flag)
                if value and value.isupper():
                    continue  # DIR, FILE
                assert not value or same(value, defaults[flag]), flag
    training = {flag for flag in ACTIONS if flag.startswith("--data_pairs_")}
    assert training - {"--data_pairs_self"} <= documented


def test_each_evaluation_and_its_datasets_are_documented():
    section = section_of(TEXTS["evaluation.md"], "Frozen features")
    named = set(re.findall(r"`([^`]+)`", section))
    assert set(parameters.EVALUATIONS) <= named
    heading = (downstream.__doc__ or "").splitlines()
    tabled = {line.split("|")[1].strip(" *") for line in heading if line.startswith("| ")}
    public = set(downstream.KNOWN) - {"digits", *downstream._UNSEEN}
    assert public <= tabled and f"one of {len(public)} public datasets" in section


def command_lines(text):
    """The command lines of each bash block of a page, continued ones joined.

    Blocks of ``bash example`` are left out: tests/test_docs_examples.py has them.
    """
    for _, block in re.findall(r"^( *)```bash\n(.*?)^\1```", text, re.M | re.S):
        lines = re.sub(r"\\\n *", "", block).splitlines()
        yield [line.strip() for line in lines if shlex.split(line, comments=True)]


def commands(text):
    """The words of each command line in the bash blocks of a page."""
    for lines in command_lines(text):
        for line in lines:
            yield shlex.split(line, comments=True)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_parse(path):
    """Those of main.py and of language.neighbours; the module of any other exists."""
    for words in commands(TEXTS[path.name]):
        if "main.py" in words:
            parameters.parse(words[words.index("main.py") + 1 :])
        elif "-m" in words:
            module, given = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
            assert importlib.util.find_spec(module), module
            if module == "language.neighbours":
                neighbours.build_parser().parse_args(given)


def test_each_metric_is_defined():
    defined = re.findall(r"`([^`]+)`", TEXTS["evaluation.md"])
    aliases = {"dists@inter", "dists@intra_over_inter"}  # named by the first of them
    known = {name.replace("rho_spectrum@k", "rho_spectrum@m") for name in METRICS}
    assert known - aliases <= set(defined)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_flag_exists(path):
    named = set(re.findall(r"(?<![\w-])--[A-Za-z]\w*", TEXTS[path.name]))
    placeholders = {flag for flag in named if flag.endswith("_")}  # `--loss_<name>_<param>`
    assert all(any(flag.startswith(stem) for flag in ACTIONS) for stem in placeholders)
    of_examples = set(re.findall(r'"(--\w+)"', TEXTS[path.name]))  # which add them
    assert named - placeholders - of_examples <= ACTIONS.keys() | OF_OTHER_COMMANDS
