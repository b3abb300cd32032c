from pathlib import Path

import numpy as np
import pytest

from datasets import ImageSet


def make(labels, **fields) -> ImageSet:
    n_classes = max(labels) + 1
    return ImageSet(
        name="set",
        paths=tuple(Path(f"{row}.jpg") for row in range(len(labels))),
        labels=np.array(labels),
        class_names=tuple(f"class {label}" for label in range(n_classes)),
        **fields,
    )


def test_rows_by_class_are_each_class_s_rows_in_order():
    rows = make([2, 0, 1, 0, 2, 2]).rows_by_class
    assert [list(each) for each in rows] == [[1, 3], [2], [0, 4, 5]]


def test_subset_numbers_its_classes_anew_and_keeps_what_belongs_to_rows_and_classes():
    images = make(
        [2, 0, 1, 0, 2],
        class_groups=("a", "b", "c"),
        class_descriptions=(("one", "two"), ("three",), ()),
        class_tags=((), ("x",), ("y", "z")),
        captions=tuple(["zero", "one", "two", "three", "four"]),
    )
    part = images.subset([4, 1, 3], "part")
    assert part.name == "part" and len(part) == 3 and part.n_classes == 2
    assert list(part.labels) == [1, 0, 0]
    assert part.class_names == ("class 0", "class 2")
    assert part.class_groups == ("a", "c")
    assert part.class_descriptions == (("one", "two"), ())
    assert part.class_tags == ((), ("y", "z"))
    assert part.captions == ("four", "one", "three")
    assert [path.name for path in part.paths] == ["4.jpg", "1.jpg", "3.jpg"]


def test_of_classes_takes_every_image_of_them():
    assert [p.name for p in make([2, 0, 1, 0, 2]).of_classes([2, 1], "x").paths] == [
        "0.jpg",
        "2.jpg",
        "4.jpg",
    ]


def test_a_class_without_images_is_refused():
    with pytest.raises(ValueError, match=r"set: labels must be 0..2, each at least once; found 2"):
        make([0, 2])


@pytest.mark.parametrize("field", ["class_groups", "class_descriptions", "class_tags", "captions"])
def test_a_wrong_length_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} has 1 entries, expected 2"):
        make([0, 1], **{field: ("one",)})
