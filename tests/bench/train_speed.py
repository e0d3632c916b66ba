"""Training side by side with `peft`, in one run: useful tokens per CPU second, growth of peak memory, the same losses.

    python -m tests.bench.train_speed BASE [--only ragged dense twice] [--dtype float32] [--rounds 2] [--save]
    python -m tests.bench.train_speed BASE --shape tinyllama --only ragged bare dense --steps 2 --longest 384 --dtype bfloat16
    python -m tests.bench.train_speed --table               # writes what was noted into README.md

All take steps over the same rows from the same starting adapter (LoRA, r=16, all-linear), each in a process of its own, in turn:
  studio         this engine as it trains
  peft-padded    peft as commonly run: rows in random order, the whole batch padded to its longest row
  peft-grouped   the same with rows of similar length together, as the studio groups them
  peft-single    micro-batch 1 and accumulation: no padding at all, normalised by learned tokens
  peft-packed    padding-free: the rows of a step behind one another in one sequence, kept apart by their positions
The settings of `peft` that come out fastest are its best ones. It has the fast matrix products that the studio's measurement finds, too.
Scenes: ``ragged`` rows with a long tail of lengths, each with the model's standing instruction before it as its chat template renders it, and two
fifths of the rest a question; ``bare`` the same without that instruction, which the studio computes only once for rows that stand side by side;
``dense`` rows of 256 tokens, all learned; ``twice`` is dense with gradient checkpointing. "Useful tokens" are those of the rows, without
padding. Peak memory is read from /proc: this runs on Linux.
The arithmetic limit is what a training would reach that did nothing but its linear layers' products, at the rate of the fastest one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import readme

RESULTS = Path(__file__).parent / "results" / "train_speed.json"
SCENES = {"ragged": ("studio", "peft-padded", "peft-grouped", "peft-single", "peft-packed"), "bare": ("studio", "peft-single"),
          "dense": ("studio", "peft-grouped", "peft-single"), "twice": ("studio", "peft-grouped")}
RAGGED = ("ragged", "bare")
DENSE, DENSE_ROWS, TESTED = 256, 4, 4      # tokens of a dense row, rows of its steps, held-out rows
GOALS = [                                  # scene, rival ("best": the fastest of peft's), number format, at least so fast, at most so much memory
    ("ragged", "peft-padded", None, 3.5, 0.25), ("ragged", "best", "float32", 1.15, 1.0), ("ragged", "best", "bfloat16", 1.3, 1.0),
    ("bare", "best", "float32", 1.15, 1.0), ("bare", "best", "bfloat16", 1.3, 1.0),
    ("dense", "peft-grouped", "float32", None, 0.5), ("dense", "peft-grouped", "bfloat16", 1.2, 0.5), ("twice", "peft-grouped", None, None, 0.35)]
SHAPES = {"tinyllama": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                        "num_key_value_heads": 4, "max_position_embeddings": 2048}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="folder of the model; with --shape only its tokenizer is used")
    parser.add_argument("--shape", choices=SHAPES, help="a model of this shape with random weights")
    parser.add_argument("--only", nargs="*", default=list(SCENES), choices=SCENES)
    parser.add_argument("--contenders", nargs="*", help="some of them")
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="rows of a ragged step")
    parser.add_argument("--longest", type=int, default=512, help="tokens of a ragged row at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="note the results")
    parser.add_argument("--table", action="store_true", help="write the noted results into README.md; measures nothing")
    parser.add_argument("--scene", choices=SCENES, help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        return readme.put("teaching", table())
    if not options.base:
        parser.error("which model?")
    if options.contender:
        print(json.dumps(contend(options)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as start:
        for scene in options.only:
            found[scene] = play(scene, options, start)
            show(scene, found[scene], options)
    judged = judge(found, options.dtype)
    for line in judged:
        print(line)
    if options.save:
        note(options, found, judged)


def play(scene: str, options: argparse.Namespace, start: str) -> dict[str, list[dict]]:
    """All contenders of a scene, one process each, in turn."""
    names = [name for name in SCENES[scene] if not options.contenders or name in options.contenders]
    found: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_speed", *sys.argv[1:], "--scene", scene,
                       "--contender", name, "--start", start]
            child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
            if child.returncode:
                sys.exit(child.stderr)
            found[name].append(json.loads(child.stdout.splitlines()[-1]))
            print(f"  {scene} {name}: {found[name][-1]['speed']:.0f} tok/CPU s, {found[name][-1]['growth_mb']:.0f} MB", file=sys.stderr, flush=True)
    return found


def best(runs: list[dict]) -> dict:
    """The fastest round, with the smallest peak of all."""
    return {**max(runs, key=lambda run: run["speed"]), "growth_mb": min(run["growth_mb"] for run in runs)}


def show(scene: str, found: dict[str, list[dict]], options: argparse.Namespace) -> None:
    ours = best(found["studio"])
    print(f"\n{scene}: {options.shape or Path(options.base).name}, {options.dtype}, {options.steps} steps, {ours['tokens']} useful tokens, "
          f"1 thread, load {os.getloadavg()[0]:.1f}")
    print(f"{'':14} {'useful tok/CPU s':>18} {'peak MB':>9} {'loss':>18} {'held out':>9} {'curve off':>10}   studio is")
    for name, runs in found.items():
        one = best(runs)
        off = "other order" if name == "peft-padded" else f"{max(abs(a / b - 1) for a, b in zip(one['losses'], ours['losses'])):.1e}"
        print(f"{name:14} {_speeds(runs):>18} {one['growth_mb']:9.0f} "
              f"{one['losses'][0]:8.4f} → {one['losses'][-1]:.4f} {one['held_out']:9.4f} {off:>11}"
              f"   {ours['speed'] / one['speed']:.2f} × the speed, {ours['growth_mb'] / one['growth_mb']:.2f} × the memory")


def _speeds(runs: list[dict]) -> str:
    return " ".join(f"{run['speed']:.0f}" for run in runs)


def judge(found: dict[str, dict[str, list[dict]]], dtype: str) -> list[str]:
    """One sentence for each goal that was tried."""
    lines = []
    for scene, rival, format, speed, memory in GOALS:
        if scene not in found or format not in (None, dtype):
            continue
        runs = {name: best(runs) for name, runs in found[scene].items()}
        ours = runs.pop("studio")
        name = max(runs, key=lambda n: runs[n]["speed"]) if rival == "best" and runs else rival
        if name not in runs:
            continue
        faster, smaller = ours["speed"] / runs[name]["speed"], ours["growth_mb"] / runs[name]["growth_mb"]
        held = abs(ours["held_out"] / runs[name]["held_out"] - 1)
        said = [f"{faster:.2f} × the speed" + (f" (goal {speed}: {'yes' if faster >= speed else 'NO'})" if speed else ""),
                f"{smaller:.2f} × the memory" + (f" (goal {memory}: {'yes' if smaller <= memory else 'NO'})" if memory else ""),
                f"held-out error {held:.2%} apart (goal 1 %: {'yes' if held <= 0.01 else 'NO'})"]
        lines.append(f"{scene} against {name}{' (its best)' if rival == 'best' else ''}: {', '.join(said)}")
    shares = ", ".join(f"{scene} {ours['speed'] / ours['limit']:.0%}" for scene, runs in found.items() for ours in [best(runs["studio"])])
    return [*lines, f"the studio's share of the arithmetic limit (the aim is 60 %): {shares}"]


def note(options: argparse.Namespace, found: dict, judged: list[str]) -> None:
    from tests.bench.methods import machine

    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[f"{options.shape or Path(options.base).name} {options.dtype}"] = {
        **readme.signed("tests/bench/train_speed.py"), "machine": machine(),
        "steps": options.steps, "rows": options.rows, "longest": options.longest, "goals": judged,
        "runs": {scene: {name: [{k: round(v, 4) if isinstance(v, float) else v for k, v in run.items()} for run in runs]
                         for name, runs in contenders.items()} for scene, contenders in found.items()}}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


# --- the table in README.md ---

def table() -> str:
    """What was noted, in Markdown: one line for each model, number format and scene."""
    noted = json.loads(RESULTS.read_text(encoding="utf-8"))
    contenders = list(dict.fromkeys(name for names in SCENES.values() for name in names))
    lines = [["", *contenders]]
    words = ["Useful tokens per CPU second, and growth of the peak memory."]
    for title, one in noted.items():
        for scene, runs in one["runs"].items():
            found = {name: best(rounds) for name, rounds in runs.items()}
            fastest = max(run["speed"] for run in found.values())
            cells = [f"{'**' * (run['speed'] == fastest)}{run['speed']:.0f}{'**' * (run['speed'] == fastest)}, {run['growth_mb']:,.0f} MB"
                     if (run := found.get(name)) else "" for name in contenders]
            lines.append([f"{title}, {scene}, {found['studio']['tokens']:,} tokens", *cells])
        words.append("\n".join([f"{title}, {one['machine']}, {one['date']}, commit {one['commit']}, torch {one['torch']}:\n",
                                *(f"- {goal}" for goal in one["goals"])]))
    return "\n\n".join([readme.rows(*lines), *words])


# --- one contender ---

def contend(options: argparse.Namespace) -> dict:
    """One contender's run, on fast matrix products where they are exact; the studio's under all that it trains under."""
    from engine.train.precision import choose, exact_computing, matmul_precision

    precision = choose(options.dtype)
    with exact_computing(precision) if options.contender == "studio" else matmul_precision(precision.matmul):
        return taught(options)


def taught(options: argparse.Namespace) -> dict:
    """{tokens, cpu, speed, limit, growth_mb, losses, held_out}. Reading, loading and one row to warm up are not counted."""
    import torch

    rows = examples(options)
    size = options.rows if options.scene in RAGGED else DENSE_ROWS
    learn, test = rows[:options.steps * size], rows[options.steps * size:]
    if options.contender != "peft-padded":                     # the order of the studio: similar lengths together
        learn = sorted(learn, key=lambda row: len(row.ids))
    steps = [learn[k * size:(k + 1) * size] for k in range(options.steps)]
    options.lengths = [len(row.ids) for row in learn]
    torch.manual_seed(0)
    model, backward, error = (studio if options.contender == "studio" else peft)(options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.0, fused=True)
    model.train()
    before = reset_peak_mb()
    backward(steps[0][:1])                 # warm up: buffers, kernels
    optimizer.zero_grad()
    limit = arithmetic_limit(model, options)
    clock, losses = time.process_time(), []
    for step in steps:
        losses.append(backward(step))
        optimizer.step()
        optimizer.zero_grad()
    cpu = time.process_time() - clock
    growth, tokens = max(peak_mb() - before, 1.0), sum(options.lengths)
    model.eval()
    with torch.no_grad():
        held_out = sum(error(row) for row in test) / sum(row.learned for row in test)
    return {"tokens": tokens, "cpu": cpu, "speed": tokens / cpu, "limit": limit, "growth_mb": growth, "losses": losses, "held_out": held_out}


def arithmetic_limit(model, options: argparse.Namespace) -> float:
    """Tokens per CPU second, were there nothing but products, all as fast as the fastest of a thousand rows with one of 2048 × 2048.

    A frozen weight takes part in two of them, forward and back, an adapter's in three; with checkpointing, once more in the first.
    """
    import torch

    x, W = torch.randn(1024, 2048, dtype=getattr(torch, options.dtype)), torch.randn(2048, 2048, dtype=getattr(torch, options.dtype))
    seconds = []
    with torch.no_grad():
        for _ in range(10):
            clock = time.process_time()
            torch.nn.functional.linear(x, W)
            seconds.append(time.process_time() - clock)
    layers = {id(m): m for m in model.modules() if isinstance(m, torch.nn.Linear)}.values()
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)
    operations = 2 * (2 * frozen + 3 * learned + (frozen + learned) * (options.scene == "twice"))
    return 2 * x.numel() * len(W) / min(seconds) / operations


def examples(options: argparse.Namespace) -> list:
    """Rows of the sample texts, cut to lengths with a long tail (median 150), or all alike; the last `TESTED` are held out."""
    from engine.bases.load import load_tokenizer
    from engine.data.render import IGNORED, Rendered
    from engine.store.resources import resource

    def numbers(words: str) -> list[int]:
        return [i % SHAPES[options.shape]["vocab_size"] if options.shape else i for i in tokenizer(words, add_special_tokens=False)["input_ids"]]

    tokenizer, dice, ragged = load_tokenizer(options.base), random.Random(0), options.scene in RAGGED
    tokens = numbers("\n".join(path.read_text(encoding="utf-8") for path in sorted(resource("samples").glob("s*.[cj]s*"))))
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "→"}], tokenize=False)
    opening = numbers(chat.partition("→")[0]) if options.scene == "ragged" else []
    made, at = [], 0
    for _ in range(options.steps * (options.rows if ragged else DENSE_ROWS) + TESTED):
        length = min(options.longest, max(16, round(150 * math.exp(dice.gauss(0, 0.8))))) if ragged else DENSE
        ids = [tokens[(at + k) % len(tokens)] for k in range(max(16, length - len(opening)))]
        asked = len(opening) + (round(0.4 * len(ids)) if ragged else 0)
        made.append(Rendered(opening + ids, [IGNORED] * asked + ids[asked - len(opening):], []))
        at += length
    return made


def reset_peak_mb() -> float:
    """Forget the peak of loading (Linux); returns the resident megabytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def base(options: argparse.Namespace):
    """The frozen model."""
    if not options.shape:
        from engine.bases.load import load_model

        return load_model(options.base, dtype=options.dtype)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        return LlamaForCausalLM(LlamaConfig(**SHAPES[options.shape])).eval()
    finally:
        torch.set_default_dtype(before)


def studio(options: argparse.Namespace):
    from engine import LoraConfig, get_peft_model
    from engine.train.batching import portion
    from engine.train.loss import Objective

    model = get_peft_model(base(options), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    if not (Path(options.start) / "adapter_config.json").exists():
        model.save_pretrained(options.start)
    objective = Objective(model, options.scene == "twice")
    budget = portion(options.lengths)

    def backward(rows: list) -> float:
        learned = sum(row.learned for row in rows)
        return sum(objective.backward(batch, learned) for batch in objective.batches(rows, budget)) / learned

    return model, backward, lambda row: objective.error(objective.collate([row]))


def peft(options: argparse.Namespace):
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(base(options), options.start, is_trainable=True)
    if options.scene == "twice":
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def loss(rows: list, learned: int):
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
        labels = torch.tensor([row.labels + [-100] * (longest - len(row.ids)) for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
        extra = {"attention_mask": mask} if len(rows) > 1 else {}
        return model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(learned), use_cache=False, **extra).loss

    def packed(rows: list, learned: int):
        ids = torch.tensor([[i for row in rows for i in row.ids]])
        labels = torch.tensor([[label for row in rows for label in (-100, *row.labels[1:])]])
        positions = torch.tensor([[i for row in rows for i in range(len(row.ids))]])
        return model(input_ids=ids, labels=labels, position_ids=positions, num_items_in_batch=torch.tensor(learned), use_cache=False).loss

    def backward(rows: list) -> float:
        learned, total = sum(row.learned for row in rows), 0.0
        for part in ([row] for row in rows) if options.contender == "peft-single" else [rows]:
            error = (packed if options.contender == "peft-packed" else loss)(part, learned)
            error.backward()
            total += float(error.detach())
        return total

    return model, backward, lambda row: float(loss([row], 1))


if __name__ == "__main__":
    main()
