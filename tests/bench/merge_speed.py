"""Side by side: baking one adapter into a base with the engine (streaming) and with `peft` (load, merge_and_unload, save_pretrained).

    python tests/bench/merge_speed.py MODEL_FOLDER [--rounds 3] [--adapter FOLDER]

Each run is a fresh process; the two take turns. Printed: CPU seconds and wall seconds of the work (imports are not counted), and
the anonymous memory that the work added at its peak (file pages that are merely mapped do not count: the system can drop them).
Then it compares both results tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def anonymous_mb() -> float:
    """Private memory of this process without mapped files, in MB (Linux; elsewhere the resident size)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import psutil

    return psutil.Process().memory_info().rss / 1e6


class Peak(threading.Thread):
    """Watches the memory every 5 ms while inside."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stop, self.before, self.most = threading.Event(), anonymous_mb(), 0.0

    def run(self) -> None:
        while not self.stop.wait(0.005):
            self.most = max(self.most, anonymous_mb() - self.before)


def import_architecture(model: Path) -> None:
    """transformers imports a model's module when it is first needed: for both sides alike that is an import, not work."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(model))]


def merge_engine(model: Path, adapter: Path, out: Path):
    from engine.merge.plan import plan_merge
    from engine.merge.stream import merge_into
    from engine.specs import StackEntry
    from engine.store.atomic import replacing_folder
    from engine.store.library import read_model

    import_architecture(model)

    def work() -> None:
        plan = plan_merge(read_model(model), [StackEntry(str(adapter))])
        with replacing_folder(out) as folder:
            for _ in merge_into(folder, plan):
                pass

    return work


def merge_peft(model: Path, adapter: Path, out: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import_architecture(model)

    def work() -> None:
        base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
        merged.save_pretrained(out)
        AutoTokenizer.from_pretrained(model).save_pretrained(out)
        for file in out.iterdir():         # the engine's files are on the disk when it returns; so must these be
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())

    return work


def copy_only(model: Path, adapter: Path, out: Path):
    """The floor: copy the files and sync."""
    def work() -> None:
        out.mkdir()
        for file in model.iterdir():
            shutil.copyfile(file, out / file.name)
            with open(out / file.name, "rb+") as handle:
                os.fsync(handle.fileno())

    return work


KINDS = {"copy": copy_only, "engine": merge_engine, "peft": merge_peft}


def child(kind: str, model: Path, adapter: Path, out: Path) -> None:
    work = KINDS[kind](model, adapter, out)
    watch = Peak()
    watch.start()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    watch.stop.set()
    watch.join()
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": watch.most}))


def compare(a: Path, b: Path) -> str:
    import torch
    from safetensors.torch import load_file

    def everything(folder: Path) -> dict:
        return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}

    ours, theirs = everything(a), everything(b)
    both = sorted(ours.keys() & theirs.keys())
    differing = sum(int((ours[n] != theirs[n]).sum()) for n in both)
    worst = max(float(((ours[n].float() - theirs[n].float()).abs() / theirs[n].float().abs().clamp_min(1e-3)).max()) for n in both)
    total = sum(ours[n].numel() for n in both)
    return (f"{len(both)} of {len(ours)} / {len(theirs)} tensors have the same name; {differing} of {total} elements differ "
            f"({differing / total:.1e}), at most by {worst:.1e} of their value; torch {torch.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.child:
        return child(args.child[0], args.model, args.adapter, Path(args.child[1]))
    from tests.support.adapters import make_adapter

    with tempfile.TemporaryDirectory(dir=args.model.resolve().parent) as scratch_name:
        scratch = Path(scratch_name)
        adapter = args.adapter or make_adapter(scratch / "adapter", args.model, 1, loud=0.02, r=16, lora_alpha=32)
        found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        for number in range(args.rounds):
            for kind in KINDS:
                out = scratch / kind
                shutil.rmtree(out, ignore_errors=True)
                told = subprocess.run([sys.executable, __file__, str(args.model), "--adapter", str(adapter), "--child", kind, str(out)],
                                      capture_output=True, text=True, check=True, env=environment)
                found[kind].append(json.loads(told.stdout.splitlines()[-1]))
                print(f"round {number + 1} {kind:7} " + "  ".join(f"{k} {v:.2f}" for k, v in found[kind][-1].items()), flush=True)
        print(f"\n{'median of ' + str(args.rounds):14}{'CPU s':>9}{'wall s':>9}{'added MB':>10}")
        middle = {kind: {key: statistics.median(run[key] for run in runs) for key in ("cpu", "wall", "peak")} for kind, runs in found.items()}
        for kind, row in middle.items():
            print(f"{kind:14}{row['cpu']:9.2f}{row['wall']:9.2f}{row['peak']:10.1f}")
        print("engine / peft " + "".join(f"{middle['engine'][k] / max(middle['peft'][k], 1e-9):9.2f}" for k in ("cpu", "wall", "peak")))
        print("engine / copy " + "".join(f"{middle['engine'][k] / max(middle['copy'][k], 1e-9):9.2f}" for k in ("cpu", "wall")))
        print(compare(scratch / "engine", scratch / "peft"))


if __name__ == "__main__":
    main()
