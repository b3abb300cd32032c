"""Run folders → tables, curves and comparisons: ``python -m utilities.results``.

Functions raise ValueError with a message for the user, naming the flag, the run or the score.
"""
