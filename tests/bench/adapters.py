"""Handling adapters: ours and `peft` side by side in one run, ratios printed. Run: ``python -m tests.bench.adapters MODEL_FOLDER``.

CPU seconds (process time) unless said; each measure is the median of several rounds in which the two take turns.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORTS = ("import time; import torch, transformers, transformers.models.llama.modeling_llama; t = time.process_time(); {}; "
           "print(time.process_time() - t)")


def cpu(work) -> float:
    """CPU seconds of one call."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(ours, theirs, rounds: int) -> tuple[float, float]:
    """Medians of both, measured in turn so that a drifting machine hits them alike."""
    pairs = [(cpu(ours), cpu(theirs)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def row(name: str, ours: float, theirs: float, unit: str = "s") -> None:
    print(f"{name:<46} ours {ours:10.4f} {unit:<3} peft {theirs:10.4f} {unit:<3} peft/ours {theirs / max(ours, 1e-9):8.1f}×", flush=True)


def imports() -> None:
    def seconds(statement: str) -> float:
        runs = [subprocess.run([sys.executable, "-c", IMPORTS.format(statement)], capture_output=True, text=True, check=True) for _ in range(3)]
        return statistics.median(float(r.stdout) for r in runs)

    row("import beyond torch + transformers (CPU)", seconds("from engine import PeftModel, LoraConfig, get_peft_model"), seconds("import peft"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a causal language model")
    parser.add_argument("--adapters", type=int, default=80)
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS), default=sorted(PARTS), help="parts to run")
    args = parser.parse_args()
    for name in args.only:
        PARTS[name](args)


# --- parts --------------------------------------------------------------------------------------

def loaded(path: Path, dtype: str = "float32"):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()


def saved_adapter(path: Path, folder: str, **settings) -> str:
    """A LoRA r=16 on all linear layers (or what ``settings`` say) that is quietly heard, in ``folder``."""
    import torch

    import engine

    torch.manual_seed(0)
    config = settings.pop("config", "LoraConfig")
    made = engine.get_peft_model(loaded(path), getattr(engine, config)(**{
        "r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM",
        ("init_lora_weights" if config == "LoraConfig" else "init_weights"): False, **settings}))
    for p in made.parameters():
        if p.requires_grad:
            p.mul_(0.1)
    made.save_pretrained(folder)
    return folder


def handling(args) -> None:
    """Loading, switching, running."""
    import peft
    import torch

    import engine

    with tempfile.TemporaryDirectory() as folder:
        saved_adapter(args.model, folder)
        ours, theirs = (package.PeftModel.from_pretrained(loaded(args.model), folder, "a0") for package in (engine, peft))
        for i in range(1, args.adapters):
            a = cpu(lambda: ours.load_adapter(folder, f"a{i}"))            # noqa: B023
            b = cpu(lambda: theirs.load_adapter(folder, f"a{i}"))          # noqa: B023
            if i + 1 in (2, 10, 50, args.adapters):
                row(f"load adapter number {i + 1}", a, b)
        names = list(ours.peft_config)

        def switch(model):
            def work():
                for name in names[:4]:
                    model.set_adapter(name)
            return work

        a, b = turns(switch(ours), switch(theirs), 3)
        row(f"switch among {args.adapters} (ms)", a * 250, b * 250, "ms")
        for name in names[8:]:             # what follows is not to be measured beside 80 adapters' worth of memory traffic
            ours.delete_adapter(name), theirs.delete_adapter(name)

        base = loaded(args.model)
        prompt, token, batch = (torch.randint(0, 2000, shape) for shape in ((1, 512), (1, 1), (8, 1)))
        for active in (1, 8):
            ours.set_adapter(names[:active])
            theirs.base_model.set_adapter(names[:active])
            difference = (ours(prompt[:, :64]).logits - theirs(prompt[:, :64]).logits).abs().max().item()
            print(f"  {active} active: greatest difference of the logits {difference:.1e}")
            over_base(f"prefill 512, {active} active", base, ours, theirs, prompt, rounds=5)
            over_base(f"one token, {active} active", base, ours, theirs, token, rounds=60)
        over_base("one token each of a mixed batch of 8", base, ours, theirs, batch, rounds=40, adapter_names=names[:8])


def over_base(label: str, base, ours, theirs, ids, rounds: int, **more) -> None:
    runs = {"base": [], "ours": [], "peft": []}
    for _ in range(rounds):
        for who, model in (("base", base), ("ours", ours), ("peft", theirs)):
            extra = {} if who == "base" else more
            runs[who].append(cpu(lambda: model(input_ids=ids, use_cache=False, **extra)))   # noqa: B023
    m = {who: statistics.median(times) for who, times in runs.items()}
    print(f"{label}, over the base".ljust(46) + f" ours {m['ours'] / m['base']:10.2f} ×   peft {m['peft'] / m['base']:10.2f} ×", flush=True)


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
            over_base(f"one token, {label}", base, ours, theirs, token, rounds=8)
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

    row("a second adapter on 3,200 linear layers", second(engine), second(peft))


def weighted(args) -> None:
    """`add_weighted_adapter` by SVD, and what merging ten times leaves of a bf16 base."""
    import peft
    import torch

    import engine

    with tempfile.TemporaryDirectory() as folder:
        saved_adapter(args.model, folder)
        pair = [package.PeftModel.from_pretrained(loaded(args.model), folder, "a") for package in (engine, peft)]
        seconds = []
        for model in pair:
            model.load_adapter(folder, "b")
            seconds.append(cpu(lambda: model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "c", "svd", svd_rank=16)))     # noqa: B023
            model.set_adapter("c")
        row("add_weighted_adapter, svd, two adapters", *seconds)
        ids = torch.randint(0, 2000, (1, 32))
        print(f"  greatest difference of the logits {(pair[0](ids).logits - pair[1](ids).logits).abs().max():.1e}")
        del pair, model
        for who, package in (("ours", engine), ("peft", peft)):
            model = package.PeftModel.from_pretrained(loaded(args.model, "bfloat16"), folder)
            before = {n: p.clone() for n, p in model.named_parameters() if "lora_" not in n}
            for _ in range(10):
                model.merge_adapter()
                model.unmerge_adapter()
            after = dict(model.named_parameters())
            touched = {n: (after[n] != t).float().mean().item() for n, t in before.items() if "base_layer.weight" in n}
            print(f"bf16 weights changed by ten merges and unmerges  {who} {100 * sum(touched.values()) / len(touched):6.2f} %", flush=True)


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
        row("memory of a bf16 adapter, file sizes", *sizes, unit="×")


PARTS = {"imports": lambda args: imports(), "handling": handling, "kinds": kinds, "wide": wide, "weighted": weighted, "memory": memory}


if __name__ == "__main__":
    main()
