"""A queue over a fresh home, with a real child process whose jobs are arithmetic."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil
import pytest

from engine import specs
from engine.store.home import Home
from studio.jobs.queue import JobEvent, open_queue
from studio.jobs.runner_process import ProcessRunner

FAKE_WORKER = [sys.executable, str(Path(__file__).parents[2] / "support" / "fake_worker.py")]


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home").prepare()


@pytest.fixture
def plan(tmp_path):
    """A spec for a fake training: ``plan("steps=5")``."""
    return lambda data="steps=5", out="adapter", **more: specs.TrainSpec(base="base", data=data, out=str(tmp_path / out), **more)


@pytest.fixture
def queues(home, monkeypatch):
    """Start queues, by default with a process runner; all are closed at the end, and nothing may be left behind."""
    monkeypatch.setenv("ADAPTER_STUDIO_NICE", "0")             # a busy test machine would starve a polite child
    before, opened = set(psutil.Process().children(recursive=True)), []

    def start(runner=None, **options):
        queue = open_queue(home, runner or ProcessRunner(home.root / "logs" / "worker.log", argv=FAKE_WORKER, **options))
        queue.start()
        opened.append(queue)
        return queue

    yield start
    for queue in opened:
        queue.close()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not [t for t in threading.enumerate() if t.name == "job-queue" or t.name.endswith("-reader")]


@pytest.fixture
def until():
    """Wait for a condition by looking again and again, at most so many seconds."""
    blink = threading.Event()

    def wait(condition, seconds=20.0):
        for _ in range(int(seconds / 0.01)):
            if found := condition():
                return found
            blink.wait(0.01)
        raise AssertionError("it did not happen in time")

    return wait


def heard(queue, kind=None):
    """The events among the queue's news."""
    return [n.event for n in queue.drain() if isinstance(n, JobEvent) and (kind is None or isinstance(n.event, kind))]
