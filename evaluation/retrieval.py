"""Image retrieval among classes: every image of a set queries all the others."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import metrics as scoring
from datasets.image_set import ImageSet
from datasets.loading import Transform
from evaluation.extract import extract
from metrics import Gallery

EVALTYPES = ("embeds", "features")


class Scores(dict[str, float]):
    """Scores by name, each with the protocol that it was measured by in ``protocols``.

    Values are fractions, and NaN where no query counts. ``lines`` prints them in percent:
    ``embeds/e_recall@1 70.12 | cub200.test n=5924 d=128 euclidean exact seed=2``.
    """

    def __init__(self, values: Mapping[str, float], protocols: Mapping[str, str]) -> None:
        super().__init__(values)
        self.protocols = dict(protocols)

    def add(self, other: "Scores", prefix: str = "") -> None:
        """Take in other scores, ``prefix`` put before their names."""
        self.update({prefix + name: value for name, value in other.items()})
        self.protocols.update({prefix + name: text for name, text in other.protocols.items()})

    def lines(self) -> list[str]:
        return [
            f"{name} {100 * value:.2f} | {self.protocols[name]}" for name, value in self.items()
        ]


def retrieve(gallery: Gallery, names: Sequence[str], *, set_name: str) -> Scores:
    """The named metrics of a gallery, with their protocols.

    Args:
        names: as ``metrics`` parses them.
        set_name: of the image set, for the protocol.

    Raises:
        ValueError: as ``metrics.validate``.
    """
    values, protocols = {}, {}
    n, d = gallery.embeds.shape
    for name, value in scoring.compute(names, gallery).items():
        metric = scoring.parse(name)
        distance = "cosine" if metric.cosine else "euclidean"
        method = "k-means" if metric.compare else "exact"
        values[name] = value
        protocols[name] = f"{set_name} n={n} d={d} {distance} {method} seed={gallery.seed}"
    return Scores(values, protocols)


def run(
    embedder: nn.Module,
    image_set: ImageSet,
    transform: Transform,
    *,
    metrics: Sequence[str],
    evaltypes: Sequence[str] = ("embeds",),
    class_words: Tensor | None = None,
    bs: int = 112,
    workers: int = 6,
    device: torch.device | str = "cpu",
    search_device: torch.device | str | None = None,
    autocast: bool = False,
    seed: int = 0,
) -> Scores:
    """Embed a set once and score it, as ``<evaltype>/<metric>`` such as ``embeds/e_recall@1``.

    What cannot be computed is refused before anything is embedded.

    Args:
        metrics: names as ``metrics`` parses them.
        evaltypes: which of the embedder's outputs to score, of ``EVALTYPES``.
        class_words: (C, Dw) unit rows, for the metrics that compare the words of classes.
        device: where the embedder is.
        search_device: where the images are compared; None for where they are embedded.
        seed: of the run; k-means starts from it.
        bs, workers, autocast: as ``extract``.

    Raises:
        ValueError: a metric or evaltype is unknown, or needs words or groups that there are not.
    """
    groups = image_set.class_groups or None
    scoring.validate(metrics, class_words, groups)
    for evaltype in evaltypes:
        if evaltype not in EVALTYPES:
            raise ValueError(
                f"--evaltypes {evaltype} is unknown; use one of {', '.join(EVALTYPES)}"
            )

    extracted = extract(
        embedder,
        image_set,
        transform,
        bs=bs,
        workers=workers,
        device=device,
        autocast=autocast,
    )
    scores = Scores({}, {})
    for evaltype in evaltypes:
        embeds = getattr(extracted, evaltype).to(device if search_device is None else search_device)
        gallery = Gallery(embeds, extracted.labels, class_words, groups, seed=seed)
        scores.add(retrieve(gallery, metrics, set_name=image_set.name), f"{evaltype}/")
    return scores
