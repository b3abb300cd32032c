"""Run folders → tables, curves and comparisons: ``python -m utilities.results``."""
