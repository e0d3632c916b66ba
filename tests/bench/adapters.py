"""Handling adapters: ours and `peft` side by side in one run, each number with its ratio and the goal.

    python -m tests.bench.adapters MODEL                    # all; MODEL is the folder of a causal language model
    python -m tests.bench.adapters MODEL --only wide        # some
    python -m tests.bench.adapters MODEL --save             # … and note all in tests/bench/results/adapters.json
    python -m tests.bench.adapters --table                  # writes the table into README.md from there

CPU seconds (process time) of one thread unless said; each measure is a median of short rounds in which all take turns, so that a busy machine
hits them alike. Before anything else nine tenths of the free memory are touched once: a virtual machine is only given its own at the first
touch, which whoever happens to come first would pay for.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path

from tests.bench import readme
from tests.bench.methods import machine

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "adapters.json"
BEFORE = {"torch + transformers": "import torch, transformers",
          "the model's own code as well": "import torch, transformers, transformers.models.llama.modeling_llama"}
STATEMENT = "from {} import PeftModel, LoraConfig, get_peft_model"
SAID = 128                                 # tokens of a chat before the one that is decoded
FOUND: list[dict] = []                     # the lines of this run


def cpu(work) -> float:
    """CPU seconds of one call."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(ours, theirs, rounds: int) -> tuple[float, float]:
    """Medians of both, measured in turn so that a drifting machine hits them alike."""
    return medians([(cpu(ours), cpu(theirs)) for _ in range(rounds)])


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """That of ours and that of peft's."""
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def row(name: str, ours: float, theirs: float, unit: str = "s", goal: float | None = None) -> None:
    """Less is better; ``goal``: how many times less than peft it is to be."""
    note({"measure": name, "ours": ours, "peft": theirs, "unit": unit, "times_less": goal})


def ratio(name: str, ours: float, theirs: float | None, goal: float, unit: str = "×") -> None:
    """A measure that has its own unit and an upper bound; ``theirs`` is None where it says how far ours is from peft's."""
    note({"measure": name, "ours": ours, "peft": theirs, "unit": unit, "at_most": goal})


def note(line: dict) -> None:
    FOUND.append(line)
    print("{:<52} ours {:>10}   peft {:>10}   peft/ours {:>8}   goal {}".format(*cells(line)), flush=True)


def cells(line: dict) -> list[str]:
    """Measure, ours, peft's, how many times less, goal (and if it was missed)."""
    ours, theirs, unit = line["ours"], line["peft"], line["unit"]
    less = None if theirs is None or unit == "%" else theirs / max(ours, 1e-9)
    bound, times = line.get("at_most"), line.get("times_less")
    goal = f"≤ {bound:g} {unit}".strip() if bound is not None else f"{times:g} × less" if times else ""
    missed = bound is not None and ours > bound or times is not None and less < times
    return [line["measure"], *("" if v is None else f"{v:.3g} {unit}".strip() for v in (ours, theirs)),
            "" if less is None else f"{less:,.0f} ×" if less >= 100 else f"{less:.3g} ×", goal + ", missed" * missed]


def imports(args) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}     # peft has its bytecode; ours shall be kept, too

    def seconds(before: str, package: str) -> float:
        code = f"import time; {before}; t = time.process_time(); {STATEMENT.format(package)}; print(time.process_time() - t)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        return float(run.stdout)

    seconds(BEFORE["torch + transformers"], "engine")          # writes the bytecode
    for name, before in BEFORE.items():
        row(f"import beyond {name}", *(min(seconds(before, package) for _ in range(2)) for package in ("engine", "peft")), goal=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a causal language model")
    parser.add_argument("--adapters", type=int, default=80)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--save", action="store_true", help="note the results; all parts, for they are to be of one run")
    parser.add_argument("--table", action="store_true", help="write the table into README.md; measures nothing")
    args = parser.parse_args()
    if args.table:
        return readme.put("adapters", table())
    if args.model is None or args.save and args.only != list(PARTS):
        parser.error("Name the model's folder, and note only a run of all parts.")
    import psutil
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    torch.ones(psutil.virtual_memory().available * 9 // 10, dtype=torch.uint8)
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    start = time.monotonic()
    for name in args.only:
        PARTS[name](args)
    print(f"{time.monotonic() - start:.0f} seconds by the clock")
    if args.save:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        RESULTS.write_text(json.dumps({
            "date": datetime.date.today().isoformat(), "machine": machine(), "commit": commit, "model": args.model.name,
            "torch": metadata.version("torch"), "peft": metadata.version("peft"), "lines": FOUND}, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8")


# --- the table in README.md ---------------------------------------------------------------------

def table() -> str:
    """What was noted, in Markdown."""
    noted = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = ["measure", "ours", "peft", "peft / ours", "goal"], *(cells(line) for line in noted["lines"])
    where = "One run at commit {commit}: {model}, {machine}, {date}, torch {torch}, peft {peft}.".format(**noted)
    return f"{readme.rows(*lines)}\n\n{where}"


# --- parts --------------------------------------------------------------------------------------

def loaded(path: Path, dtype: str = "float32"):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()


def saved_adapter(path: Path, folder: str, seed: int = 0, **settings) -> str:
    """A LoRA r=16 on all linear layers (or what ``settings`` say) that is quietly heard, in ``folder``."""
    import torch

    import engine

    torch.manual_seed(seed)
    config = settings.pop("config", "LoraConfig")
    made = engine.get_peft_model(loaded(path), getattr(engine, config)(**{
        "r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM",
        ("init_lora_weights" if config == "LoraConfig" else "init_weights"): False, **settings}))
    for p in made.parameters():
        if p.requires_grad:
            p.mul_(0.1)
    made.save_pretrained(folder)
    return folder


def loads(ours, theirs, folder: str, number: int) -> tuple[float, float]:
    """CPU seconds of each for the adapter of this number."""
    return cpu(lambda: ours.load_adapter(folder, f"a{number - 1}")), cpu(lambda: theirs.load_adapter(folder, f"a{number - 1}"))


def handling(args) -> None:
    """Loading, switching, running."""
    import peft
    import torch

    import engine

    second: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        saved_adapter(args.model, folder)
        for _ in range(7):                 # the second adapter there is only once a model; the last pair goes on
            ours, theirs = (package.PeftModel.from_pretrained(loaded(args.model), folder, "a0") for package in (engine, peft))
            second.append(loads(ours, theirs, folder, 2))
        row("load adapter number 2, the first of all in a process", *second[0])
        costs = {2: medians(second)} | {number: loads(ours, theirs, folder, number) for number in range(3, args.adapters + 1)}
        for number in (2, 10, 50, args.adapters):              # beside its neighbours: a single one may meet a machine that is busy elsewhere
            near = [costs[n] for n in (number - 1, number, number + 1) if number > 2 and n in costs] or [costs[number]]
            row(f"load adapter number {number}", *medians(near), goal={2: 10, 50: 75}.get(number))
        names = list(ours.peft_config)

        def switch(model):
            def work():
                for name in names[:4]:
                    model.set_adapter(name)
            return work

        a, b = turns(switch(ours), switch(theirs), 3)
        ratio(f"switch with {args.adapters} loaded", a * 250, b * 250, goal=1, unit="ms")
        for name in names[8:]:             # what follows is not to be measured beside 80 adapters' worth of memory traffic
            ours.delete_adapter(name), theirs.delete_adapter(name)

        base = loaded(args.model)
        prompt, token, batch = (torch.randint(0, 2000, shape) for shape in ((1, 512), (1, 1), (8, 1)))
        for active in (1, 8):
            ours.set_adapter(names[:active])
            theirs.base_model.set_adapter(names[:active])
            difference = (ours(prompt[:, :64]).logits - theirs(prompt[:, :64]).logits).abs().max().item()
            ratio(f"greatest difference of the logits from peft's, {active} active", difference, None, goal=1e-3, unit="")
            over_base(f"prefill 512, {active} active", base, ours, theirs, prompt, rounds=4, goal=1.1 if active == 1 else 1.45)
            over_base(f"one token, {active} active", base, ours, theirs, token, rounds=60, goal=1.08 if active == 1 else 1.35, behind=SAID)
        over_base("one token each of a mixed batch of 8", base, ours, theirs, batch, rounds=60, goal=1.15, behind=SAID, adapter_names=names[:8])


def over_base(label: str, base, ours, theirs, ids, rounds: int, goal: float, behind: int = 0, **more) -> None:
    """How much longer than the base alone; medians of the rounds' own ratios, after one call that is not counted. Each begins a round in turn.

    ``behind``: tokens before these, which each model has read and keeps in its cache, as when it speaks.
    """
    import torch

    from engine.model.prompt_learning import cache_name

    said = torch.randint(0, 2000, (len(ids), behind))
    name = cache_name(base)
    models = [(who, model, extra, model(input_ids=said, use_cache=True, **extra)[name] if behind else None)
              for who, model, extra in (("base", base, {}), ("ours", ours, more), ("peft", theirs, more))]
    runs: dict[str, list[float]] = {who: [] for who, *_ in models}
    for number in range(rounds + 1):
        for who, model, extra, cache in models:
            start = time.process_time()
            model(input_ids=ids, use_cache=cache is not None, **{name: cache}, **extra)
            runs[who] += [time.process_time() - start] if number else []
            if cache is not None:
                cache.crop(-ids.shape[1])
        models.append(models.pop(0))
    medians = (statistics.median(t / b for t, b in zip(runs[who], runs["base"])) for who in ("ours", "peft"))
    ratio(f"{label}, over the base", *medians, goal=goal)


def kinds(args) -> None:
    """One token through one adapter of kinds that need the base or a dense matrix."""
    import peft
    import torch

    import engine

    token, base = torch.randint(0, 2000, (1, 1)), loaded(args.model)
    for label, settings in (("DoRA", {"use_dora": True}), ("LoHa", {"config": "LoHaConfig"})):
        with tempfile.TemporaryDirectory() as folder:
            saved_adapter(args.model, folder, **settings)
            ours, theirs = (package.PeftModel.from_pretrained(loaded(args.model), folder) for package in (engine, peft))
            over_base(f"one token, {label}", base, ours, theirs, token, rounds=12, goal=1.5, behind=SAID)
        del ours, theirs


def wide(args) -> None:
    """A second adapter on a model of 3,200 linear layers."""
    import peft
    from torch import nn

    import engine

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.ModuleDict({n: nn.Linear(16, 16) for n in ("gate", "up", "down", "out")}) for _ in range(25))

    def model():
        return nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(32))})

    def second(package):
        targets = {"target_modules": ["gate", "up", "down", "out"]}
        adapted = package.get_peft_model(model(), package.LoraConfig(**targets), "a")
        return cpu(lambda: adapted.add_adapter("b", package.LoraConfig(**targets)))

    row("a second adapter on 3,200 linear layers", statistics.median(second(engine) for _ in range(3)), second(peft), goal=50)


def weighted(args) -> None:
    """`add_weighted_adapter` by SVD, and what merging ten times leaves of a bf16 base."""
    import peft
    import torch

    import engine

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        saved_adapter(args.model, folder)
        saved_adapter(args.model, other, seed=1)
        pair = [package.PeftModel.from_pretrained(loaded(args.model), folder, "a") for package in (engine, peft)]
        seconds = []
        for model in pair:
            model.load_adapter(other, "b")
            seconds.append(cpu(lambda: model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "c", "svd", svd_rank=16)))     # noqa: B023
            model.set_adapter("c")
        row("add_weighted_adapter, svd, two adapters", *seconds, goal=100)
        ids = torch.randint(0, 2000, (1, 32))
        ratio("… greatest difference of the logits from peft's", (pair[0](ids).logits - pair[1](ids).logits).abs().max().item(), None, 1e-3, "")
        ratio("… greatest difference of ΔW, as a share of the largest", _difference(*pair), None, 1e-4, "")
        del pair, model
        changed = []
        for package in (engine, peft):
            model = package.PeftModel.from_pretrained(loaded(args.model, "bfloat16"), folder)
            before = {n: p.clone() for n, p in model.named_parameters() if "base_layer.weight" in n}
            for _ in range(10):
                model.merge_adapter()
                model.unmerge_adapter()
            after = dict(model.named_parameters())
            changed.append(statistics.mean(100 * (after[n] != t).float().mean().item() for n, t in before.items()))
        ratio("bf16 weights changed by ten merges and unmerges", *changed, goal=0, unit="%")


def _difference(ours, theirs) -> float:
    """Between both packages' adapter “c”: the greatest difference of a ΔW, by the largest value of that ΔW."""
    def delta(layer):
        return layer.lora_B["c"].weight @ layer.lora_A["c"].weight

    others = {path: module for path, module in theirs.base_model.model.named_modules() if "c" in getattr(module, "lora_A", {})}
    return max(float((delta(layer) - delta(others[path]) * others[path].scaling["c"]).abs().max() / delta(layer).abs().max())
               for path, layer in ours.adapted.items())


def memory(args) -> None:
    """What a bf16 adapter file costs in memory, as a multiple of its size; each measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        import torch
        from safetensors.torch import load_file, save_file

        saved_adapter(args.model, folder)
        file = Path(folder, "adapter_model.safetensors")
        save_file({k: t.to(torch.bfloat16) for k, t in load_file(file).items()}, file, metadata={"format": "pt"})
        code = ("import sys, psutil, gc, {0}; from tests.bench.adapters import loaded; from pathlib import Path\n"
                "m = {0}.PeftModel.from_pretrained(loaded(Path(sys.argv[1]), 'bfloat16'), sys.argv[2], 'a0')\n"
                "size = lambda: sum(p.numel() * p.element_size() for p in m.parameters())\n"
                "before = size(); m.load_adapter(sys.argv[2], 'a1'); print(size() - before)")
        sizes = [int(subprocess.run([sys.executable, "-c", code.format(package), str(args.model), folder], capture_output=True, text=True,
                                    check=True).stdout) / file.stat().st_size for package in ("engine", "peft")]
        ratio("memory of a bf16 adapter, in sizes of its file", *sizes, goal=1.05)


PARTS = {"imports": imports, "handling": handling, "kinds": kinds, "wide": wide, "weighted": weighted, "memory": memory}


if __name__ == "__main__":
    main()
