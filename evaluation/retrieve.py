"""Search a folder of images with a trained embedder.

    python -m evaluation.retrieve index FOLDER --checkpoint RUN --index DIR
    python -m evaluation.retrieve query IMAGE ... --index DIR --k 10 --save found.png
    python -m evaluation.retrieve query --words "red panda" --index DIR

Words are read by the map beside the checkpoint, or by the text side that a run trained on captions:
index for that with ``--space words``. Indexing a folder again embeds only new and changed images.
``evaluation.image_index`` describes the files in DIR.
"""

from evaluation import retrieve_flags
from utilities import startup

if __name__ == "__main__":  # a wrong flag or a missing file need not wait for torch
    startup.begin()
    retrieve_flags.parse()

import argparse
import json
import logging
from collections.abc import Sequence

from evaluation.searcher import Searcher
from utilities import faults, log
from utilities.console import printable

LOG = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; results go to stdout, everything else to stderr."""
    parser, args = retrieve_flags.parse(argv)
    log.set_up()
    with faults.reported(parser.error, "lower --bs or --kernels"):
        (run_index if args.command == "index" else run_query)(args)


def run_index(args: argparse.Namespace) -> None:
    # Queries by pictures do without torch, and without these.
    from evaluation.indexing import build_index
    from evaluation.search_models import keep_quick_embedder, load_model
    from utilities import device as devices

    device = devices.choose(args.device)
    model = load_model(args.checkpoint, args.space)
    index, changes = build_index(
        *(args.folder, model, args.index),
        bs=args.bs, workers=devices.at_most_the_cores(args.kernels), device=device,
    )  # fmt: skip
    keep_quick_embedder(args.index, index, model)
    provenance, embedded = index
    count, dimensions = embedded.vectors.shape
    if args.json:
        content = {
            "index": str(args.index), "images": count, "embed_dim": dimensions,
            "bytes": embedded.vectors.nbytes, "digest": provenance.digest, **changes._asdict(),
            "unreadable": [str(provenance.folder / file.path) for file in embedded.unreadable],
        }  # fmt: skip
        print(json.dumps(content, indent=2))
        return
    print(
        f"{args.index}: {count:,} images x {dimensions} dimensions, "
        f"{embedded.vectors.nbytes / 1e6:,.3g} MB of embeddings\n"
        f"{changes.new:,} new, {changes.changed:,} changed, {changes.removed:,} removed, "
        f"{changes.unchanged:,} unchanged; {changes.unreadable:,} cannot be read"
    )


def run_query(args: argparse.Namespace) -> None:
    searcher = Searcher(args.index, args.checkpoint, args.map, args.language_model, args.device)
    weight = 0.5 if args.words_weight is None else args.words_weight
    answers = searcher.find(
        *(args.images, args.words), weight=weight, k=args.k, leave_out=args.leave_out_query
    )
    if args.save:
        from evaluation.contact_sheet import contact_sheet

        queries, found = zip(*answers, strict=True)
        contact_sheet(queries, found, args.save, searcher.index.provenance.folder)
        LOG.info("contact sheet: %s", args.save)
    if args.json:
        content = [
            {
                "query": query.image,
                "words": query.words,
                "neighbours": [hit._asdict() for hit in hits],
            }
            for query, hits in answers
        ]
        print(json.dumps(content, indent=2, default=str))
        return
    for query, hits in answers:
        print(f"query: {query}\nrank  similarity  path")
        for hit in hits:
            print(f"{hit.rank:>4}  {hit.similarity:>10.4f}  {printable(hit.path)}")
        print()


if __name__ == "__main__":
    main()
