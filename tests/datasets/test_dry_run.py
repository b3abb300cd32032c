"""Which images a dry run takes, and that nothing in it waits for later steps."""

import re

import numpy as np
import pytest
from PIL import Image

import parameters
from datasets import dry_run
from utilities.dry_run import AT_ONCE
from utilities.flag_types import natural


def test_every_query_finds_its_class_where_the_set_allows_it():
    labels = np.array([3, 0, 1, 0, 2, 1, 1, 2, 0, 2])  # the class 3 has one image
    for most in (2, 4, 6):
        [rows] = dry_run.few_rows([labels], most, each=2)
        counts = np.bincount(labels[rows], minlength=4)
        assert len(rows) == most and set(counts) <= {0, 2} and list(rows) == sorted(rows)
    [rows] = dry_run.few_rows([labels], 100, each=2)
    assert list(rows) == list(range(10))


def test_sets_share_the_classes_that_have_most_images():
    train, test = np.array([0, 1, 1, 2, 2, 2, 2]), np.array([2, 0, 1, 0, 0, 1, 2])
    rows = dry_run.few_rows([train, test], 2, each=2)
    assert [set(labels[r]) for labels, r in zip((train, test), rows, strict=True)] == [{2}, {2}]


def test_some_rows_are_a_set_of_images():
    class Set:
        name = "a.test"

        def read(self, row):
            return Image.new("RGB", (row, 1))

        def label(self, row):
            return 10 * row

        def caption(self, row):
            return f"image {row}"

    some = dry_run.Subset(Set(), np.array([2, 5]))
    assert (len(some), some.name, some.label(1), some.caption(0)) == (2, "a.test", 50, "image 2")
    assert some.read(1).size == (5, 1)


def test_what_begins_later_in_a_run_begins_at_once():
    """Each flag that counts steps or epochs before something begins is among those set to zero."""
    begins = re.compile(r"before|start|is used|in which|first epochs|nothing until")
    waits = {
        action.option_strings[0]
        for action in parameters.build_parser()._actions
        if action.type is natural
        and begins.search(action.help or "")
        and re.search(r"iterations|steps|epochs", action.help or "")
    }
    late = dict(zip(AT_ONCE[::2], AT_ONCE[1::2], strict=True))
    assert waits - {"--warmup_steps", "--data_store_every"} == {f for f in late if late[f] == "0"}
    parameters.parse(list(AT_ONCE))


@pytest.mark.parametrize("each", [2, 12])
def test_rows_are_those_of_a_plain_loop(each):
    rng = np.random.default_rng(each)
    labels = rng.integers(0, 7, 60)
    sizes = np.bincount(labels)
    order = sorted(range(len(sizes)), key=lambda label: (-sizes[label], label))
    left = {label: list(np.flatnonzero(labels == label)) for label in order}
    chosen = []
    while any(left.values()):
        for label in order:
            chosen += left[label][:each]
            del left[label][:each]
    [rows] = dry_run.few_rows([labels], 25, each)
    assert list(rows) == sorted(chosen[:25])
