"""The real worker with jobs made of arithmetic instead of torch: started by tests as a program of its own.

A fake training's `data` says what it does: ``"steps=20 pace=0.01"`` · ``"hang"`` (hears nothing) · ``"crash"`` · ``"raise"``.
Its checkpoint is a chain of hashes, so that a resumed run can be compared byte for byte with an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine import events, specs                                                   # noqa: E402
from engine.errors import BadData                                                  # noqa: E402
from engine.store.atomic import write_json, write_text                             # noqa: E402


def fake_training(spec, run):
    """Steps of a hash chain; a checkpoint every third; obeys pause and cancel, unless it is told to misbehave."""
    wanted = dict(word.split("=") for word in spec.data.split() if "=" in word)
    steps, pace = int(wanted.get("steps", 12)), float(wanted.get("pace", 0.0))
    if "hang" in spec.data:
        yield events.Note("hanging")
        while True:
            time.sleep(60)
    if "raise" in spec.data:
        raise BadData("The file is empty.", do="Choose another one.")
    checkpoint = run.checkpoints / "latest.json"
    step, digest = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, f"seed {spec.seed}")
    while step < steps:
        if run.asked("pause") or run.asked("cancel"):
            write_json(checkpoint, [step, digest])
            yield events.Saved(step, str(checkpoint))
            yield events.Stopped("pause" if run.asked("pause") else "cancel", resumable=True, step=step)
            return
        step, digest = step + 1, hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
        time.sleep(pace)
        if "crash" in spec.data and step == 5:
            os._exit(3)
        yield events.Step(step, steps, 1 / step, 1e-3, 10, 100.0, 50.0, seconds_left=(steps - step) * pace)
        if step % 3 == 0:
            write_json(checkpoint, [step, digest])
            yield events.Saved(step, str(checkpoint))
    write_text(Path(spec.out) / "adapter.txt", digest)
    yield events.Finished({"adapter": spec.out, "steps": steps})


class FakeSession:
    """Says one strength a token until it is stopped or has said `max_new_tokens` of them."""

    def __init__(self):
        self.strengths: list[float] = []

    def open(self, spec):
        if spec.base == "too large":
            os._exit(4)
        time.sleep(0.05)
        self.strengths = [entry.strength for entry in spec.stack]

    def set_strengths(self, strengths):
        self.strengths = list(strengths)

    def say(self, spec, stopped=lambda: False):
        if spec.messages and spec.messages[-1]["content"] == "die":
            os._exit(4)
        print("a library prints to stdout")                    # must not spoil the protocol
        os.write(1, b"and so does its C part\n")
        said = []
        for _ in range(spec.max_new_tokens):
            if stopped():
                break
            said.append(f"{self.strengths} ")
            yield events.Token("stack", said[-1])
            time.sleep(0.002)
        yield events.Answered("stack", "".join(said), len(said), 0.0, "base", [], "stop" if stopped() else "length")


def lint(spec, watch):
    """Looks for half a minute, unless it is stopped."""
    for n in range(30_000):
        watch("Looking at every example", n, 30_000)
        time.sleep(0.001)
    return specs.LintReport(rows=30_000)


def describe(spec, watch):
    if not Path(spec.data).exists():
        raise BadData(f"The file {spec.data} is not there.", do="Choose another one.")
    return specs.DataReport(path=spec.data, sentence="One row.", rows=1)


def main() -> int:
    """Put the fakes in place of the real functions, then live like the real worker."""
    from engine.worker import __main__ as worker
    from engine.worker import run, talk

    run.JOBS["train"] = fake_training
    talk.ANSWERS["describe-data"] = describe
    talk.ANSWERS["lint-data"] = lint
    talk.SESSION = FakeSession
    worker._preload = lambda inbox: None
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
