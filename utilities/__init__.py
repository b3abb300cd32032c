"""Plain structures and helpers that every other folder may import, and that import none of them."""

import sys

from utilities import console

console.never_fail(sys.stdout, sys.stderr)  # here, where every command passes before it prints
