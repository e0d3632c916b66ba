"""The bridge thins out bursts without losing what matters, keeps its budget, and imports no torch."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from hypothesis import given, strategies

from engine import events, specs
from engine.errors import BadData
from studio.jobs.bridge import QueueBridge, TalkBridge, joined, latest
from studio.jobs.job import Job, State
from studio.jobs.queue import JobChanged, JobEvent, JobRemoved
from studio.jobs.talk import Done, Failed

JOB = Job(1, "x", specs.FetchSpec(out="x"), State.RUNNING, Path("x"), 0, 0.0)
STEP = events.Step(1, 9, 1.0, 1e-3, 1, 1.0, 1.0)

news = strategies.lists(strategies.one_of(
    strategies.builds(JobChanged, strategies.builds(lambda id, attempt: replace(JOB, id=id, attempt=attempt),
                                                    strategies.integers(1, 2), strategies.integers(0, 3))),
    strategies.builds(JobEvent, strategies.integers(1, 2), strategies.one_of(
        strategies.builds(events.Progress, strategies.just("a"), strategies.floats(0, 1)),
        strategies.builds(lambda n: replace(STEP, step=n), strategies.integers(1, 9)))),
    strategies.builds(JobRemoved, strategies.integers(1, 2))), max_size=30)

words = strategies.lists(strategies.tuples(strategies.integers(1, 2), strategies.one_of(
    strategies.builds(events.Token, strategies.sampled_from(["base", "stack"]), strategies.text(max_size=3)),
    strategies.builds(events.Progress, strategies.just("a"), strategies.floats(0, 1)),
    strategies.just(Done()))), max_size=30)


class Source:
    """Something to drain."""

    def __init__(self, items):
        self.items, self.stopped = list(items), []

    def drain(self):
        items, self.items = self.items, []
        return items

    def ask(self, request):
        return 1

    def stop(self, ticket):
        self.stopped.append(ticket)


@given(news)
def test_thinning_keeps_order_every_step_and_the_last_of_the_rest(items):
    kept = latest(items)
    rest = iter(items)
    assert all(any(item is other for other in rest) for item in kept)              # a subsequence
    essential = [i for i in items if not isinstance(i, JobChanged) and not isinstance(getattr(i, "event", None), events.Progress)]
    assert [i for i in kept if i in essential] == essential
    for id in (1, 2):
        for kind in (lambda i, id=id: isinstance(i, JobChanged) and i.job.id == id,
                     lambda i, id=id: isinstance(i, JobEvent) and i.job_id == id and isinstance(i.event, events.Progress)):
            assert [i for i in kept if kind(i)] == [i for i in items if kind(i)][-1:]


@given(words)
def test_joining_changes_no_text_of_any_column(items):
    def texts(of):
        return {(t, c): "".join(w.text for u, w in of if u == t and isinstance(w, events.Token) and w.column == c)
                for t in (1, 2) for c in ("base", "stack")}

    assert texts(joined(items)) == texts(items)
    assert [i for i in joined(items) if isinstance(i[1], Done)] == [i for i in items if isinstance(i[1], Done)]


def test_signals_carry_the_news(qtbot):
    bridge = QueueBridge(Source([JobChanged(JOB), JobEvent(1, STEP), JobRemoved(2)]))
    got = []
    bridge.changed.connect(got.append)
    bridge.event.connect(lambda id, event: got.append((id, event)))
    bridge.removed.connect(got.append)
    qtbot.waitUntil(lambda: len(got) == 3, timeout=2000)
    assert got == [JOB, (1, STEP), 2]
    bridge.stop_ticking()


def test_a_flood_is_delivered_in_many_short_ticks(qtbot):
    bridge = QueueBridge(Source(JobEvent(1, replace(STEP, step=n)) for n in range(400)))
    bridge.stop_ticking()
    got = []
    bridge.event.connect(lambda id, event: (time.sleep(0.0005), got.append(event.step)))
    bridge.tick()
    assert 0 < len(got) < 400
    while len(got) < 400:
        bridge.tick()
    assert got == list(range(400))


def test_a_question_calls_back_and_an_error_that_nobody_takes_is_emitted(qtbot):
    source = Source([(1, events.Token("stack", "a")), (1, events.Token("stack", "b")), (1, Done(specs.DataReport(rows=3)))])
    bridge, got = TalkBridge(source), []
    bridge.stop_ticking()
    ticket = bridge.ask(specs.DescribeData("x"), on_event=lambda e: got.append(e.text), on_done=lambda answer: got.append(answer.rows))
    bridge.tick()
    assert got == ["ab", 3]
    bridge.ask(specs.DescribeData("x"))
    bridge.failed.connect(lambda error: got.append(error.code))
    source.items = [(ticket, Failed(BadData("No.")))]
    bridge.tick()
    assert got[-1] == "bad-data"


def test_a_forgotten_question_is_stopped_and_calls_nobody(qtbot):
    source, got = Source([]), []
    bridge = TalkBridge(source)
    bridge.stop_ticking()
    ticket = bridge.ask(specs.DescribeData("x"), on_done=got.append)
    bridge.forget(ticket)
    source.items = [(ticket, Done())]
    bridge.tick()
    assert got == [] and source.stopped == [ticket]


def test_the_whole_jobs_package_loads_without_torch():
    code = ("import sys, studio.jobs.bridge, studio.jobs.queue, studio.jobs.runner_process, studio.jobs.talk\n"
            "bad = {'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules); sys.exit(f'imported {bad}' if bad else 0)")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
