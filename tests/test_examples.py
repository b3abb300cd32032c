"""The notebook and the page for other projects run, and the citations agree."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml  # type: ignore[import-untyped]

from tests.runs import ROOT

TOUR = json.loads((ROOT / "docs" / "tour.ipynb").read_text())
CHECK_TOUR = """
assert after["mAP@R"] > before["mAP@R"] + 0.05, (before, after)
assert first_right > 4 / len(unseen)
"""
PROJECT = """
import torch
from datasets import load_dataset  # of another package
torch.manual_seed(0)
class_names = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in
               ("ball", "car", "house", "tree")]
loader = [(torch.randn(36, 3, 8, 8), torch.arange(36) % 12) for _ in range(2)]
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 16))
"""
CHECK_PROJECT = """
assert loss.isfinite() and own_loss.isfinite() and criterion.beta.grad is not None
assert 0 <= scores["mAP@R"] <= 1 
import datasets, criteria
assert "other" in datasets.__file__ and "other" not in criteria.__file__
"""


def run(program, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.packages
def test_the_tour_runs_and_training_helps():
    cells = ["".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "code"]
    run("\n".join([*cells, CHECK_TOUR]), ROOT / "docs")


def test_the_tour_was_run_in_order_and_shows_no_place_of_a_machine():
    code = [cell for cell in TOUR["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    printed = json.dumps([cell["outputs"] for cell in code if "image/png" not in str(cell)])
    assert "unseen names" in printed
    assert not re.search(r"/(home|root|tmp|work|Users|usr)\b|Traceback|Warning", printed)


@pytest.mark.packages
def test_the_page_for_other_projects_runs_beside_another_package_called_datasets(tmp_path):
    other = tmp_path / "other" / "datasets"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("def load_dataset(name): ...\n")
    page = (ROOT / "docs" / "library.md").read_text()
    path, _, *blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    tested = """
test_labels = torch.arange(36) % 12
test_embeds = F.normalize(torch.randn(36, 16), dim=1)
"""
    blocks.insert(-1, tested)
    program = [path.replace("/path/to/clone", str(ROOT)), PROJECT, *blocks, CHECK_PROJECT]
    run("\n".join(program), tmp_path, PYTHONPATH=str(other.parent))


def test_the_citations_agree():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cited)
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "README.md").read_text()
    assert len(cited["references"]) == page.count("@inproceedings")
    for paper in cited["references"]:
        families = [author["family-names"] for author in paper["authors"]]
        *others, last = families
        assert f"{', '.join(others)} and {last}, *{paper['title']}*, CVPR {paper['year']}" in (
            " ".join(readme.replace(">", "").split())
        )
        names = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
        assert f"title = {{{paper['title']}}}" in page.replace("{{", "{").replace("}}", "}")
        assert f"author = {{{names}}}" in page and f"year = {{{paper['year']}}}" in page
