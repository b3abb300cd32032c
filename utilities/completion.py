"""Complete main.py's flags and their choices in a shell, by shtab.

    eval "$(python -m utilities.completion bash)"      # in ~/.bashrc

The same for zsh (after ``compinit``), tcsh, fish and powershell. bash and zsh complete
``python main.py --lo<Tab>``, the others ``main.py`` as a command.
"""

import argparse
import sys
from collections.abc import Sequence

import parameters
from utilities import startup
from utilities.flag_types import OneOf

SHELLS = ("bash", "zsh", "tcsh", "fish", "powershell")
FILES = ("FILE", "RUN")  # metavars of flags that take a path
FOLDERS = ("DIR",)

# bash calls the completion of the first word, python. After another script, files are completed.
OF_PYTHON = """
_python_main_py() {
  [[ ${COMP_WORDS[1]##*/} = main.py && $COMP_CWORD -gt 1 ]] || return 0
  COMP_WORDS=("${COMP_WORDS[@]:1}")
  COMP_CWORD=$((COMP_CWORD - 1))
  _shtab_main_py
}
complete -o bashdefault -o default -F _python_main_py python python3 .venv/bin/python
"""


def script(shell: str) -> str:
    """Return the script that the shell evaluates."""
    import shtab

    parser = parameters.build_parser()
    for action in parser._actions:
        if isinstance(action.type, OneOf):
            action.choices = action.type.names
        if action.metavar in FILES + FOLDERS or action.dest in ("source_path", "save_path"):
            kind = shtab.FILE if action.metavar in FILES else shtab.DIRECTORY
            action.complete = kind  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell=shell)
    return text + (OF_PYTHON if shell == "bash" else "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utilities.completion", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(argv).shell
    try:
        print(script(shell))
    except ImportError:
        sys.exit("completion needs shtab; pip install shtab")


if __name__ == "__main__":
    startup.begin()
    main()
