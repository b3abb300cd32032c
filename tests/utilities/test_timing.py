"""The stopwatch, on a clock that the test sets."""

import time

import pytest

from utilities.timing import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """``clock.now`` is what time.perf_counter returns."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


def test_sections_add_up_also_when_they_raise(clock):
    watch = Stopwatch()
    for seconds in (1.0, 2.0):
        with watch.section("forward"):
            clock.now += seconds
        with pytest.raises(KeyError), watch.section("evaluation"):
            clock.now += 10 * seconds
            raise KeyError
    assert dict(watch.seconds) == {"forward": 3.0, "evaluation": 30.0}


def test_waiting_counts_the_wait_and_not_the_work(clock):
    def slow():
        for item in "abc":
            clock.now += 0.5
            yield item

    watch = Stopwatch()
    seen = []
    for item in watch.waiting(slow()):
        clock.now += 100
        seen.append(item)
    assert seen == ["a", "b", "c"]
    assert watch.seconds["data"] == 1.5


def test_images_per_second_over_all_or_some_sections(clock):
    watch = Stopwatch()
    assert watch.images_per_second(10) == 0
    with watch.section("data"):
        clock.now += 1
    with watch.section("forward"):
        clock.now += 3
    assert watch.images_per_second(12) == 3
    assert watch.images_per_second(12, "forward") == 4
    assert watch.images_per_second(12, "absent") == 0
    assert set(watch.seconds) == {"data", "forward"}
