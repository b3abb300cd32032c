"""Search over the flags of main.py: ``python -m utilities.search``, described in docs/search.md.

Functions raise ValueError with a message for the user that names the flag.
"""
