"""`kill -9` at random moments: every later loss is bit-identical, and so is the finished file."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from engine.events import Finished, Saved, Step
from engine.store.record import record
from engine.store.runs import EventTail, RunFolder
from engine.train import train

KILLS = 3
CHILD = "import sys; from engine.store.runs import RunFolder; from engine.store.record import record; from engine.train import train\n" \
        "run = RunFolder(sys.argv[1])\nfor event in record(train, run.spec(), run): pass"
ROOT = Path(__file__).parents[3]


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return [(e.step, e.error) for e in run.events() if isinstance(e, Step)]


def lives(child: subprocess.Popen, moment: float = 0.005) -> bool:
    """Whether the process still runs after ``moment`` seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(moment)
    return child.poll() is None


def test_killed_again_and_again_it_ends_in_the_same_bytes(make_spec, tmp_path):
    """Dropout, cosine speed, shuffling, accumulation and a best state are all in play; one of the kills hits while a checkpoint is written."""
    settings = dict(rows=40, passes=8, method_config={"r": 4, "lora_dropout": 0.2}, checkpoint_seconds=0.0)
    straight = make_spec(out=str(tmp_path / "straight"), **settings)
    undisturbed = RunFolder.create(tmp_path / "a", straight)
    assert isinstance(list(record(train, straight, undisturbed))[-1], Finished)
    expected = dict(losses(undisturbed))

    spec = make_spec(**settings)
    run, dice = RunFolder.create(tmp_path / "b", spec), random.Random()
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    kills, resumed_from = 0, []
    while run.outcome() is None:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(run.path)], env=environment, cwd=ROOT)
        tail = EventTail(run, after=max((e.seq for e in run.events()), default=0))
        patience = time.monotonic() + 120
        try:
            goal, done = dice.randint(3, 12), 0
            while kills < KILLS and done < goal and lives(child) and time.monotonic() < patience:
                done += sum(isinstance(e, Step) for e in tail.poll())
            if kills < KILLS:
                if kills % 2:              # within the next save
                    while lives(child, 0.0005) and time.monotonic() < patience and not any(run.checkpoints.glob(".step-*")):
                        pass
                else:
                    lives(child, dice.random() * 0.05)
                child.send_signal(signal.SIGKILL)
                kills += 1
            child.wait(timeout=120)
        finally:
            child.kill()
            child.wait()
        saved = [e.step for e in run.events() if isinstance(e, Saved)]
        resumed_from.append(saved[-1] if saved else 0)
    assert isinstance(run.outcome(), Finished), run.outcome()
    assert kills == KILLS and resumed_from[0] > 0
    seen = losses(run)
    assert {step for step, _ in seen} == set(expected) and all(error == expected[step] for step, error in seen)
    assert (Path(spec.out) / "adapter_model.safetensors").read_bytes() == (Path(straight.out) / "adapter_model.safetensors").read_bytes()
    assert not list(run.checkpoints.glob(".*"))
