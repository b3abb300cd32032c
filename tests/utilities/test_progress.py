"""An epoch's averages, and bars on a terminal alone."""

import itertools
import sys
import time

import torch

from utilities import progress as progress_module
from utilities.progress import Progress, bar, in_threads


def test_averages_over_the_steps_that_had_a_term():
    progress = Progress()
    for batch in progress.over([1, 2, 3], 3, "epoch 1"):
        late = {"loss_match": torch.tensor(10.0 * batch)} if batch > 1 else {}
        skipped = torch.tensor(torch.nan if batch == 2 else batch)  # a norm that is not finite
        progress.count(4, loss=torch.tensor(float(batch)), grad_norm=skipped, **late)
    averages = progress.averages()
    assert averages["train/loss"] == averages["train/grad_norm"] == 2.0
    assert averages["train/loss_match"] == 25.0
    assert progress.n_images == 12


def test_time_waiting_for_data_is_told_from_time_spent_on_steps():
    class Slow(list):
        def __iter__(self):
            for item in super().__iter__():
                time.sleep(0.03)
                yield item

    progress = Progress()
    for _ in progress.over(Slow([1, 2, 3]), 3, "epoch 1"):
        time.sleep(0.01)
        progress.count(5, loss=torch.tensor(0.0))
    averages = progress.averages()
    assert 0.5 < averages["train/waiting_for_data"] < 1
    assert 0 < averages["train/images_per_second"] < 15 / 0.12


def test_terms_do_not_hold_the_graph():
    progress = Progress()
    weight = torch.ones((), requires_grad=True)
    for _ in progress.over([1], 1, "epoch 1"):
        progress.count(1, loss=weight * 2)
    assert not progress.terms["loss"][0].requires_grad


def test_an_epoch_without_batches():
    progress = Progress()
    assert list(progress.over([], 0, "epoch 1")) == []
    assert progress.averages()["train/images_per_second"] == 0.0


def test_an_epoch_resumed_after_its_last_step_did_not_wait_for_images():
    """Nothing was loaded, so that the time to find that out is no share of the epoch."""
    progress, again = Progress(), Progress()
    for _ in progress.over([1], 1, "epoch 1"):
        progress.count(4, loss=torch.tensor(1.0))
    again.load_state_dict(progress.state_dict())
    for _ in again.over(itertools.islice(iter([]), 0), 0, "epoch 1"):
        pass
    assert again.averages()["train/waiting_for_data"] == 0.0
    assert again.averages()["train/loss"] == 1.0


def test_an_epoch_in_two_runs_of_the_program_has_the_averages_of_one():
    rng = torch.Generator().manual_seed(0)
    losses = torch.rand(7, generator=rng)

    def seen(progress, some):
        for loss in progress.over(some, len(some), "epoch 1"):
            late = {"late": loss * 2} if loss > 0.5 else {}
            progress.count(1, loss=loss, **late)
        return progress

    whole, first, second = seen(Progress(), losses), seen(Progress(), losses[:3]), Progress()
    second.load_state_dict(first.state_dict())
    seen(second, losses[3:])
    for name in ("train/loss", "train/late"):
        assert second.averages()[name] == whole.averages()[name]


def test_values_that_are_shown_stay_until_others_are():
    progress = Progress()
    progress.show("miner", {"reward": 1.0, "nmi": 0.5})
    progress.reset()
    progress.show("miner", {"reward": -1.0})
    again = Progress()
    again.load_state_dict(progress.state_dict())
    for one in (progress, again):
        assert one.averages()["miner/reward"] == -1.0 and one.averages()["miner/nmi"] == 0.5


def test_bars_are_shown_on_a_terminal_alone(capsys, monkeypatch):
    def run():
        progress = Progress()
        for _ in progress.over([1, 2], 2, "epoch 1"):
            progress.count(1, loss=torch.tensor(0.0))
        in_threads(str, list(bar([1, 2], desc="listed")), "threads")
        return capsys.readouterr().err

    assert run() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = run()
    assert all(title in shown for title in ("epoch 1", "listed", "threads"))


def test_a_long_epoch_gives_a_sign_of_life_where_no_bar_is_shown(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(progress_module, "SIGN_OF_LIFE", 0.0)
    progress = Progress()
    for _ in progress.over([1, 2], 2, "epoch 1/3"):
        progress.count(1, loss=torch.tensor(0.25))
    assert [line.partition(",")[0] for line in caplog.messages] == [
        "epoch 1/3: batch 1 of 2", "epoch 1/3: batch 2 of 2",
    ]  # fmt: skip
    assert "images/s" in caplog.text
