"""What a shell completes after main.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from criteria import CRITERIA
from utilities import completion

ROOT = Path(__file__).parents[2]
ASK = """
eval "$(cat)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_python_main_py
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words, folder=ROOT):
    """bash's answer to Tab after the last of these words."""
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", *words],
        input=completion.script("bash"), cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.fixture(autouse=True)
def _needs_shtab():
    pytest.importorskip("shtab")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_flags_and_their_choices(tmp_path):
    flags = completed("python", "main.py", "--language_dist")
    assert set(flags) == {"--language_distill_w", "--language_distill_dir"}
    assert completed("python", "main.py", "--bs", "8", "--loss", "multis") == ["multisimilarity"]
    assert set(completed("python", "../main.py", "--loss", "")) == set(CRITERIA)
    assert completed("python", "other.py", "--language_dist") == []
    (tmp_path / "mine.yaml").touch()
    assert completed("python", "main.py", "--config", "mi", folder=tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_has_a_script(shell, capsys):
    completion.main([shell])
    said = capsys.readouterr().out
    assert "language_distill_w" in said and "multisimilarity" in said


def test_without_shtab_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)  # an import would raise
    with pytest.raises(SystemExit, match="pip install shtab"):
        completion.main(["zsh"])
