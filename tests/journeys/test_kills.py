"""Real training in a real child, killed at random steps, then with its whole studio: the adapter comes out byte for byte the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from engine import events, specs
from engine.store.home import Home
from studio.jobs.job import State
from studio.jobs.queue import JobEvent, open_queue
from studio.jobs.runner_process import ProcessRunner

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
ROOT = Path(__file__).parents[2]

STUDIO = """
import sys, threading
from pathlib import Path
from engine.store.home import Home
from studio.jobs.queue import open_queue
from studio.jobs.runner_process import ProcessRunner
home = Home(Path(sys.argv[1]))
queue = open_queue(home, ProcessRunner(home.root / "worker.log"))
queue.start()
queue.resume(queue.jobs()[-1].id)
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def plan(base, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ADAPTER_STUDIO_NICE", "0")             # a busy test machine would starve a polite child
    data = tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is number {n}?", "answer": f"It is {n * n}, of course."}) + "\n" for n in range(60)))
    return lambda out: specs.TrainSpec(base=str(base), data=str(data), out=str(tmp_path / out), passes=4.0, rows_per_step=4, seed=3,
                                       precision="float32", learning_rate=0.01, early_stop=False, checkpoint_seconds=0.0,
                                       method_config={"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"})


@pytest.fixture
def queues(tmp_path):
    opened = []

    def start(home):
        queue = open_queue(home, ProcessRunner(home.root / "worker.log"))
        queue.start()
        opened.append(queue)
        return queue

    yield start
    for queue in opened:
        queue.close()


def wait(condition, seconds=240.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        threading.Event().wait(0.005)
    raise AssertionError("it did not happen in time")


def finished(queue, id):
    job = wait(lambda: None if queue.job(id).active else queue.job(id))
    assert job.state is State.FINISHED, job.error
    return job


def steps_done(queue):
    return max((n.event.step for n in queue.drain() if isinstance(n, JobEvent) and isinstance(n.event, events.Step)), default=0)


def files(job):
    """Name → bytes of the adapter, without what says when and how often it ran."""
    return {p.name: p.read_bytes() for p in Path(job.spec.out).iterdir() if p.suffix == ".safetensors" or p.name == "adapter_config.json"}


def test_killed_at_random_it_ends_in_the_same_bytes(plan, tmp_path, queues):
    home, dice = Home(tmp_path / "home"), random.Random(11)
    queue = queues(home)
    straight = queue.submit(plan("straight"), "straight")
    straight_job = finished(queue, straight.id)
    queue.drain()
    job = queue.submit(plan("killed"), "killed")

    # the child, at a random step
    moment = dice.randint(5, 20)
    wait(lambda: steps_done(queue) >= moment or not queue.job(job.id).active)
    psutil.Process(queue._store.process(job.id)[0]).kill()
    stopped = wait(lambda: None if queue.job(job.id).active else queue.job(job.id))
    assert stopped.state is State.INTERRUPTED and f"resumes at step {stopped.step}" in stopped.error["do"]
    queue.close()

    # the whole studio, at another one
    studio = subprocess.Popen([sys.executable, "-c", STUDIO, str(home.root)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert studio.stdout.readline() == b"ready\n"
        moment = stopped.step + dice.randint(4, 15)
        folder = stopped.folder / "events.jsonl"
        wait(lambda: any(e["step"] >= moment for e in map(json.loads, folder.read_bytes().split(b"\n")[:-1]) if e["event"] == "step"))
    finally:
        studio.kill()
        studio.wait()
        studio.stdout.close()

    # the next start says so, and goes on
    queue = queues(home)
    told = wait(lambda: queue.job(job.id) if queue.job(job.id).state is not State.RUNNING else None)
    assert told.state is State.INTERRUPTED and told.error["do"] == f"It resumes at step {told.step}." and told.step >= stopped.step
    queue.resume(job.id)
    done = finished(queue, job.id)
    assert done.attempt == 3 and files(done) == files(straight_job) and len(files(done)) == 2
    assert done.result["fingerprint"] == straight_job.result["fingerprint"]
    assert done.result["error_after"] == straight_job.result["error_after"] < done.result["error_before"]
