"""Run folders → tables, curves and comparisons: ``python -m utilities.results``.

``runs`` reads them and chooses epochs, ``significance`` and ``summary`` hold the statistics,
``report``, ``tables``, ``curves`` and ``compare`` what is shown. ``runs`` needs the standard
library alone: main.py asks it whether a run is finished before torch is imported.
"""
