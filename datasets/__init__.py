"""A dataset's name → images with labels and words (`ImageSet`) → batches of tensors."""

from utilities.registry import exporter, listed

_EXPORTED = {
    "datasets.batches": ("Batches",),
    "datasets.caption_set": ("CaptionSet",),
    "datasets.colour": ("finish",),
    "datasets.defaults": ("fixed", "settle"),
    "datasets.demands": ("refuse_lacking",),
    "datasets.description": ("Description",),
    "datasets.from_flags": (
        "build", "build_as_trained", "decoded", "describe", "downstream_sets",
        "feedback", "fill_by_recipe", "searched", "searched_sets", "sizes", "source_folder",
        "training_batches", "warn_of_waiting",
    ),
    "datasets.image_cache": ("cached",),
    "datasets.image_set": ("ImageSet", "Images"),
    "datasets.loading": ("loader", "preview"),
    "datasets.recipes": ("RECIPES", "Recipe", "recipe"),
    "datasets.splits": ("Data",),
    "datasets.transforms": ("eval_transform", "train_views"),
}  # fmt: skip
__getattr__ = exporter(__name__, listed(_EXPORTED))
