"""Images to embeddings: any timm backbone by a name such as ``resnet50_frozen_normalize``."""

from utilities.registry import exporter, listed

_EXPORTED = {
    "architectures.average": ("build_average",),
    "architectures.embedder": ("Embedder",),
    "architectures.from_flags": (
        "at_hand", "build", "build_classifier", "build_image_tower", "create", "initialise",
    ),
    "architectures.image_tower": ("ImageTower",),
    "architectures.naming": ("ArchitectureName",),
    "architectures.weights": ("Classifier", "classifier"),
}  # fmt: skip
__getattr__ = exporter(__name__, listed(_EXPORTED))
