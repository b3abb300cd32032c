"""The scores in words, for a reader who has not met their names."""

import re
from typing import NamedTuple

from metrics import METRICS

LOWER = (  # is better
    "intra_distance", "dists@intra", "intra_over_inter", "dists@intra_over_inter", "alignment",
    "uniformity",
)  # fmt: skip
NEITHER = ("inter_distance", "dists@inter", "rho_spectrum@k")

# By metric its heading and its meaning, with {k} and what it says of the first k of a ranking:
# {nearest} "the nearest other image is", {first} "first" or "among the first 10".
_WORDS = {
    "recall@k": ("Recall@{k}", "{nearest} of the same class"),
    "precision@k": ("Precision@{k}", "share of the {k} nearest images that are of the same class"),
    "R_precision": ("R-precision", "share found among the R nearest, where R are to be found"),
    "mAP": ("mAP", "precision at each image of the class, averaged over the whole ranking"),
    "mAP@R": ("mAP@R", "precision at each hit among the R nearest, where R are to be found"),
    "mAP_1000": ("mAP@1000", "average precision among the 1,000 nearest, as of Roth et al. 2020"),
    "mAP_lim": ("mAP@1023", "average precision among the 1,023 nearest, as of Roth et al. 2020"),
    "mAP_c": ("mAP@C", "average precision as far as the class is large, as of Roth et al. 2020"),
    "MRR": ("MRR", "1 / rank of the nearest image of the same class"),
    "nmi": ("NMI", "agreement of classes with clusters: normalised mutual information"),
    "ami": ("AMI", "agreement of classes with clusters: mutual information above chance"),
    "f1": ("F1", "agreement of classes with clusters: pairs that are together in both"),
    "group_recall@k": ("Group recall@{k}", "{nearest} of the same group of classes"),
    "wrong_word_similarity@k": (
        "Word similarity of errors",
        "cosine of the names of a query and of its {k} nearest images of other classes",
    ),
    "wrong_group_share@k": (
        "Group of errors",
        "share of the {k} nearest images of other classes that are of the query's group",
    ),
    "word_recall@k": ("Word recall@{k}", "names with a right image {first}"),
    "word_mAP": ("Word mAP", "average precision of the names"),
    "named@k": ("Named@{k}", "images with their own name {first}"),
    "intra_distance": ("Distance within classes", "mean squared distance of images of a class"),
    "inter_distance": ("Distance between classes", "mean squared distance of class centres"),
    "intra_over_inter": ("Distance ratio", "distance within classes / between classes"),
    "dists@intra": ("Distance within classes", "of unit rows, as of Roth et al. 2020"),
    "dists@inter": ("Distance between classes", "of unit rows, as of Roth et al. 2020"),
    "dists@intra_over_inter": ("Distance ratio", "of unit rows, as of Roth et al. 2020"),
    "alignment": ("Alignment", "mean squared distance of images of a class, as unit rows"),
    "uniformity": ("Uniformity", "how unevenly unit embeddings are spread; lower is more even"),
    "rho_spectrum@k": ("Spectrum, ρ@{k}", "how far the singular values are from all equal"),
}
_CLASSIFIERS = {  # of frozen features
    r"linear_probe": ("Linear probe", "accuracy of a logistic regression on frozen features"),
    r"knn@(\d+)": ("{0}-NN", "accuracy of a vote of the {0} nearest training images"),
    r"fewshot_(\d+)w(\d+)s": ("Few-shot", "accuracy among {0} classes with {1} images of each"),
}


class Words(NamedTuple):
    """A score in words.

    Attributes:
        better: 1 if higher values are better, -1 if lower ones are, 0 if neither.
    """

    heading: str
    meaning: str
    better: int


def words_of(metric: str) -> Words | None:
    """Return a metric or an accuracy of frozen features in words; None for any other name."""
    for pattern, texts in _CLASSIFIERS.items():
        if match := re.fullmatch(pattern, metric):
            heading, meaning = (text.format(*match.groups()) for text in texts)
            return Words(heading, meaning, 1)
    match = re.fullmatch(r"(?:([ec])_)?(.+?)(?:@(-?\d+))?", metric)
    space, base, k = match.groups() if match else ("", metric, None)
    name = f"{base}@k" if k else base
    if name not in METRICS:
        return None
    said = {"nearest": "the nearest other image is", "first": "first"}
    if k != "1":
        said = {
            "nearest": f"one of the {k} nearest other images is",
            "first": f"among the first {k}",
        }
    heading, meaning = (text.format(k=k, **said) for text in _WORDS[name])
    by = ", by cosine" if space == "c" and not METRICS[name].cosine else ""
    better = 0 if name in NEITHER else -1 if name in LOWER else 1
    return Words(heading, meaning + by, better)
