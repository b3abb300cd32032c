"""A search over flags of main.py: ``python -m utilities.search``, docs/search.md.

``space`` reads what to draw flags from, ``trials`` runs main.py on folds, ``outcome`` says what
came out.
"""
