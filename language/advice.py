"""Advises which words to guide by, or to guide by none, from how far words predict looks.

Every number below is of emoji: 622 training classes, efficientnet_lite0 at 64 px, MiniLM, whose
names guide training to more reasonable mistakes (docs/emoji_benchmark.md).
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from language.predicts_looks import Partners, Prediction, jackknife_error, p_value

# A correlation that chance reaches less often than this is not chance: 200 permutations resolve
# 0.005, and the choice among many words is already accounted for.
SURE = 0.01
# Correlation from which words are worth an extra loss. Emoji's names have 0.17. With half of them
# permuted 0.04 is left, and a class's nearest name says nothing: its visual rank is 263 of 621.
WORTH = 0.05
# If chance reaches this once in a hundred times, there are too few classes to tell: names as good
# as emoji's would not stand out. It is reached from about 20 classes down.
GOOD = 0.15
# Fewer images blur the mean of a class: of emoji's 0.17, two leave 0.15 and one leaves 0.10.
FEW_IMAGES = 2
# Share of the images that an ImageNet classifier must give one class half of the probability or
# more for its names to mean something. It is 0.16 on emoji, where pseudolabels gained nothing.
KNOWN = 0.5
# Two correlations differ if the jackknife of their difference says so, in standard errors.
CLEAR = 1.96
# Pairs are worth pulling together if at least this share of partners are visual neighbours, which
# 1 % are by chance. On openclipart that is so from cosine 0.7 on, where language pairs caught up
# with one image twice; without a threshold, 0.42, they were behind (docs/self_supervision.md).
ALIKE = 0.5
THRESHOLDS = (-1.0, 0.5, 0.6, 0.7, 0.8, 0.9)
FEWEST_KEPT = 0.1  # share of images that must keep a partner

START = "--language_distill_w 7.5 --language_shift 0"  # as in docs/emoji_benchmark.md
VERDICTS = {
    "yes": "Yes: words predict looks here",
    "hardly": "Hardly: words predict looks better than chance, but too little to teach",
    "no": "No: words do not predict looks here",
    "unknown": "Too few to tell",
}


class Candidate(NamedTuple):
    """Words that can guide, and how far they predict looks."""

    words: str  # of --language_words
    model: str  # of --language_model
    prompt: str  # of --language_prompt; "" for captions, which take none
    option: str  # another flag of theirs, or ""
    prediction: Prediction

    @property
    def flags(self) -> str:
        prompt = f' --language_prompt "{self.prompt}"' if self.prompt else ""
        option = f" {self.option}" if self.option else ""
        return f"--language_words {self.words} --language_model {self.model}{prompt}{option}"


class Advice(NamedTuple):
    verdict: str  # of VERDICTS
    chosen: int  # place of the candidate whose words to use
    sentences: tuple[str, ...]  # the first is the verdict
    flags: str  # to be pasted; "" to train without words


def choose(candidates: Sequence[Candidate]) -> int:
    """Return the first candidate that the best is not clearly better than: simple words first."""
    found = [candidate.prediction for candidate in candidates]
    best = max(found, key=lambda one: one.excess)
    return next(
        place
        for place, one in enumerate(found)
        if best.excess - one.excess <= CLEAR * jackknife_error(best.without - one.without)
    )


def verdict(found: Sequence[Prediction], chosen: int) -> str:
    """Return the key of ``VERDICTS`` for the words ``chosen`` among others."""
    one = found[chosen]
    if p_value(found, chosen) > SURE:
        return "unknown" if bound(one) >= GOOD else "no"
    if one.excess < WORTH:
        return "hardly"
    return "yes" if one.excess > CLEAR * one.error else "unknown"


def bound(one: Prediction) -> float:
    """Return the correlation that permuted words exceed once in a hundred times."""
    return float(np.quantile(one.chance - one.chance.mean(), 0.99))


def of_classes(
    candidates: Sequence[Candidate],
    *,
    images_per_class: float,
    codes: Sequence[str] = (),
    pseudolabels: str = "",
    sure: float = 0.0,
) -> Advice:
    """Advise on what is written about classes.

    Args:
        candidates: the simplest first; none if no encoder reads them.
        images_per_class: median number that looks were measured on.
        codes: names that are codes, as of ``find_codes``.
        pseudolabels: the flags that use them; empty without a classifier.
        sure: share of the images that the classifier is sure of.
    """
    if not candidates:
        key, chosen, said = "no", -1, ["No: no text encoder reads most of the names."]
    else:
        found = [candidate.prediction for candidate in candidates]
        chosen = choose(candidates)
        key, p = verdict(found, chosen), p_value(found, chosen)
        said = [f"{VERDICTS[key]}.", _measured(found[chosen], p)]
    if key == "yes":
        said.append(
            "Expect more reasonable mistakes. Recall@1 may rise or drop: on emoji, with a "
            "correlation of 0.17, it rose by 2.7 points with --language_proxy_w 0.03 beside these "
            "flags, and dropped by 1.7 in a longer run without. Choose the weights on validation "
            "classes, and compare with runs without words and with --language_control permuted."
        )
        best = max(candidates, key=lambda candidate: candidate.prediction.excess)
        if best is not candidates[chosen]:
            said.append(
                f"{_named(best)} correlates at {best.prediction.correlation:.2f}, which is not "
                "clearly better."
            )
    elif key == "unknown":
        said.append(_too_few(found[chosen]))
    elif pseudolabels and sure >= KNOWN:
        said.append(
            f"Pseudolabels may do better: the classifier is sure of {sure:.0%} of the images. "
            "Compare with a run without words."
        )
    else:
        said.append("Train without words (--language_distill_w 0), or write better ones.")
    n = len(candidates[chosen].prediction.places) if candidates else 0
    if 2 * len(codes) > n:
        said.append(
            f"{len(codes)} of {n} names are codes ({', '.join(map(repr, codes[:2]))}, ...): put "
            "names that people use into classes.json."
        )
    if images_per_class < FEW_IMAGES:
        said.append(
            "Most classes have one image here, which blurs the measure: of emoji's 0.17, one image "
            "a class leaves 0.10."
        )
    flags = ""
    if key == "yes":
        flags = f"{START} {candidates[chosen].flags}"
    elif key in ("no", "hardly") and pseudolabels and sure >= KNOWN:
        flags = f"{START} {pseudolabels}"
    return Advice(key, chosen, tuple(said), flags)


def _too_few(one: Prediction) -> str:
    advised = "Train with and without words, and compare on validation classes."
    n = len(one.places)
    if bound(one) >= GOOD:
        return (
            f"With {n} classes permuted words reach {bound(one):.2f}, so even names as good as "
            f"emoji's (0.17) would not stand out. {advised}"
        )
    return (
        f"The interval reaches 0: the correlation rests on a few of the {n} classes, and new ones "
        f"may not show it. {advised}"
    )


def of_captions(candidates: Sequence[Candidate], partners: Partners | None) -> Advice:
    """Advise on pairs of images by their captions; ``partners`` are of the candidate chosen.

    There are none of either if no encoder reads the captions.
    """
    if partners is None:
        return Advice("no", -1, ("No: no text encoder reads most of the captions.",), "")
    found = [candidate.prediction for candidate in candidates]
    chosen = choose(candidates)
    key = verdict(found, chosen)
    said = [f"{VERDICTS[key]}.", _measured(found[chosen], p_value(found, chosen), "captions")]
    threshold = next(
        (
            least
            for least in THRESHOLDS
            if partners.above(least)[1] >= ALIKE and partners.above(least)[0] >= FEWEST_KEPT
        ),
        None,
    )
    model = candidates[chosen].model
    flags = f"--data_sampler language_pairs --language_model {model}"
    if key != "yes":
        said.append("Pair each image with itself instead (--data_sampler augmented_pairs).")
        return Advice(key, chosen, tuple(said), "")
    if threshold is None:
        said.append(
            f"But partners rarely look alike: no threshold up to {THRESHOLDS[-1]:g} leaves "
            f"{FEWEST_KEPT:.0%} of the images with a partner of which half are visual neighbours. "
            "Compare with one image twice (--data_sampler augmented_pairs) before you rely on them."
        )
        return Advice(key, chosen, tuple(said), flags)
    kept, near = partners.above(threshold)
    if threshold > -1:
        flags += f" --data_pairs_threshold {threshold:g}"
        said.append(
            f"Pair images whose captions have a cosine of {threshold:g} or more: {near:.0%} of "
            f"these partners are visual neighbours, against {partners.above(-1)[1]:.0%} of all. "
            f"{kept:.0%} of the images keep a partner."
        )
    else:
        said.append(f"{near:.0%} of the partners are visual neighbours; no threshold is needed.")
    return Advice(key, chosen, tuple(said), flags)


def too_few(n: int, what: str = "classes") -> Advice:
    """Advise where nothing can be measured."""
    return Advice("unknown", -1, (f"{VERDICTS['unknown']}: there are {n} training {what}.",), "")


def find_codes(names: Sequence[str]) -> list[str]:
    """Return the names that are codes: no word of letters is left without what most names share.

    "class 017" and "SKU 4711" are codes among their like, "n02084071" always. A word has three
    letters or more, or some that are not of English.
    """
    words = [re.findall(r"[^\W_]+", name.casefold()) for name in names]
    counts = Counter(word for some in words for word in {*some})
    shared = {word for word, count in counts.items() if 2 * count > len(names) > 2}
    return [
        name
        for name, some in zip(names, words, strict=True)
        if not any(
            word.isalpha() and (len(word) > 2 or not word.isascii()) and word not in shared
            for word in some
        )
    ]


def _measured(one: Prediction, p: float, what: str = "names") -> str:
    of, owner = (
        ("classes", "class whose words are")
        if what == "names"
        else ("images", "image whose caption is")
    )
    by_chance = float(np.median(one.chance_places))
    return (
        f"Over pairs of {of}, words and looks have a rank correlation of {one.correlation:.2f} ± "
        f"{CLEAR * one.error:.2f} (p {p:.3f}). The {owner} nearest is, in the median, "
        f"number {one.place:.0f} of {len(one.places) - 1:,} by looks; by chance {by_chance:.0f}."
    )


def _named(candidate: Candidate) -> str:
    prompt = f' in "{candidate.prompt}"' if candidate.prompt else ""
    option = f" ({candidate.option})" if candidate.option else ""
    return f"{candidate.words}{prompt} with {candidate.model}{option}"
