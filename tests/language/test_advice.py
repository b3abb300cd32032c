"""Advice: each verdict from the numbers that call for it, the simplest of equal words, codes."""

import numpy as np
import pytest

from language import advice
from language.advice import Candidate, choose, find_codes, of_captions, of_classes, verdict
from language.predicts_looks import Partners, Prediction


def prediction(correlation, *, n=100, spread=0.01, error=0.01, place=20.0, seed=0):
    """A prediction with a chance level and a standard error that are known."""
    rng = np.random.default_rng(seed)
    chance = rng.normal(size=200)
    chance = spread * (chance - chance.mean()) / chance.std()
    without = np.random.default_rng(99).normal(size=n)  # shared: only differences are free
    without = correlation + error * (without - without.mean()) / (
        np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    )
    items = np.arange(n)
    return Prediction(
        correlation, without, chance, items, np.full(n, place), np.full(200, (n - 1) / 2)
    )


def candidate(correlation, words="classnames", prompt="{}", model="minilm", option="", **known):
    return Candidate(words, model, prompt, option, prediction(correlation, **known))


def advised(*candidates, images_per_class=6.0, **more):
    return of_classes(candidates, images_per_class=images_per_class, **more)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"correlation": 0.17}, "yes"),
        ({"correlation": 0.04}, "hardly"),  # "significant" with many classes, and of no use
        ({"correlation": 0.02, "spread": 0.02}, "no"),
        ({"correlation": 0.17, "spread": 0.1}, "unknown"),  # chance reaches it
        ({"correlation": -0.3, "spread": 0.1}, "unknown"),
        ({"correlation": 0.17, "spread": 0.03, "error": 0.1}, "unknown"),  # rests on few classes
    ],
)
def test_the_verdict_needs_significance_and_size_and_enough_classes(known, expected):
    assert verdict([prediction(**known)], 0) == expected
    given = advised(candidate(**known))
    assert given.verdict == expected
    assert given.sentences[0].startswith(advice.VERDICTS[expected])
    assert bool(given.flags) == (expected == "yes")


def test_the_numbers_and_the_flags_are_those_of_the_words_chosen():
    given = advised(candidate(0.12, prompt="a photo of a {}", model="mpnet"))
    assert "rank correlation of 0.12 ± 0.02 (p 0.005)" in given.sentences[1]
    assert "number 20 of 99 by looks; by chance 50" in given.sentences[1]
    assert given.flags == (
        "--language_distill_w 7.5 --language_shift 0 --language_words classnames "
        '--language_model mpnet --language_prompt "a photo of a {}"'
    )
    assert "--language_prompt" not in advised(candidate(0.12, "descriptions", "")).flags


def test_the_simplest_words_are_chosen_unless_others_are_clearly_better():
    simple, rich = candidate(0.17), candidate(0.18, "names+tags")
    noisy = rich.prediction._replace(without=0.18 + np.random.default_rng(1).normal(size=100) / 50)
    assert choose([simple, rich._replace(prediction=noisy)]) == 0
    assert choose([simple, rich]) == 1  # by 0.01 whatever class is left out
    assert choose([rich, simple]) == 0
    given = advised(simple, rich._replace(prediction=noisy))
    assert given.sentences[-1] == (
        'names+tags in "{}" with minilm correlates at 0.18, which is not clearly better.'
    )


def test_names_that_are_codes_are_named_and_pseudolabels_advised_where_they_are_known():
    codes = [f"class {number:03d}" for number in range(100)]
    known = {"codes": codes, "pseudolabels": "--language_words pseudolabels"}
    given = advised(candidate(0.0), **known, sure=0.2)
    assert given.flags == "" and "Train without words" in given.sentences[2]
    assert given.sentences[3].startswith("100 of 100 names are codes ('class 000', 'class 001',")
    given = advised(candidate(0.0), **known, sure=0.7)
    assert given.flags.endswith("--language_words pseudolabels")
    assert "sure of 70%" in given.sentences[2]


def test_few_images_and_words_that_no_encoder_reads_are_told():
    assert "one image a class" in advised(candidate(0.17), images_per_class=1).sentences[-1]
    given = advised()
    assert (given.verdict, given.chosen, given.flags) == ("no", -1, "")
    assert given.sentences[0] == "No: no text encoder reads most of the names."
    assert of_captions([], None).sentences == ("No: no text encoder reads most of the captions.",)
    assert advice.too_few(3).sentences == ("Too few to tell: there are 3 training classes.",)


def partners(cosines, near):
    """Partners of which some are visual neighbours, by place."""
    places = np.where(near, 1, len(near) // 2).astype(float)
    return Partners(np.arange(len(near)), np.array(cosines), places)


def test_the_lowest_threshold_whose_partners_look_alike_is_advised():
    cosines = np.repeat([0.45, 0.55, 0.65, 0.75, 0.85, 0.95], 100)
    near = np.concatenate([np.arange(100) < share for share in (0, 0, 30, 60, 80, 90)])
    given = of_captions([candidate(0.1, "captions", "")], partners(cosines, near))
    assert given.flags == (  # from 0.6 on (30 + 60 + 80 + 90) / 4 = 65 %, from 0.5 on 52 %
        "--data_sampler language_pairs --language_model minilm --data_pairs_threshold 0.5"
    )
    assert "52% of these partners" in given.sentences[2]
    given = of_captions([candidate(0.1, "captions", "")], partners(cosines, near & (cosines > 0.7)))
    assert given.flags.endswith("--data_pairs_threshold 0.6")
    given = of_captions([candidate(0.1, "captions", "")], partners(cosines, cosines > 0))
    assert "threshold" not in given.flags and given.flags
    given = of_captions([candidate(0.1, "captions", "")], partners(cosines, cosines < 0))
    assert "rarely look alike" in given.sentences[2]
    assert of_captions([candidate(0.0, "captions", "")], partners(cosines, near)).flags == ""


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (["class 001", "class 002", "class 003"], "all"),
        (["SKU 4711", "SKU 4712", "SKU 9"], "all"),
        (["n02084071", "n01", "17"], "all"),
        (["Boeing 737", "Boeing 747", "Airbus A320", "Cessna 172"], []),
        (["red fox", "kit fox", "fox 3"], ["fox 3"]),
        (["barn owl", "item 7"], []),
        (["花", "鳥", "x1"], ["x1"]),
    ],
)
def test_codes_are_found(names, codes):
    assert find_codes(names) == (names if codes == "all" else codes)
