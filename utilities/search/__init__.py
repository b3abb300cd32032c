"""Search over the flags of main.py: ``python -m utilities.search``, described in docs/search.md."""
