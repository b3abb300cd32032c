"""The flags that each dataset is trained with by default."""

from dataclasses import dataclass, fields, replace
from typing import Any

# Of search by words, in the default set of guided runs on classes with names.
WORD_METRICS = ("word_recall@1", "word_recall@10", "word_mAP", "named@1")
NAMING = ("classnames", "names+tags", "names+descriptions")  # words that begin with class names
_RECALLS = ("e_recall@1", "e_recall@2", "e_recall@4", "e_recall@10")


@dataclass(frozen=True)
class Recipe:
    """Defaults of a dataset; a flag of the same name overrides each.

    Those of the benchmarks are from Roth et al., Integrating Language Guidance into Vision-based
    Deep Metric Learning, CVPR 2022.
    """

    why: str  # one sentence for the summary that opens a run
    arch: str = "resnet50_frozen_normalize"
    embed_dim: int = 128  # 0: as wide as the features
    embed_init: str = "random"
    image_size: int = 224  # pixels, side of the square input
    crop_ratio: float = 0.875  # evaluation: share of the resized shorter side that the crop keeps
    train_scale: tuple[float, float] = (0.08, 1.0)  # area share of the random resized crop
    language_model: str = "clip"
    language_words: str = "classnames"
    language_prompt: tuple[str, ...] = ("a photo of a {}",)
    language_shift: float = 1.0
    language_proxy_w: float = 0.0  # where there is a language_distill_w
    language_pseudoclass_model: str = "resnet50"
    bs: int = 112  # or the largest batch that the images fill
    samples_per_class: int = 2
    n_epochs: int = 150
    max_steps: int = 0  # 0: n_epochs says how long
    optim: str = "adam"
    lr: float = 1e-5
    fc_lr: float = -1  # of the embedding layer; -1: lr
    lr_base_bs: int = 0  # reference batch size of lr; 0: no scaling
    decay: float = 4e-4
    scheduler: str = "step"
    warmup_steps: int = 0
    evaluate_every: int = 1  # epochs
    evaluation_metrics: tuple[str, ...] = (*_RECALLS, "nmi", "f1", "mAP_1000")
    evaluation_language_model: str = "clip"  # of the semantic scores
    evaluation_datasets: tuple[str, ...] = ()  # empty: the dataset itself


OWN_IMAGES = Recipe(why="benchmark defaults, used for your own images")
# A random embedding layer loses more of the backbone's ranking than a few hundred images teach it.
# Chosen on validation classes: docs/small_sets.md.
SMALL = Recipe(
    why="for small sets: roots of the backbone's features, whitened within classes, and a little "
    "training",
    arch="resnet50_frozen_normalize_root",
    embed_dim=0,
    embed_init="whiten",
    samples_per_class=4,
    n_epochs=1,
    lr=3e-6,
    fc_lr=3e-5,
    scheduler="none",
    evaluation_metrics=(*_RECALLS, "mAP@R"),
)
MOST_SMALL = 5_000  # images of a small set
OWN_CAPTIONS = Recipe(
    why="defaults of openclipart, with the backbone, image size and text encoder of the published "
    "LG-SimCLR",
    arch="resnet50_frozen",
    language_model="mpnet",
    language_words="captions",
    n_epochs=10,
    optim="adamw",
    lr=3e-4,
    decay=0.01,
    scheduler="warmup_cosine",
    warmup_steps=20,
    evaluation_metrics=("e_recall@1", "mAP@R"),
)

_PAPER = "the published setting: ImageNet-pretrained ResNet50 at 224 px, CLIP text embeddings"

RECIPES = {
    "emoji": Recipe(
        why="a small backbone at 64 px is enough for drawings of 128 px; it and MiniLM come as "
        "packages, without a model hub",
        arch="efficientnet_lite0_frozen_normalize",
        image_size=64,
        crop_ratio=1.0,  # a drawing fills its square
        train_scale=(0.5, 1.0),
        language_model="minilm",
        language_prompt=("{}",),
        language_shift=0.0,
        language_proxy_w=0.03,
        language_pseudoclass_model="efficientnet_lite0",
        n_epochs=6,
        lr=3e-4,
        evaluate_every=3,  # evaluating both halves takes two thirds of an epoch
        evaluation_metrics=(
            *(*_RECALLS, "mAP@R", "nmi", "wrong_word_similarity@10", "wrong_group_share@10"),
            *WORD_METRICS,
        ),
        evaluation_language_model="minilm",
    ),
    "openclipart": replace(
        OWN_CAPTIONS,
        why="a small backbone at 64 px is enough for drawings of 160 px; it and MiniLM come as "
        "packages, without a model hub",
        arch="efficientnet_lite0_frozen",
        image_size=64,
        crop_ratio=1.0,
        language_model="minilm",
        language_pseudoclass_model="efficientnet_lite0",
        n_epochs=2,
        evaluate_every=2,
        evaluation_language_model="minilm",
        evaluation_datasets=("emoji",),
    ),
    "cub200": Recipe(why=_PAPER),
    "cars196": Recipe(why=_PAPER),
    "online_products": Recipe(why=_PAPER),
    "inshop": Recipe(
        why="the benchmarks' setting, with the depths of recall that are reported for In-Shop",
        evaluation_metrics=(
            *("e_recall@1", "e_recall@10", "e_recall@20", "e_recall@30", "e_recall@40"),
            "mAP@R",
        ),
    ),
    "inat": Recipe(
        why="the benchmarks' setting, with the depths of recall that are reported for iNaturalist",
        evaluation_metrics=("e_recall@1", "e_recall@4", "e_recall@16", "e_recall@32", "mAP@R"),
    ),
}


def recipe(name: str, captions: bool = False, small: bool = False) -> Recipe:
    """Return the recipe of a dataset; an unknown name is a user's own dataset."""
    if small:
        return SMALL
    return RECIPES.get(name, OWN_CAPTIONS if captions else OWN_IMAGES)


def search_by_words(flags: Any, filled: dict[str, Any]) -> dict[str, Any]:
    """Let a run that class names guide search by words, unless its metrics were chosen.

    Names that guide nothing may say nothing. The encoder of the guidance reads them if it was
    chosen and that of the evaluation was not, unless --storage_metrics compare words.

    Args:
        flags: of the run, filled by its recipe.
        filled: what the recipe filled.

    Returns:
        the flags that were changed.
    """
    guided = flags.language_distill_w or flags.language_proxy_w
    searched = "evaluation_metrics" in filled and "retrieval" in flags.evaluations
    own = filled.get("evaluation_metrics", ())
    if not guided or not searched or flags.language_words not in NAMING or "word_mAP" in own:
        return {}
    changed: dict[str, Any] = {"evaluation_metrics": [*own, *WORD_METRICS]}
    compared = any("word_similarity" in name for name in flags.storage_metrics)
    if "evaluation_language_model" in filled and "language_model" not in filled and not compared:
        changed["evaluation_language_model"] = flags.language_model
    for flag, value in changed.items():
        setattr(flags, flag, value)
    return changed


def fill(flags: Any, recipe: Recipe) -> dict[str, Any]:
    """Set unset attributes of ``flags`` to the recipe's values; return these.

    A recipe adds a term of words only beside ``--language_distill_w``, for words of classes, and
    where the guidance is its own: not to a published setting, or that of an older run.
    """
    given = {"language_distill_w": 0, "language_words": None} | vars(flags)
    chosen = any(given.get(flag) is not None for flag in ("language_prompt", "language_shift"))
    of_images = given["language_words"] == "captions" or (
        given["language_words"] == "pseudolabels"
        and given["language_pseudoclass_level"] == "sample"
    )
    if not given["language_distill_w"] or of_images or chosen:
        recipe = replace(recipe, language_proxy_w=0.0)
    if given.get("bs") and given["bs"] % recipe.samples_per_class:  # as typed, not as chosen here
        recipe = replace(recipe, samples_per_class=Recipe.samples_per_class)
    filled = {
        field.name: getattr(recipe, field.name)
        for field in fields(recipe)
        if getattr(flags, field.name, ...) is None
    }
    for flag, value in filled.items():
        setattr(flags, flag, list(value) if isinstance(value, tuple) else value)
    return filled
