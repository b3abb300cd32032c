"""The table and the picture of the learning curve, from the folders of runs."""

import pytest

from tests.benchmarks import learning_curve_picture as curve
from tests.utilities.test_results import leave

RECALLS = {"none": (0.50, 0.52, 0.60), "match": (0.53, 0.54, 0.62), "proxy": (0.40, 0.60, 0.62)}


@pytest.fixture
def runs(tmp_path):
    folders = []
    for arm, recalls in RECALLS.items():
        for seed, recall in enumerate(recalls):
            scores = dict.fromkeys(curve.SCORES.values(), recall)
            folders.append(leave(tmp_path, f"curve_16_{arm}", seed, [{"epoch": 1, **scores}]))
    return folders


def test_differences_are_paired_by_seed(runs):
    table = curve.read(runs)
    none, match = (table[16, arm]["Recall@1"] for arm in ("none", "match"))
    found = curve.difference(match, none)
    # 3, 2 and 2 points: a standard deviation of 0.577, and t is 4.303 at two degrees of freedom.
    assert found.mean == pytest.approx(7 / 3) and found.n == 3
    assert found.half == pytest.approx(4.302653 * 0.57735 / 3**0.5, rel=1e-5)
    fewer = curve.difference({0: 53.0}, none)
    assert fewer.mean == pytest.approx(3) and fewer.n == 1 and fewer.half != fewer.half


def test_the_table_marks_what_is_clear_of_zero(runs, tmp_path, capsys):
    curve.main([*map(str, runs), "--out", str(tmp_path / "curve.png")])
    out = capsys.readouterr().out
    assert "| 16 | none | 3 | 54.00 ± 13.14 |" in out
    assert "| 16 | match | 3 | **+2.33 ± 1.43** |" in out
    assert "| 16 | proxy | 3 | +0.00 ± 22.77 |" in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_other_groups_are_refused(tmp_path):
    folder = leave(tmp_path, "curve_many", 0, [{"epoch": 1}])
    with pytest.raises(ValueError, match="a group is curve_<classes>_<arm>; got curve_many"):
        curve.read([folder])
