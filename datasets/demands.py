"""Refuses flags that ask for what the images do not have."""

from collections.abc import Collection
from typing import Any

from utilities.results.runs import is_fraction


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
    if args.patience:
        _refuse_patience(args, data, labelled)
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


def _refuse_patience(args: Any, data: Any, labelled: bool) -> None:
    """Refuse ``--patience`` without validation images, or for scores that should fall."""
    given = f"--patience {args.patience}"
    if data.val is None:
        remedy = "hold some out with --use_tv_split" if labelled else f"leave {given} out"
        raise ValueError(
            f"{given} counts evaluations of validation images, of which --dataset {args.dataset} "
            f"has none; {remedy}"
        )
    falling = [metric for metric in args.storage_metrics if not is_fraction(metric)]
    if falling:
        raise ValueError(
            f"{given} waits for a higher score, and higher is not better for --storage_metrics "
            f"{' '.join(falling)}; use others, such as e_recall@1"
        )
