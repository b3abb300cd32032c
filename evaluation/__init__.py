"""Embeds image sets once, scores the embeddings by several protocols, and reports the scores."""

from utilities.registry import exporter, listed

_EXPORTED = {
    "evaluation.downstream": ("evaluate_downstream",),
    "evaluation.evaluator": ("Evaluator",),
    "evaluation.extract": ("Features", "predict"),
    "evaluation.from_flags": (
        "build", "draw_views", "embedding", "image_reader", "imagenet_logits",
    ),
    "evaluation.pictures": ("VIEWS",),
    "evaluation.preprocessing": ("Preprocessing", "preprocessing_of"),
    "evaluation.retrieval": ("EVALTYPES", "run"),
    "evaluation.scores": ("Scores", "listing", "table", "write_by_class"),
    "evaluation.session": ("EvaluationSession",),
    "evaluation.tower_search": ("NamesReader",),
}  # fmt: skip
__getattr__ = exporter(__name__, listed(_EXPORTED))
