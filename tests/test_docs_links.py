"""Everything that README and docs/ point to is there: pages, headings, pictures, files, tests.

And the Python blocks of the pages below run as they stand.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
FOLDERS |= {"docs", "tests", ".ci"}
FOLDERS_OF_TESTS = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
WRITTEN_BY_A_RUN = {"load_backbone.py"}  # of architectures.export
RUN = ["guidance.md"]  # pages whose Python blocks are whole programs


def without_blocks(text):
    """Markdown without fenced blocks, whose lines are neither headings nor links."""
    return re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", "", text, flags=re.M | re.S)


def prose(text):
    """Markdown without any code, of which ``[a](b)`` is no link."""
    return re.sub(r"(`+).+?\1", "", without_blocks(text), flags=re.S)


def anchors(text):
    """What GitHub calls the headings of a page; a name that comes again gets a number."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", without_blocks(text), re.M):
        words = re.sub(r"!?\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        again = found.count(slug)
        found.append(f"{slug}-{again}" if again else slug)
    return found


def links(text):
    """Targets of links and pictures, in Markdown and HTML, that are in this repository."""
    text = prose(text)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text)
    found += re.findall(r"^ {0,3}\[[^\]]+\]:\s*(\S+)", text, re.M)
    found += re.findall(r"<(?:img|a)\b[^>]*?(?:src|href)=[\"']([^\"']+)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def broken_links(page, root=ROOT):
    """The links of a page that lead nowhere, each with the reason."""
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
    """The files of this repository, and tests in them, that a page names in backticks.

    A path begins with a folder of the repository or of tests/, or is the name of a program alone.
    ``::test`` after another test is of the same file.

    Yields:
        path and name of the test, which is empty for a file.
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
    """Of these files and tests the ones that do not exist."""
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_and_tests_exist(page):
    assert missing_files(page.read_text()) == []


def test_the_index_has_each_page_once():
    index = ROOT / "docs" / "README.md"
    listed = re.findall(r"^\| \[[\w.]+\]\(([\w.]+)\) \| \S.*\|$", index.read_text(), re.M)
    assert sorted(listed) == sorted(page.name for page in PAGES[1:] if page != index)


@pytest.mark.parametrize("name", RUN)
def test_python_blocks_print_what_stands_below_them(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = (ROOT / "docs" / name).read_text()
    # The block, and the next one without a language.
    pattern = r"^( *)```python\n(.*?)^\1```\n.*?^\1```\n(.*?)^\1```$"
    blocks = re.findall(pattern, text, re.M | re.S)
    assert blocks and len(blocks) == text.count("```python")
    for indent, code, printed in blocks:
        exec(compile(re.sub(f"^{indent}", "", code, flags=re.M), name, "exec"), {})
        assert capsys.readouterr().out == re.sub(f"^{indent}", "", printed, flags=re.M)


# ---------------------------------------------------------------------------- the checks themselves


def test_what_is_broken_is_found(tmp_path):
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
        ("`main.py` `criteria/base.py` `tests/test_docs_links.py` `report_html.py`", []),
        ("`criteria/test_ranks.py` `test_main.py` `load_backbone.py` `Info_Files/list.txt`", []),
        ("`criteria/none.py` `none.sh`", ["criteria/none.py", "none.sh"]),
        ("`test_docs_links.py::prose`, `::links`, `::none`", ["test_docs_links.py::none"]),
        ("`criteria/test_none.py::test_x`", ["criteria/test_none.py::test_x"]),
        ("```\n`none.py`\n```\n", []),
    ],
)
def test_files_that_do_not_exist_are_found(text, missing):
    assert missing_files(text) == missing
