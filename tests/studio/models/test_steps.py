"""Work in the turns of the event loop: all of it, in order, never two at once."""

from __future__ import annotations

import time

from studio.models.steps import SLICE, Steps


def work(done: list, count: int, length: float = 0.0):
    try:
        for number in range(count):
            until = time.perf_counter() + length
            while time.perf_counter() < until:
                pass
            done.append(number)
            yield
    finally:
        done.append("tidy")


def test_it_does_everything_in_several_turns(qtbot):
    steps, done, turns = Steps(), [], []
    steps._timer.timeout.connect(lambda: turns.append(1))
    steps.begin(work(done, 4, SLICE))
    assert steps.busy and not done         # nothing at once
    qtbot.waitUntil(lambda: not steps.busy)
    assert done == [0, 1, 2, 3, "tidy"] and len(turns) >= 4


def test_new_work_takes_the_place_of_what_is_left(qtbot):
    steps, first, second = Steps(), [], []
    steps.begin(work(first, 3))
    next(steps._work)
    steps.begin(work(second, 1))
    qtbot.waitUntil(lambda: not steps.busy)
    assert first == [0, "tidy"] and second == [0, "tidy"]
