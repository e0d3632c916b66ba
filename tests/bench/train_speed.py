"""Training side by side with `peft`, in one run: useful tokens per CPU second, growth of peak memory, the same losses.

    python -m tests.bench.train_speed BASE DATA [--dtype bfloat16] [--steps 8] [--rows 8] [--rounds 2]

Four contenders take the same steps over the same rows from the same starting adapter, each in a process of its own, in turn:
  studio       this engine as it trains
  peft-single  peft with micro-batch 1 and accumulation: no padding at all, normalised by learned tokens
  peft-packed  peft padding-free: the rows of a step behind one another in one sequence, kept apart by their positions
  peft-padded  peft as commonly run: the whole batch padded to its longest row
Peak memory is read from /proc, so this runs on Linux. "Useful tokens" are those of the rows, without padding;
what is computed once for several rows counts as often as it is used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTENDERS = ("studio", "studio-twice", "peft-single", "peft-packed", "peft-padded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("data")
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"))
    parser.add_argument("--dense", type=int, default=0, help="all rows of this length, every token learned, instead of the data's own")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(contend(options)))
        return
    found: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as start:
        for _ in range(options.rounds):
            for name in CONTENDERS:
                command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_speed", *sys.argv[1:],
                           "--contender", name, "--start", start]
                child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
                if child.returncode:
                    sys.exit(child.stderr)
                found[name].append(json.loads(child.stdout.splitlines()[-1]))
    tokens, load = found["studio"][0]["tokens"], os.getloadavg()[0]
    print(f"{options.dtype}, {options.steps} steps of {options.rows} rows, {tokens} useful tokens, 1 thread, load {load:.1f}")
    print(f"{'':12} {'useful tok/CPU s':>24} {'peak growth MB':>16} {'loss first → last':>22}   studio is")
    best = {name: max(run["tokens"] / run["cpu"] for run in runs) for name, runs in found.items()}
    memory = {name: min(run["growth_mb"] for run in runs) for name, runs in found.items()}
    for name, runs in found.items():
        speeds = " ".join(f"{run['tokens'] / run['cpu']:.0f}" for run in runs)
        losses = runs[0]["losses"]
        print(f"{name:12} {speeds:>24} {memory[name]:16.0f} {losses[0]:13.4f} → {losses[-1]:.4f}   "
              f"{best['studio'] / best[name]:.2f} × the speed, {memory['studio'] / memory[name]:.2f} × the memory")


def contend(options: argparse.Namespace) -> dict:
    """One contender's run: {tokens, cpu, growth_mb, losses}. Reading, loading and one step to warm up are not counted."""
    import torch

    from engine.data.render import Rendered
    from engine.specs import TrainSpec
    from engine.train.batching import Schedule
    from engine.train.prepare import read_material

    spec = TrainSpec(base=options.base, data=options.data, out="-", rows_per_step=options.rows, passes=100, method_config={"r": 16})
    rows = read_material(spec).learn
    if options.dense:
        text = [token for row in rows for token in row.ids]
        rows = [Rendered(ids := (text * options.dense)[k * options.dense:(k + 1) * options.dense], ids, []) for k in range(4 * options.rows)]
    options.lengths = [len(row.ids) for row in rows]
    schedule = Schedule([len(row.ids) for row in rows], options.rows, spec.passes, 0)
    steps = [[rows[i] for i in schedule[k]] for k in range(options.steps)]
    torch.manual_seed(0)
    model, backward = (studio if options.contender.startswith("studio") else peft)(spec, options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.0, fused=True)
    model.train()
    before = reset_peak_mb()
    backward(steps[0][:1])                 # warm up: buffers, kernels
    optimizer.zero_grad()
    clock, losses = time.process_time(), []
    for step in steps:
        losses.append(backward(step))
        optimizer.step()
        optimizer.zero_grad()
    cpu = time.process_time() - clock
    return {"tokens": sum(len(row.ids) for step in steps for row in step), "cpu": cpu,
            "growth_mb": max(peak_mb() - before, 1.0), "losses": losses}


def reset_peak_mb() -> float:
    """Forget the peak of loading (Linux); returns the resident megabytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def studio(spec, options):
    from engine import LoraConfig, get_peft_model
    from engine.bases.load import load_model
    from engine.train.batching import common_prefix, micro_batches, portion
    from engine.train.loss import Objective
    from engine.train.precision import choose, matmul_precision

    chosen = choose(options.dtype)
    matmul_precision(chosen.matmul).__enter__()
    model = get_peft_model(load_model(options.base, dtype=options.dtype),
                           LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    if not (Path(options.start) / "adapter_config.json").exists():
        model.save_pretrained(options.start)
    objective = Objective(model, options.contender == "studio-twice")
    budget = portion(options.lengths)

    def backward(rows: list) -> float:
        learned = sum(row.learned for row in rows)
        shared = common_prefix(rows) if objective.side_by_side else 0
        parts = micro_batches([len(row.ids) for row in rows], budget, shared)
        return sum(objective.backward(objective.collate([rows[i] for i in part]), learned) for part in parts) / learned

    return model, backward


def peft(spec, options):
    import torch
    from peft import PeftModel

    from engine.bases.load import load_model
    from engine.train.precision import choose, matmul_precision

    matmul_precision(choose(options.dtype).matmul).__enter__()                # the rival may have the fast float32 products too
    model = PeftModel.from_pretrained(load_model(options.base, dtype=options.dtype), options.start, is_trainable=True)

    def portion(rows: list, learned: int) -> float:
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
        labels = torch.tensor([row.labels + [-100] * (longest - len(row.ids)) for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
        extra = {"attention_mask": mask} if len(rows) > 1 else {}
        loss = model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(learned), use_cache=False, **extra).loss
        loss.backward()
        return float(loss.detach())

    def packed(rows: list, learned: int) -> float:
        ids = torch.tensor([[i for row in rows for i in row.ids]])
        labels = torch.tensor([[label for row in rows for label in (-100, *row.labels[1:])]])
        positions = torch.tensor([[i for row in rows for i in range(len(row.ids))]])
        loss = model(input_ids=ids, labels=labels, position_ids=positions, num_items_in_batch=torch.tensor(learned), use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    def backward(rows: list) -> float:
        learned = sum(row.learned for row in rows)
        if options.contender == "peft-single":
            return sum(portion([row], learned) for row in rows)
        return (packed if options.contender == "peft-packed" else portion)(rows, learned)

    return model, backward


if __name__ == "__main__":
    main()
