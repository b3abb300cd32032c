"""Refuses flags that ask for what the images do not have."""

from collections.abc import Collection
from typing import Any


def refuse_lacking(args: Any, data: Any, needs: Collection[str]) -> None:
    """Refuse flags that ask for classes or captions that the images of a run do not have.

    Args:
        data: of the run, with ``train`` and ``val``.
        needs: of the objective, among them "captions" and "labels".

    Raises:
        ValueError: names the flag and the remedy.
    """
    train = data.train
    if "captions" in needs and not len(train.captions):
        raise ValueError(
            f"--loss {args.loss} reads captions, but --dataset {args.dataset} has none; add a "
            "captions.json, or use a dataset with captions such as openclipart"
        )
    labelled = bool(getattr(train, "class_names", ()))
    if args.patience and data.val is None:
        why = f"and --dataset {args.dataset} has captions instead; leave it out"
        raise ValueError(
            f"--patience {args.patience} counts evaluations of validation images, "
            + ("of which there are none; hold some out with --use_tv_split" if labelled else why)
        )
    if labelled:
        return
    if "labels" in needs:
        raise ValueError(
            f"--loss {args.loss} compares classes, but --dataset {args.dataset} has captions "
            "instead; use simclr, clip or another objective of docs/self_supervision.md"
        )
    probes = [name for name in args.evaluations if name != "retrieval"]
    if probes and not args.evaluation_datasets:
        raise ValueError(
            f"--evaluations {' '.join(probes)} need labels, but --dataset {args.dataset} has "
            "captions instead; name labelled images with --evaluation_datasets, such as emoji"
        )
    if args.language_proxy_w:
        raise ValueError(
            f"--language_proxy_w {args.language_proxy_w:g} classifies images, but --dataset "
            f"{args.dataset} has captions instead of classes; leave it out"
        )
    if args.language_distill_w and args.language_words != "captions":
        raise ValueError(
            f"--language_words {args.language_words} are words of classes, but --dataset "
            f"{args.dataset} has captions instead; use --language_words captions"
        )
