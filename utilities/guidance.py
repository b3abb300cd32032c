"""Describes in a line what the words of a run guide."""

from collections.abc import Mapping
from typing import Any


def describe_guidance(flags: Mapping[str, Any]) -> str:
    """Return the terms of words with their weights, and where the words come from; "" if none."""
    terms = {"L_match": flags["language_distill_w"], "L_proxy": flags["language_proxy_w"]}
    found = " + ".join(f"{weight:g} x {term}" for term, weight in terms.items() if weight)
    free = flags["language_proxy_w"] and flags["language_proxy_vectors"] == "free"
    if flags["language_distill_w"] or (found and not free):
        found += f", {flags['language_words']} embedded by {flags['language_model']}"
    if free:
        found += ", class vectors free of words"
    if flags["language_control"] != "none":
        found += f", {flags['language_control']} as a control"
    return found
