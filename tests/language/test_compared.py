"""The similarities of words that the check compares are those of training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch.nn.functional as F

from language.compared import PROMPTS, compared_by, words_of_classes
from tests.language.letters import Letters


def classes(**more):
    known = {"name": "set", "class_names": ("fox", "owl", "bear"), "labels": np.array([0, 2, 1, 2])}
    empty = {"class_descriptions": (), "class_tags": (), "captions": ()}
    return SimpleNamespace(**known | empty | more)


def named(compared):
    return [(one.words, one.prompt, one.option) for one in compared]


def test_each_source_prompt_and_option_is_compared_once_the_simplest_first():
    images = classes(
        class_tags=(("red",), (), ("big",)), class_descriptions=((), ("it flies",), ())
    )
    found = [one for _, some, _ in words_of_classes(images, {"m": Letters()}) for one in some]
    plain, photo = PROMPTS
    centre = "--language_centre"
    assert named(found) == [
        ("classnames", plain, ""), ("classnames", plain, centre), ("classnames", photo, ""),
        ("names+tags", plain, ""), ("names+tags", plain, centre), ("names+tags", photo, ""),
        ("descriptions", "", ""), ("descriptions", "", centre),
        ("names+descriptions", "", ""), ("names+descriptions", "", centre),
    ]  # fmt: skip
    by = {(one.words, one.prompt, one.option): one for one in found}
    assert by["names+tags", plain, ""].texts == ["fox, red", "owl", "bear, big"]
    embeds = Letters().encode(["a photo of a fox", "a photo of a owl", "a photo of a bear"])
    np.testing.assert_allclose(by["classnames", photo, ""].sims, embeds @ embeds.T, atol=1e-6)
    rows = Letters().encode(["fox", "owl", "bear"])
    rows = F.normalize(rows - rows.mean(dim=0), dim=1)
    np.testing.assert_allclose(by["classnames", plain, centre].sims, rows @ rows.T, atol=1e-6)


def test_several_texts_of_a_class_are_also_averaged():
    items = [["fox", "dog"], ["owl", "hen"], ["bear"]]
    compared, _ = compared_by("pseudolabels", "m", Letters(), items, PROMPTS[0])
    assert [one.option for one in compared] == ["", "--language_centre", "--language_several mean"]
    assert compared[0].texts == ["fox; dog", "owl; hen", "bear"]
    e = [[Letters().encode([text])[0] for text in some] for some in items]
    wanted = (e[0][0] @ e[1][0] + e[0][1] @ e[1][1]) / 2
    assert compared[0].sims[0, 1] == pytest.approx(float(wanted))
    means = [F.normalize(sum(rows), dim=0) for rows in e]
    assert compared[2].sims[0, 1] == pytest.approx(float(means[0] @ means[1]))


def test_captions_of_a_class_are_averaged():
    images = classes(captions=("fox", "bear", "owl", "cub\nbears"))
    *_, (label, [one], read) = words_of_classes(images, {"m": Letters()})
    assert (label, one.words, one.prompt, read.what) == ("captions, m", "captions", "", "captions")
    assert one.texts == ["fox", "owl", "bear"]
    e = {text: Letters().encode([text])[0] for text in ("fox", "bear", "owl", "cub", "bears")}
    several = F.normalize(e["cub"] + e["bears"], dim=0)
    bear = F.normalize(e["bear"] + several, dim=0)
    assert one.sims[0, 2] == pytest.approx(float(e["fox"] @ bear), abs=1e-6)
    assert one.sims[0, 1] == pytest.approx(float(e["fox"] @ e["owl"]), abs=1e-6)


def test_what_an_encoder_cannot_read_is_not_compared():
    found = [*words_of_classes(classes(class_names=("花", "鳥", "fox")), {"m": Letters()})]
    label, compared, read = found[0]
    assert (label, compared, read.unread) == ("classnames, m", [], ["花", "鳥"])
