"""Large batches in small memory and averaged weights, in whole runs of main.py."""

import pytest
import torch

import main
from tests.runs import RUN, killed_at, rows_of, tiny_run
from utilities import checkpoint

pytestmark = pytest.mark.usefixtures("own_cache", "no_curves")

FROZEN = ("--arch", "test_resnet_frozen_normalize", "--optim", "sgd")


def test_a_run_in_chunks_ends_within_rounding_of_the_whole(animals, tmp_path):
    """Even if they are requested only after a run was stopped."""
    more = (*FROZEN, "--language_distill_w", "2", "--loss", "supcon", "--checkpoint_every", "1")
    main.main(tiny_run(animals, tmp_path / "whole", *more))
    with killed_at(2):
        main.main(tiny_run(animals, tmp_path / "chunks", *more, "--resume"))
    chunks = ("--forward_bs", "3", "--grad_checkpointing", "--resume")
    main.main(tiny_run(animals, tmp_path / "chunks", *more, *chunks))
    got, wanted = (tmp_path / place / RUN for place in ("chunks", "whole"))
    for row, other in zip(rows_of(got), rows_of(wanted), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    got, wanted = (checkpoint.load(place / "last.pt")["embedder"] for place in (got, wanted))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_averaged_weights_are_scored_and_can_be_evaluated_by_themselves(animals, tmp_path):
    flags = ("--loss", "supcon", "--evaluation_metrics", "uniformity", "--clip_grad", "0.5")
    scores = main.main(tiny_run(animals, tmp_path, *flags, "--ema", "0.9"))
    before, *rows = rows_of(tmp_path / RUN)
    trained, averaged = (f"test/{kind}/uniformity" for kind in ("embeds", "ema_embeds"))
    assert before[trained] == before[averaged]
    assert scores[trained] != scores[averaged]
    assert all(row["train/grad_norm"] > 0 for row in rows)
    for file, name in (("last.pt", trained), ("ema.pt", averaged)):
        again = main.main(
            ["--evaluate_only", "--checkpoint", str(tmp_path / RUN / file), "--kernels", "0",
             "--no_report", "--save_path", str(tmp_path / file)]
        )  # fmt: skip
        assert again[trained] == scores[name] and averaged not in again
    assert (tmp_path / RUN / "best_test_ema_embeds_e_recall@1.pt").is_file()
