"""Evaluate a run before training, every few epochs, and at its end."""

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.evaluator import Evaluator
from evaluation.report_data import ReportData, build_report_data
from evaluation.report_html import write_report
from evaluation.scores import EMA, Scores, listing, table, write_by_class
from evaluation.verdict import BACKBONE, Searched, Verdict, intervals_of_changes, verdict
from evaluation.word_map_file import StoredMap, map_file, write
from evaluation.word_search import WORDS
from metrics import Interval, parse
from utilities.run import Run
from utilities.run_folder import RunFolder

LOG = logging.getLogger(__name__)

Embedded = tuple[Tensor, Tensor]  # (M, D) embeddings and (M,) int64 rows of their set


class EvaluationSession:
    """Scores an embedder every few epochs and at the end of a run, and writes its report.

    Args:
        evaluator: retrieval on the run's sets; checkpoints are chosen by the first.
        downstream: scores frozen features at the end of the run.
        others: sets that ``downstream`` reads, by name.
        averaged: retrieval by averaged weights, on the same sets; None without such weights.
        stored_map: makes the map from words to images of the last evaluation, if there is one.
        every: epochs between evaluations.
        n_epochs: of the run; the last is always evaluated.
        cache: folder in which features before training are kept, since many runs start from them.
        untrained_flags: of a run that searches with the backbone's features.

    Attributes:
        sets: all that is evaluated, by name.
        untrained, scores: before training, and of the last evaluation.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        downstream: Callable[[], Scores] | None,
        others: Mapping[str, Any] | None = None,
        stored_map: Callable[[], StoredMap | None] = lambda: None,
        averaged: Evaluator | None = None,
        *,
        every: int = 1,
        n_epochs: int = 0,
        cache: Path | None = None,
        untrained_flags: str = "",
    ) -> None:
        self.evaluator = evaluator
        self.downstream = downstream
        self.sets = {**evaluator.sets, **(others or {})}
        self.stored_map = stored_map
        self.averaged = averaged
        self.every = every
        self.n_epochs = n_epochs
        self.untrained_flags = untrained_flags
        self.cache = cache
        self.untrained = Scores({}, {})
        self.scores = Scores({}, {})
        self.before: Embedded | None = None  # of the first set, before training
        self.run: Run | None = None  # that it belongs to, once it has started

    @property
    def chosen_by(self) -> str | None:
        """The set that checkpoints are chosen by; None if nothing is searched."""
        return next(iter(self.evaluator.sets), None)

    def best_of(self, metrics: Sequence[str]) -> list[str]:
        """Return the scores of the first set that checkpoints are chosen by.

        Retrieval by averaged weights, if there are any, chooses checkpoints of its own.
        """
        evaluator = self.evaluator
        of_words = WORDS if evaluator.word_search is not None and self.chosen_by != "train" else ""
        if not of_words and evaluator.tower_searches:
            of_words = evaluator.tower_searches[0].kind
        unscored = [metric for metric in metrics if parse(metric).words_by and not of_words]
        if unscored:
            raise ValueError(
                f"--storage_metrics {' '.join(unscored)}: no names search the images of "
                f"{self.chosen_by or 'this run'}; leave them out"
            )
        evaltype = evaluator.options["evaltypes"][0]
        kinds = [of_words if parse(metric).words_by else evaltype for metric in metrics]
        chosen = [f"{k}/{metric}" for k, metric in zip(kinds, metrics, strict=True)]
        if self.averaged is not None:
            chosen += [f"{EMA}{name}" for name in chosen if name.startswith(f"{evaltype}/")]
        return [f"{self.chosen_by}/{name}" for name in chosen]

    def start(self, run: Run) -> Scores:
        """Evaluate and record the untrained embedder; of a resumed run, read what was recorded."""
        self.run = run
        if run.resumed:
            scores, kept = run.untrained()
            self.untrained = self.scores = Scores(scores, {}, by_class=kept.get("by_class"))
            self.before = (kept["embeds"], kept["rows"]) if kept else None
            if self.before is None and self.chosen_by:
                LOG.warning("the embeddings before training are gone; the report goes without them")
        else:
            trains = self.n_epochs > 0
            self.untrained = self.scores = self._retrieval(self.cache, before=True, backbone=trains)
            if not trains:
                self.evaluate_features()  # added to both scores, which are one object
            self.before = self.evaluator.embeds.get(self.chosen_by or "")
            kept = dict[str, Any]()
            if self.before is not None:
                embeds, rows = self.before
                kept = {"embeds": embeds, "rows": rows, "by_class": self.untrained.by_class}
            run.record_untrained(self.untrained, kept)
        return self.untrained

    def evaluate_if_due(self, epoch: int) -> Scores:
        """Evaluate retrieval after ``epoch`` epochs if it is due; return the scores, or none."""
        if epoch % self.every and epoch != self.n_epochs:
            return Scores({}, {})
        self.scores = self._retrieval()
        return self.scores

    def evaluate_features(self) -> Scores:
        """Evaluate frozen features at the end of a run; return the last scores and these."""
        if self.downstream is not None:
            self.scores.add(self.downstream())
        return self.scores

    def _retrieval(
        self, cache: Path | None = None, *, before: bool = False, backbone: bool = False
    ) -> Scores:
        scores = self.evaluator(cache, backbone=backbone)
        if self.averaged is not None:
            # Before training the averaged weights are the others.
            found = scores if before else self.averaged()
            scores.add(found.of_average(self.evaluator.options["evaltypes"]))
        return scores

    def report(
        self,
        folder: RunFolder,
        flags: Mapping[str, Any],
        checkpoint: Path,
        changed: Container[str] = (),
    ) -> list[Path]:
        """Write classes_*.csv, a map from words and the report; return tables and pictures.

        Args:
            flags: of the run; with ``no_report`` the report is left out.
            checkpoint: of the embedder that was evaluated, which names the map.
            changed: names of flags that the report lists first.
        """
        sets, scores = self.evaluator.sets, self.scores
        if stored := self.stored_map():
            write(map_file(folder.path / checkpoint.name), stored)
        tables = [folder.path / f"classes_{name}.csv" for name in sets]
        for (name, images), path in zip(sets.items(), tables, strict=True):
            write_by_class(path, scores, f"{name}/", images)
        if flags["no_report"] or not sets:
            return tables
        written = write_report(
            *(folder.path, self.report_data(flags["seed"])), rows=folder.rows,
            protocols=scores.protocols, intervals=scores.intervals, changes=self.changes(),
            config={**folder.config, "flags": flags}, changed=changed, verdict=self.verdict(),
        )  # fmt: skip
        return tables + [path for path in written.values() if path.suffix == ".png"]

    def report_data(self, seed: int) -> ReportData:
        """Return the first set as it was last embedded, for its report."""
        evaluator = self.evaluator
        name, images = next(iter(evaluator.sets.items()))
        embeds, rows = evaluator.embeds[name]
        # Images that could not be read before or after training cannot be compared.
        comparable = self.before is not None and torch.equal(self.before[1], rows)
        search, by_words = evaluator.word_search, dict[str, Any]()
        if search is not None and search.map is not None and name in evaluator.searched:
            by_words = {
                "word_queries": search.map(search.words[name].cpu()),
                "word_gallery": evaluator.searched[name],
                "names_seen": len({*images.class_names} & {*search.train.class_names}),
            }
        return build_report_data(
            *(images, embeds, rows),
            before=self.before[0] if self.before is not None and comparable else None,
            class_words=evaluator.class_words.get(name),
            seed=seed,
            **by_words,
        )

    def verdict(self) -> Verdict | None:
        """Return what training changed on the first set; None if there is nothing to compare."""
        name, evaltype = self.chosen_by, self.evaluator.options["evaltypes"][0]
        if not self.n_epochs or name is None or self.run is None:
            return None
        before = {"embeds": "untrained embedding", "features": "features before training"}
        floors = [
            Searched("backbone's features", f"{name}/{BACKBONE}", self.untrained),
            Searched(before[evaltype], f"{name}/{evaltype}", self.untrained),
        ]
        trained = Searched("trained", f"{name}/{evaltype}", self.scores)
        metrics = self.evaluator.options["metrics"]
        images = self.evaluator.sets[name]
        return verdict(
            *(trained, floors, images, metrics),
            rows=self.run.folder.rows,
            untrained_flags=self.untrained_flags,
            best_checkpoint=self.run.best_checkpoint,
        )

    def changes(self) -> dict[str, Interval]:
        """Return the paired 95 % intervals of the changes of scores since before training."""
        found: dict[str, Interval] = {}
        before, after = self.untrained.by_class, self.scores.by_class
        for name, images in self.evaluator.sets.items() if self.n_epochs else ():
            found |= intervals_of_changes(before, after, images, f"{name}/")
        return found

    def conclusion(self) -> str:
        """Return the scores beside those before training, how they were measured, the verdict."""
        before = {name: v for name, v in self.untrained.items() if f"/{BACKBONE}/" not in name}
        shown = table(before, self.scores) if before else listing(self.scores)
        protocols = dict.fromkeys(self.scores.protocols.values())
        lines = [shown, *(f"measured on {protocol}" for protocol in protocols)]
        if found := self.verdict():
            lines += ["", str(found)]
        return "\n".join(lines)
