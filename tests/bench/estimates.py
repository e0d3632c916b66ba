"""What a plan is said to cost against what it then costs: seconds and memory over a grid of models, ranks, lengths and batch sizes.

    python -m tests.bench.estimates BASE [--tokens 4000] [--only long] [--busy] [--save]
    python -m tests.bench.estimates --table           # writes what was noted into README.md

Each plan is priced in one fresh process and carried out in another, as in the studio, where the two are jobs of their own. Beside the base
given there is a model of another shape with its tokenizer and random numbers. A price is in seconds of the clock, so run it on a calm machine;
on a busy one --busy compares seconds of the processor, on one thread. Peak memory is read from /proc: this runs on Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import readme
from tests.bench.lint_corpus import ASKS, GOODS

RESULTS = Path(__file__).parent / "results" / "estimates.json"
WITHIN = 0.15                              # what is promised
LENGTHS = {"short": (1, 2), "long": (3, 24), "ragged": (1, 30)}       # sentences of an answer, from … to
RANKS, ROWS = (8, 64), (4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=4000, help="learn about so many in each run (default 4000)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--busy", action="store_true", help="seconds of the processor, on one thread")
    parser.add_argument("--save", action="store_true", help=f"note it in {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="write the noted results into README.md; measures nothing")
    parser.add_argument("--child", choices=("price", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--spec", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        return readme.put("prices", table())
    if not options.base:
        parser.error("which model?")
    if options.child:
        if options.busy:
            time.monotonic = time.process_time                 # before anything asks for it
        print(json.dumps({"price": price, "run": carry_out}[options.child](json.loads(options.spec.read_text(encoding="utf-8")))))
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = {}
        print(f"{'plan':44} {'said':>8} {'took':>8} {'off by':>7}   {'said MB':>8} {'took MB':>8} {'off by':>7}")
        for name, spec in cases(options.base, Path(folder), options.tokens):
            if options.only in name:
                measured[name] = row = compare(options, Path(folder), spec)
                print(f"{name:44} {row['said_s']:8.1f} {row['took_s']:8.1f} {off(row, 's'):+7.0%}   "
                      f"{row['said_mb']:8.0f} {row['took_mb']:8.0f} {off(row, 'mb'):+7.0%}", flush=True)
    for unit, what in (("s", "time"), ("mb", "memory")):
        found = sorted(abs(off(row, unit)) for row in measured.values())
        within, middle = sum(f <= WITHIN for f in found), found[len(found) // 2]
        print(f"{what}: {within} of {len(found)} within {WITHIN:.0%}, median {middle:.0%}, worst {found[-1]:.0%}")
    if options.save:
        from tests.bench.methods import processor

        if RESULTS.exists() and options.only:
            measured = json.loads(RESULTS.read_text(encoding="utf-8"))["plans"] | measured
        machine = f"one thread of {processor()}, its seconds" if options.busy else f"{os.cpu_count()} cores of {processor()}"
        RESULTS.write_text(json.dumps({**readme.signed("tests/bench/estimates.py"), "machine": machine, "tokens": options.tokens, "within": WITHIN,
                                       "plans": measured}, indent=1) + "\n", encoding="utf-8")


def off(row: dict, unit: str) -> float:
    return row[f"said_{unit}"] / row[f"took_{unit}"] - 1


def table() -> str:
    """What was noted, in Markdown."""
    noted = json.loads(RESULTS.read_text(encoding="utf-8"))
    plans = noted["plans"]
    lines = [[name, *(f"{row[f'{said}_{unit}']:,.0f}" for unit in ("s", "mb") for said in ("said", "took")),
              f"{off(row, 's'):+.0%}", f"{off(row, 'mb'):+.0%}"] for name, row in plans.items()]
    within = ", ".join(f"{sum(abs(off(row, unit)) <= noted['within'] for row in plans.values())} of {len(plans)} in {what}"
                       for unit, what in (("s", "time"), ("mb", "memory")))
    head = ["plan", "seconds said", "taken", "MB said", "taken", "time off by", "memory off by"]
    return (f"{readme.rows(head, *lines)}\n\nWithin {noted['within']:.0%}: {within}; {noted['machine']}, {noted['date']}, commit {noted['commit']}, "
            f"torch {noted['torch']}.")


def cases(base: Path, folder: Path, tokens: int):
    """(name, fields of a TrainSpec): the whole grid on the base given, its corners on the other model."""
    other = another_shape(base, folder / "deep-and-narrow")
    for model, length, rank, rows in itertools.product((base, other), LENGTHS, RANKS, ROWS):
        if model is other and (rank, rows) not in ((RANKS[0], ROWS[1]), (RANKS[1], ROWS[0])):
            continue
        data = examples(folder / f"{length}.jsonl", *LENGTHS[length])
        average = len(data.read_text(encoding="utf-8")) / 400 / 4.2        # so many characters are about a token
        yield f"{model.name}, {length} rows, rank {rank}, {rows} a step", {
            "base": str(model), "data": str(data), "method_config": {"r": rank}, "rows_per_step": rows, "passes": 100,
            "early_stop": False, "holdout": 0.05,
            "max_steps": max(3, round(tokens / average / rows)), "checkpoint_seconds": 20}


def examples(path: Path, fewest: int, most: int) -> Path:
    """400 rows whose answers have from ``fewest`` to ``most`` sentences, most of them few."""
    if not path.exists():
        draw = random.Random(0)
        rows = []
        for n in range(400):
            facts = [draw.choice(ASKS["en"]) for _ in range(fewest + round((most - fewest) * draw.random() ** 2))]
            told = [fact.format(**filling(draw)) for _, fact in facts]
            rows.append(json.dumps({"question": f"{n}: {facts[0][0].format(**filling(draw))}", "answer": " ".join(told)}))
        path.write_text("\n".join(rows), encoding="utf-8")
    return path


def filling(draw: random.Random) -> dict:
    return {"thing": draw.choice(GOODS["en"]), **{name: draw.randrange(1000) for name in ("n", "p", "date", "order", "isbn", "version")}}


def another_shape(base: Path, folder: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=40, num_attention_heads=8,
                                 num_key_value_heads=4, tie_word_embeddings=True)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def compare(options: argparse.Namespace, folder: Path, spec: dict) -> dict:
    """What is said and what it took, each from a process of its own."""
    found = {}
    for child in ("price", "run"):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            plan = Path(out) / "spec.json"
            plan.write_text(json.dumps({**spec, "out": str(Path(out) / "adapter")}), encoding="utf-8")
            command = [sys.executable, "-W", "ignore", "-m", "tests.bench.estimates", str(options.base), "--child", child, "--spec", str(plan)]
            done = subprocess.run([*command, *["--busy"] * options.busy], capture_output=True, text=True, check=False,
                                  env={**os.environ, **({"OMP_NUM_THREADS": "1"} if options.busy else {})})
        if done.returncode:
            sys.exit(done.stderr)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def price(fields: dict) -> dict:
    from engine.specs import TrainSpec
    from engine.train.estimate import estimate

    report = estimate(TrainSpec(**fields))
    return {"said_s": report.seconds, "said_error_s": report.seconds_error, "said_mb": report.memory_mb}


def carry_out(fields: dict) -> dict:
    from engine.events import Finished, Progress
    from engine.specs import TrainSpec
    from engine.store.runs import RunFolder
    from engine.train.loop import memory_mb, train

    begun, before, steps = time.monotonic(), 0.0, 0
    for event in train(TrainSpec(**fields), RunFolder(Path(fields["out"]).parent / "run")):
        if isinstance(event, Progress) and event.stage == "Loading the model":      # the process and the examples are there
            before = memory_mb()
        elif isinstance(event, Finished):
            steps = event.result["steps"]
    highest = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return {"took_s": time.monotonic() - begun, "took_mb": highest - before, "steps": steps}


if __name__ == "__main__":
    main()
