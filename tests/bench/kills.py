"""Twenty random kills: a training in a real child is killed (`kill -9`) again and again, and must end in the bytes of an undisturbed one.

    python tests/bench/kills.py [--base FOLDER] [--kills 20] [--seed 0] [--write]

Of four kills one hits while the child gets ready, one while a checkpoint is being written, two anywhere between or within steps. Dropout,
shuffling, cosine speed, accumulation and a best state are in play. Half-way time is added, so that a turn of the course is resumed, too.
At the end the killed adapter is taught again from its recipe. ``--write`` keeps the figures in ``results/kills.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from engine.events import Finished, Saved, Step                                   # noqa: E402
from engine.specs import RebuildSpec, TrainSpec                                   # noqa: E402
from engine.store.recipe import read_recipe                                       # noqa: E402
from engine.store.runs import EventTail, RunFolder                                # noqa: E402

RESULTS = Path(__file__).parent / "results" / "kills.json"
CHILD = """
import sys
from engine.events import Step
from engine.store.runs import RunFolder
from engine.worker.run import run_job
run = RunFolder(sys.argv[1])
for event in run_job(run.spec(), run):
    if isinstance(event, Step) and event.step == int(sys.argv[2]) and not run.extended:
        run.extend(1)
"""
MORE_AT = 30                               # step after which a pass more is wished for
WHEN = ("getting ready", "in a step", "in a save", "in a step")


def start(run: RunFolder) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(run.path), str(MORE_AT)], cwd=ROOT, stderr=subprocess.DEVNULL,
                            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)})


def carry_out(run: RunFolder) -> Finished:
    child = start(run)
    child.wait()
    outcome = run.outcome()
    assert isinstance(outcome, Finished), outcome
    return outcome


def kill_once(run: RunFolder, when: str, dice: random.Random) -> dict:
    """One attempt that does not live to its end: {when, steps (done in it), at (the last step told), saved (the last step saved)}."""
    tail, done, at = EventTail(run, after=max((e.seq for e in run.events()), default=0)), 0, 0
    child = start(run)
    goal = 0 if when == "getting ready" else dice.randint(2, 16)

    def listen() -> None:
        nonlocal done, at
        for event in tail.poll():
            if isinstance(event, Step):
                done, at = done + 1, event.step

    while done < goal and child.poll() is None:
        listen()
        time.sleep(0.001)
    if when == "in a save":
        while child.poll() is None and not any(run.checkpoints.glob(".step-*")):
            time.sleep(0.0005)
    else:
        until = time.monotonic() + dice.random() * (8.0 if when == "getting ready" else 0.1)
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    if child.wait() != -signal.SIGKILL:
        raise SystemExit("The training ended before it could be killed: it needs more passes.")
    listen()
    torn = any(run.checkpoints.glob(".step-*"))
    return {"when": when, "steps": done, "at": at, "saved": max((e.step for e in run.events() if isinstance(e, Saved)), default=0),
            "torn": torn}


def measure(base: Path, kills: int, seed: int, folder: Path) -> dict:
    """The figures of one undisturbed and one often killed training."""
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {n} and {n + 1}?", "answer": f"It is {'really ' * (n % 4)}{2 * n + 1}."}) + "\n"
                            for n in range(80)), encoding="utf-8")
    plans = [TrainSpec(base=str(base), data=str(data), out=str(folder / name), passes=20, rows_per_step=4, precision="float32", seed=seed,
                       learning_rate=2e-3, early_stop=False, checkpoint_seconds=0.2, method_config={"r": 4, "lora_dropout": 0.1})
             for name in ("straight", "killed")]
    straight, killed = (RunFolder.create(folder / f"run of {Path(plan.out).name}", plan) for plan in plans)
    carry_out(straight)
    shutil.copy(straight.path / "precision.json", killed.path)         # measured by each run for itself; here both are to compute alike
    expected = {e.step: e.error for e in straight.events() if isinstance(e, Step)}
    dice, table = random.Random(seed), []
    for number in range(kills):
        row = kill_once(killed, WHEN[number % len(WHEN)], dice)
        table.append(row)
        print(f"{number + 1:>4}  {row['when']:<14}{row['steps']:>7}{row['at']:>7}{row['saved']:>7}  {'yes' if row['torn'] else ''}", flush=True)
    carry_out(killed)
    told = [e for e in killed.events() if isinstance(e, Step)]
    weights = [(Path(plan.out) / "adapter_model.safetensors").read_bytes() for plan in plans]
    again = RebuildSpec(adapter=plans[1].out, out=str(folder / "again"))
    rebuilt = carry_out(RunFolder.create(folder / "run of again", again)).result
    return {"kills": len(table), "steps": len(expected), "steps_taken": len(told), "repeated": len(told) - len(expected),
            "losses_equal": sum(e.error == expected[e.step] for e in told),
            "first_different": min((e.step for e in told if e.error != expected[e.step]), default=None), "file_identical": weights[0] == weights[1],
            "rebuilt_identical": rebuilt["identical"], "course": read_recipe(plans[1].out)["course"], "left_behind": [
                path.name for path in killed.checkpoints.glob(".*")], "table": table}


def main() -> None:
    """Print a line a kill, then what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, help="model folder (default: a tiny random one)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name), asked.base
        if base is None:
            from tests.support.tiny import save_base

            base = save_base(folder / "tiny")
        print(f"{'kill':>4}  {'when':<14}{'steps':>7}{'at':>7}{'saved':>7}  torn save left")
        found = measure(base, asked.kills, asked.seed, folder)
    print(f"{found['kills']} kills; {found['steps']} steps, {found['repeated']} of them repeated; {found['losses_equal']} of {found['steps_taken']} "
          f"losses bit-identical; file {'identical' if found['file_identical'] else 'NOT identical'}, "
          f"rebuilt {'identical' if found['rebuilt_identical'] else 'NOT identical'}")
    if asked.write:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        about = {"base": "tiny random Llama" if asked.base is None else base.name, "machine": machine}
        RESULTS.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")
    if not (found["file_identical"] and found["losses_equal"] == found["steps_taken"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
