"""README and docs/ agree with the code: flags, defaults, links, named files, Python blocks."""

import ast
import re

import pytest
import torch
import torch.nn.functional as F

import parameters
from batchminer import MINERS
from criteria import CRITERIA
from datasampler import SAMPLERS
from datasets import downstream
from language import neighbours_flags
from metrics import METRICS
from tests.runs import ROOT
from utilities import flags as flags_page

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
OBJECTIVES = (TEXTS["docs/objectives.md"], TEXTS["docs/self_supervision.md"])
EVALUATION = TEXTS["docs/evaluation.md"]


def test_ci_runs_the_test_command_of_the_readme():
    command = "bash requirements.sh --dev && .venv/bin/python -m pytest"
    assert command in TEXTS["README.md"] and command in (ROOT / ".ci" / "run").read_text()


# --------------------------------------------------------------------------------------------------
# Flags and components
# --------------------------------------------------------------------------------------------------
def defaults_of(parser):
    return {flag: action.default for action in parser._actions for flag in action.option_strings}


FLAGS = defaults_of(parameters.build_parser())
OF_OTHER_COMMANDS = {
    *defaults_of(neighbours_flags.build_parser()),
    *(  # what has a command line of its own reads it by flags in quotes
        flag
        for path in ROOT.glob("*/**/*.py")
        if ".venv" not in path.parts
        and ("__main__" in (text := path.read_text()) or path.stem.endswith("_flags"))
        for flag in re.findall(r'"(--\w+)"', text)
    ),
    "--nproc_per_node",  # torchrun
    *("--embeddings", "--index_path", "--metric_type", "--max_index_memory_usage"),  # autofaiss
    "--distributed",  # autofaiss, too
    *("--demo", "--dev", "--cuda", "--print"),  # requirements.sh
    *("--list", "--row", "--array"),  # language_guidance_benchmark_runs.sh
    *("--gres", "--wrap"),  # sbatch
}
TABLES = [  # section, prefix of its hyperparameters' flags, registry
    ("Objectives", "--loss_{}_", CRITERIA),
    ("Miners", "--miner_{}_", MINERS),
    ("Samplers", "--data_", SAMPLERS),
]


def section_of(text, section):
    """Return the text under a heading of the second level, "" if there is none."""
    return "".join(re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.M | re.S))


def rows(section):
    """Return the cells of each table row that begins with a name in backticks, by name.

    Both pages of objectives have such a section; a name stands in one of them.
    """
    text = "\n".join(section_of(page, section) for page in OBJECTIVES)
    found = re.findall(r"^\| `(\w+)` +\|(.*)\|$", text, re.M)
    assert len({name for name, _ in found}) == len(found)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def same(text, default):
    """Return whether a documented default is the parser's; None and a switch have no text."""
    if default is None or default is False:
        return text == ""
    if isinstance(default, (list, tuple)):
        return text.split() == [str(item) for item in default]
    return text == default if isinstance(default, str) else float(text) == default


def test_the_page_of_flags_is_that_of_the_parser():
    assert TEXTS["docs/flags.md"] == flags_page.page(), (
        "docs/flags.md is out of date; python -m utilities.flags > docs/flags.md"
    )


@pytest.mark.parametrize("page", TEXTS)
def test_every_flag_exists(page):
    named = set(re.findall(r"(?<![\w-])--[A-Za-z]\w*", TEXTS[page]))
    placeholders = {flag for flag in named if flag.endswith("_")}  # `--loss_<name>_<param>`
    assert all(any(flag.startswith(stem) for flag in FLAGS) for stem in placeholders)
    of_examples = {f"--{name}" for name in re.findall(r'Flag\("(\w+)"', TEXTS[page])}  # added there
    others = {f"--{name}" for name in parameters.OTHER_NAMES}
    assert named - placeholders - of_examples <= FLAGS.keys() | OF_OTHER_COMMANDS | others


@pytest.mark.parametrize(("section", "prefix", "registry"), TABLES)
def test_each_component_has_a_row_with_its_flags_and_defaults(section, prefix, registry):
    found = rows(section)
    assert sorted(found) == sorted(registry)
    documented = {
        prefix.format(name) + key: value
        for name, cells in found.items()  # the third cell holds `name default`, `switch`
        for key, _, value in (entry.partition(" ") for entry in re.findall("`(.*?)`", cells[1]))
    }
    stem = prefix.partition("{")[0]
    chooses = {"--data_sampler"}  # which component, and no hyperparameter of one
    assert documented.keys() == {flag for flag in FLAGS if flag.startswith(stem)} - chooses
    for flag, text in documented.items():
        assert same(text, FLAGS[flag]), f"{flag} {text}"


def test_the_flags_of_the_memory_are_documented():
    memory = {flag for flag in FLAGS if flag.startswith("--xbm_")}
    assert memory and all(f"`{flag}" in OBJECTIVES[0] for flag in memory)


@pytest.mark.parametrize("loss", sorted({*parameters.VIEW_LOSSES, *parameters.CAPTION_LOSSES}))
def test_each_objective_without_labels_has_an_equation(loss):
    """Named before the formula that is its own, or that it shares."""
    _, _, equations = OBJECTIVES[1].partition("### Equations")
    equations, _, _ = equations.partition("### How they differ")
    assert re.search(rf"`{loss}`[^#]*?```math", equations)


def test_the_views_of_each_sampler_are_documented():
    """The row of the usual augmentation names the sampler, or the objective itself."""
    table = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section_of(OBJECTIVES[1], "Views"), re.M))
    for loss in parameters.VIEW_LOSSES:
        for sampler in parameters.PAIR_SAMPLERS:
            flags = parameters.parse(["--loss", loss, "--data_sampler", sampler])
            default_for = table[flags.augmentation].rpartition("|")[2]
            named = set(re.findall(r"`(\w+)`", default_for))
            assert {sampler, loss} & named, f"{loss}, {sampler}"


def test_the_neighbours_of_the_command_and_of_training_have_the_same_flags():
    """The table of partners: each flag with its default, and that of training beside it."""
    options = defaults_of(neighbours_flags.build_parser())
    section = section_of(OBJECTIVES[1], "Partners")
    documented = set()
    for cells in re.findall(r"^\| (`--[^|]+) \| ([^|]*) \|", section, re.M):
        for cell, defaults in zip(cells, (options, FLAGS), strict=True):
            for flag, _, value in (entry.partition(" ") for entry in re.findall("`(.*?)`", cell)):
                documented.add(flag)
                placeholder = value.isupper()  # DIR, FILE
                assert flag in defaults
                assert not value or placeholder or same(value, defaults[flag]), flag
    training = {flag for flag in FLAGS if flag.startswith("--data_pairs_")}
    assert training - {"--data_pairs_self", "--data_pairs_mutual"} <= documented


def test_each_evaluation_and_its_datasets_are_documented():
    section = section_of(EVALUATION, "Frozen features")
    assert set(parameters.EVALUATIONS) <= set(re.findall(r"`([^`]+)`", section))
    heading = (downstream.__doc__ or "").splitlines()
    tabled = {line.split("|")[1].strip(" *") for line in heading if line.startswith("| ")}
    public = set(downstream.KNOWN) - {"digits", *downstream._UNSEEN}
    assert public <= tabled and f"one of {len(public)} public datasets" in section


def test_each_metric_is_defined():
    aliases = {"dists@inter", "dists@intra_over_inter"}  # named by the first of them
    known = {name.replace("rho_spectrum@k", "rho_spectrum@m") for name in METRICS}
    assert known - aliases <= set(re.findall(r"`([^`]+)`", EVALUATION))


# --------------------------------------------------------------------------------------------------
# Links and named files
# --------------------------------------------------------------------------------------------------
FOLDERS = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
FOLDERS |= {"docs", "tests", ".ci"}
FOLDERS_OF_TESTS = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
WRITTEN_BY_A_RUN = {
    "load_backbone.py",
    "preprocess.py",
    "find_by_words.py",
}  # of architectures.export


def without_blocks(text):
    """Return Markdown without fenced blocks, whose lines are neither headings nor links."""
    return re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", "", text, flags=re.M | re.S)


def without_code(text):
    return re.sub(r"(`+).+?\1", "", without_blocks(text), flags=re.S)


def anchors(text):
    """Return what GitHub calls the headings of a page; repeated names get a number."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", without_blocks(text), re.M):
        words = re.sub(r"!?\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        again = found.count(slug)
        found.append(f"{slug}-{again}" if again else slug)
    return found


def links(text):
    """Return targets of links and pictures, in Markdown and HTML, that are in this repository."""
    text = without_code(text)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text)
    found += re.findall(r"^ {0,3}\[[^\]]+\]:\s*(\S+)", text, re.M)
    found += re.findall(r"<(?:img|a)\b[^>]*?(?:src|href)=[\"']([^\"']+)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def broken_links(page, root=ROOT):
    """Return the links of a page that lead nowhere, each with the reason."""
    broken = []
    for link in links(page.read_text()):
        target, _, anchor = link.partition("#")
        linked = (page.parent / target).resolve() if target else page
        if not linked.is_relative_to(root.resolve()):
            broken.append(f"{link}: outside of the repository")
        elif not linked.exists():
            broken.append(f"{link}: no such file")
        elif anchor and (linked.suffix != ".md" or anchor not in anchors(linked.read_text())):
            broken.append(f"{link}: no such heading")
    return broken


def named_files(text):
    """Yield the files of this repository that a page names in backticks, with the test or "".

    A path begins with a folder of the repository or of tests/, or is the name of a program alone.
    ``::test`` after another test is of the same file.
    """
    path = ""
    for code in re.findall(r"`([^`\n]+)`", without_blocks(text)):
        found = re.fullmatch(r"([\w./-]+\.\w+)?(?:::(\w+))?", code)
        if not found:
            continue
        file, test = found[1], found[2] or ""
        if file and ("/" in file or file.endswith((".py", ".sh"))):
            if "/" in file and file.partition("/")[0] not in FOLDERS | FOLDERS_OF_TESTS:
                continue  # of a run or a dataset
            path = file
        elif not (test and not file):
            continue
        yield path, test


def missing_files(text):
    """Return which of these files and tests do not exist."""
    missing = []
    for path, test in named_files(text):
        places = [place / path for place in (ROOT, ROOT / "tests") if (place / path).is_file()]
        if "/" not in path:  # a program's name is enough where there is one of it
            places = places or [p for folder in FOLDERS for p in (ROOT / folder).rglob(path)]
        name = f"{path}::{test}" if test else path
        if not places and path not in WRITTEN_BY_A_RUN:
            missing.append(name)
        elif test:
            tree = ast.parse(places[0].read_text())
            if test not in {getattr(node, "name", "") for node in tree.body}:
                missing.append(name)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_named_files_and_tests_exist(page):
    assert broken_links(page) == []
    assert missing_files(page.read_text()) == []


def test_the_index_has_each_page_once():
    index = ROOT / "docs" / "README.md"
    listed = re.findall(r"^\| \[[\w.]+\]\(([\w.]+)\) \| \S.*\|$", index.read_text(), re.M)
    assert sorted(listed) == sorted(page.name for page in PAGES[1:] if page != index)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# A `code` heading, twice\n## A code heading twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#a-code-heading-twice) [b](there.md#a-code-heading-twice-1)\n"
        "[c](there.md#none) [d](gone.md) ![e](gone.png) <img src='lost.png'> [f](#own)\n"
        "[g](../out.md) [h](https://example.org/#x) `[i](code.md)`\n[j]: ref.md\n"
        "```bash\n# own\n[k](block.md)\n```\n"
    )
    assert broken_links(page, tmp_path) == [
        "there.md#none: no such heading",
        "gone.md: no such file",
        "gone.png: no such file",
        "#own: no such heading",
        "../out.md: outside of the repository",
        "ref.md: no such file",
        "lost.png: no such file",
    ]


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`main.py` `criteria/base.py` `tests/test_prose.py` `retrieve.py`", []),
        ("`criteria/test_ranks.py` `test_main.py` `load_backbone.py` `Info_Files/list.txt`", []),
        ("`criteria/none.py` `none.sh`", ["criteria/none.py", "none.sh"]),
        ("`test_prose.py::links`, `::anchors`, `::none`", ["test_prose.py::none"]),
        ("`criteria/test_none.py::test_x`", ["criteria/test_none.py::test_x"]),
        ("```\n`none.py`\n```\n", []),
    ],
)
def test_files_that_do_not_exist_are_found(text, missing):
    assert missing_files(text) == missing


# --------------------------------------------------------------------------------------------------
# Python blocks
# --------------------------------------------------------------------------------------------------
def python_blocks(page):
    """Return the Python blocks of a page, unindented."""
    blocks = re.findall(r"^( *)```python.*\n([\s\S]*?)^\1```$", TEXTS[page], re.M)
    return [re.sub(f"^{indent}", "", code, flags=re.M) for indent, code in blocks]


def unit(n):
    return F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(n)), dim=1)


RUN = {  # page: what its Python blocks are given, and what holds of what they leave
    "README.md": (
        lambda: {"embeds": unit(12), "labels": torch.arange(12) // 2, "word_sims": torch.eye(12)},
        lambda left: left["loss"].isfinite(),
    ),
    "docs/evaluation.md": (
        lambda: {
            "embeds": unit(12), "labels": torch.arange(12) // 3,
            "query_embeds": unit(8), "query_labels": torch.arange(8) // 2,
        },
        lambda left: set(left["scores"]) == {"recall@1", "mAP@R", "nmi"},
    ),
    "docs/objectives.md": (
        lambda: {
            "embeds": unit(12), "labels": torch.arange(12) // 3,
            "miner": MINERS["semihard"].load()(),
        },
        lambda left: len(left["triplets"].anchors) == 24,  # of 4 classes of 3
    ),
}  # fmt: skip


@pytest.mark.parametrize("page", TEXTS)
def test_python_blocks_compile(page):
    for code in python_blocks(page):
        compile(code, page, "exec")


@pytest.mark.parametrize("page", RUN)
def test_python_blocks_run(page):
    given, holds = RUN[page]
    names = given()
    for code in python_blocks(page):
        exec(code, names)
    assert holds(names)


@pytest.mark.usefixtures("own_cache")
def test_python_blocks_print_what_stands_below_them(capsys):
    text = TEXTS["docs/guidance.md"]
    # A block of Python, and the next one without a language.
    pattern = r"^( *)```python\n(.*?)^\1```\n.*?^\1```\n(.*?)^\1```$"
    blocks = re.findall(pattern, text, re.M | re.S)
    assert blocks and len(blocks) == text.count("```python")
    for indent, *pair in blocks:
        code, printed = (re.sub(f"^{indent}", "", part, flags=re.M) for part in pair)
        exec(code, {})
        assert capsys.readouterr().out == printed


# --------------------------------------------------------------------------------------------------
# Voice
# --------------------------------------------------------------------------------------------------
RULED_OUT = re.compile(
    r"\b(?:gives? back|go(?:es|ing)? on with|as (?:it|they) stands?|said|asked|told"
    r"|(?<!there )is no(?! longer| more| less)|(?<!there )(?:is|are) none)\b",
    re.I,
)
QUESTION = re.compile(r"(?:What|Which|Where|Whether|Who|Whose|When|Why|How)\b")
PRODUCT = ("main.py", "parameters.py", *sorted(FOLDERS - {"docs", "tests", ".ci"}))


def unidiomatic(text):
    """Return the phrases of a text that a native engineer would not write."""
    return RULED_OUT.findall(" ".join(text.split()))


def unidiomatic_docstrings(code):
    """Return the first lines of docstrings that ask a question or have such a phrase."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    first = [(ast.get_docstring(node) or "").partition("\n")[0] for node in nodes]
    return [line for line in first if QUESTION.match(line) or unidiomatic(line)]


@pytest.mark.parametrize("page", [*TEXTS, "--help"])
def test_pages_are_plain_english(page):
    text = parameters.build_parser().format_help() if page == "--help" else TEXTS[page]
    assert unidiomatic(without_code(text)) == []


@pytest.mark.parametrize("place", PRODUCT)
def test_docstrings_say_what_a_thing_does(place):
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := unidiomatic_docstrings(path.read_text()))
    }
    assert files and not found


def test_unidiomatic_phrases_are_found():
    bad = "Lr is no temperature; it gives back those that\nare  none, as it stands. Go on with it."
    assert unidiomatic(bad) == ["is no", "gives back", "are none", "as it stands", "Go on with"]
    assert not unidiomatic("There is no cache, it is no longer used; go on. Noted: is not one.")
    code = '"""Whether x."""\ndef f():\n    """Return it.\n\n    What."""\nclass C:\n    "Is no C."'
    assert unidiomatic_docstrings(code) == ["Whether x.", "Is no C."]
