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
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    imports()

    import peft
    import torch
    from transformers import AutoModelForCausalLM

    import engine

    torch.set_grad_enabled(False)
    load = lambda: AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()  # noqa: E731
    vocab = 2000
    with tempfile.TemporaryDirectory() as folder:
        first = engine.get_peft_model(load(), engine.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
        for p in first.parameters():
            if p.requires_grad:
                p.mul_(0.1)
        first.save_pretrained(folder)
        del first
        ours, theirs = engine.PeftModel.from_pretrained(load(), folder, "a0"), peft.PeftModel.from_pretrained(load(), folder, "a0")
        base = load()
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

        prompt, token = torch.randint(0, vocab, (1, 512)), torch.randint(0, vocab, (1, 1))
        for active in (1, 8):
            if active > args.adapters:
                break
            chosen = names[:active]
            ours.set_adapter(chosen)
            theirs.base_model.set_adapter(chosen)
            difference = (ours(prompt[:, :64]).logits - theirs(prompt[:, :64]).logits).abs().max().item()
            print(f"  {active} active: greatest difference of the logits {difference:.1e}")
            for label, ids, rounds in (("prefill 512", prompt, 5), ("one token", token, 40)):
                runs = {"base": [], "ours": [], "peft": []}
                for _ in range(rounds):
                    for who, model in (("base", base), ("ours", ours), ("peft", theirs)):
                        runs[who].append(cpu(lambda: model(ids, use_cache=False)))   # noqa: B023
                m = {who: statistics.median(times) for who, times in runs.items()}
                print(f"{label}, {active} active, over the base".ljust(46)
                      + f" ours {m['ours'] / m['base']:10.2f} ×   peft {m['peft'] / m['base']:10.2f} ×",
                      flush=True)


if __name__ == "__main__":
    main()
