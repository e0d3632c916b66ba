"""Each method against `peft` on the same work: two linear layers (576 → 576 → 1536), one token, 128 tokens, a training step of 4 × 64.
What needs a whole model (prompts, shadows, aLoRA, routers of finished LoRAs) on a Llama of two blocks, 256 wide.

    python -m tests.bench.methods                     # all, and how much faster or slower
    python -m tests.bench.methods --only LORA OFT     # some
    python -m tests.bench.methods --save              # … and note it in tests/bench/results/methods.json
    python -m tests.bench.methods --table             # writes the table of methods into README.md

CPU time of one thread. The two take turns in short rounds, so that a busy machine hits both alike, and each is built first half of the time,
as where its weights lie in memory is worth some hundredths; what is printed is the median, over the rounds, of PEFT's time divided by ours.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

RESULTS = Path(__file__).parent / "results" / "methods.json"
WORK = ("token", "128 tokens", "training step")
Widths = tuple[int, int, int]              # of what the first layer gets, of what it gives to the second, and of what that gives
WIDTHS: Widths = (576, 576, 1536)
WIDE: Widths = (2048, 2048, 5632)          # as in a model of 1.1 B
BUILDS_DENSE = {"BOFT", "SHIRA", "HIRA", "FOURIERFT", "WAVEFT", "SUPERTUNING", "GLORA", "FROD", "PEANUT", "LOHA", "LOKR"}
# what builds a matrix of the layer's size in each forward of PEFT's, and so must be at least so many times as fast on one token;
# what is not, is measured on wide layers as well, for on narrow ones even plain layers may be too little of the time
TIMES = 3

# by peft_type (a variant of LoRA: by its setting), the config's class and settings of a usual size for layers of this width
CASES: dict[str, tuple[str, dict]] = {
    "LORA": ("LoraConfig", {"r": 16}),
    "LORA use_dora": ("LoraConfig", {"r": 16, "use_dora": True}),
    "LORA pissa": ("LoraConfig", {"r": 16, "init_lora_weights": "pissa"}),
    "LORA mica": ("LoraConfig", {"r": 16, "init_lora_weights": "mica"}),
    "LORA kasa_config": ("LoraConfig", {"r": 16, "kasa_config": {"beta": 1e-4}}),
    "LORA use_bdlora": ("LoraConfig", {"r": 16, "use_bdlora": {"target_modules_bd_a": ["first", "second"], "nblocks": 2}}),
    "LORA velora_config": ("LoraConfig", {"r": 16, "velora_config": {"num_groups": 32}}),
    "LORA monteclora_config": ("LoraConfig", {"r": 16, "monteclora_config": {"num_samples": 4}}),
    "LORA loftq": ("LoraConfig", {"r": 16, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}),
    "LORA use_qalora": ("LoraConfig", {"r": 16, "use_qalora": True, "qalora_group_size": 16}),
    "ADALORA": ("AdaLoraConfig", {"init_r": 12, "target_r": 8, "total_step": 100}),
    "LOHA": ("LoHaConfig", {"r": 8}),
    "LOKR": ("LoKrConfig", {"r": 8}),
    "VERA": ("VeraConfig", {"r": 256}),
    "PVERA": ("PveraConfig", {"r": 256}),
    "RANDLORA": ("RandLoraConfig", {"r": 32}),
    "VBLORA": ("VBLoRAConfig", {"r": 4, "vector_length": 192}),
    "UNILORA": ("UniLoraConfig", {"r": 4}),
    "TINYLORA": ("TinyLoraConfig", {"r": 2, "u": 64}),
    "FOURIERFT": ("FourierFTConfig", {"n_frequency": 1000}),
    "WAVEFT": ("WaveFTConfig", {"n_frequency": 2592}),
    "C3A": ("C3AConfig", {"block_size": 192}),
    "DELORA": ("DeloraConfig", {"r": 8}),
    "GRALORA": ("GraloraConfig", {"r": 32}),
    "MISS": ("MissConfig", {"r": 64}),
    "MISS bat": ("MissConfig", {"r": 64, "init_weights": "bat"}),
    "SHIRA": ("ShiraConfig", {"r": 32}),
    "SUPERTUNING": ("SupertuningConfig", {}),
    "ADAMSS": ("AdamssConfig", {"r": 50}),
    "OSF": ("OSFConfig", {}),
    "PEANUT": ("PeanutConfig", {"r": 32}),
    "PSOFT": ("PsoftConfig", {"r": 32}),
    "BEFT": ("BeftConfig", {}),
    "OFT": ("OFTConfig", {"oft_block_size": 32}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
    "HRA": ("HRAConfig", {"r": 8}),
    "ROAD": ("RoadConfig", {"group_size": 64}),
    "IA3": ("IA3Config", {"feedforward_modules": []}),
    "HIRA": ("HiraConfig", {"r": 32}),
    "GLORA": ("GloraConfig", {"r": 8}),
    "DEFT": ("DeftConfig", {"r": 8}),
    "FROD": ("FrodConfig", {"progressbar": False}),
    "POLY": ("PolyConfig", {"r": 8, "n_tasks": 4}),
    "LILY": ("LilyConfig", {"r": 32}),
    "LN_TUNING": ("LNTuningConfig", {"target_modules": ["norm"]}),
    "TRAINABLE_TOKENS": ("TrainableTokensConfig", {"token_indices": [1, 2, 3], "target_modules": ["words"]}),
    "LORA orthogonal": ("LoraConfig", {"r": 16, "init_lora_weights": "orthogonal"}),
    # what needs a whole model
    "LORA alora": ("LoraConfig", {"r": 16, "alora_invocation_tokens": [7, 8], "target_modules": "all-linear"}),
    "PROMPT_TUNING": ("PromptTuningConfig", {"num_virtual_tokens": 8}),
    "P_TUNING": ("PromptEncoderConfig", {"num_virtual_tokens": 8, "encoder_hidden_size": 128}),
    "PREFIX_TUNING": ("PrefixTuningConfig", {"num_virtual_tokens": 8}),
    "MULTITASK_PROMPT_TUNING": ("MultitaskPromptTuningConfig", {"num_virtual_tokens": 8, "num_tasks": 3}),
    "CPT": ("CPTConfig", {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4]}),
    "CARTRIDGE": ("CartridgeConfig", {"num_virtual_tokens": 8}),
    "ADAPTION_PROMPT": ("AdaptionPromptConfig", {"adapter_len": 8, "adapter_layers": 2}),
    "SHADOW": ("ShadowConfig", {"r": 8}),
    "XLORA": ("XLoraConfig", {"hidden_size": 256, "xlora_depth": 1}),
    "LORA arrow_config": ("LoraConfig", {"arrow_config": {"top_k": 2}}),      # nothing of it learns
}
WHOLE = list(CASES)[list(CASES).index("LORA alora"):]
ROUTERS = ("XLORA", "LORA arrow_config")


def models(label: str, peft_first: bool = False, widths: Widths = WIDTHS):
    """(ours, PEFT's) with the same adapter, an input for one token, one for 128, one for a training step."""
    import peft
    import torch
    from torch import nn

    import engine

    order = (peft, engine) if peft_first else (engine, peft)
    if label in WHOLE:
        return whole_models(label, order)

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm = nn.Embedding(2000, widths[0]), nn.LayerNorm(widths[0])
            self.first, self.second = nn.Linear(*widths[:2]), nn.Linear(*widths[1:])

        def forward(self, ids, task_ids=None):           # those that hear it take it on the way
            return self.second(self.first(self.norm(self.words(ids))))

    torch.manual_seed(0)
    base, (name, settings) = Layers(), CASES[label]
    made = {}
    for package in order:
        torch.manual_seed(1)
        config = getattr(package, name)(**{"target_modules": ["first", "second"], **(settings if package is engine else in_peft(label))})
        if "use_qalora" in settings and package is peft:
            from peft.tuners.lora.gptq import GPTQLoraLinear

            config._register_custom_module({nn.Linear: GPTQLoraLinear})         # its only layer for them, round a plain one
        model = package.get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for p in sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: -p.numel()):
                p.add_(torch.randn_like(p) * 1e-3)
        made[package] = model
    lie_alike(made[engine], made[peft])
    return made[engine], made[peft], *(torch.randint(0, 2000, shape) for shape in ((1, 1), (1, 128), (4, 64)))


def lie_alike(ours, theirs) -> None:
    """Let the two have the frozen weights that are equal in one place of the memory: which place it is would be worth some hundredths."""
    import torch

    own = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        if name in own and not p.requires_grad and not own[name].requires_grad and torch.equal(p, own[name]):
            p.data = own[name].data
    ours.stack.changed()


def in_peft(label: str) -> dict:
    """The settings for PEFT, whose LoftQ can only start on a graphics card; from then on it runs as its LoRA does."""
    return {k: v for k, v in CASES[label][1].items() if label != "LORA loftq" or k == "r"}


def llama():
    """A Llama of two blocks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=2000, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4))


def finished_loras(folder: Path, count: int = 3) -> list[str]:
    """Folders of LoRAs that a router can mix."""
    import torch

    import engine

    for number in range(count):
        model = engine.get_peft_model(llama(), engine.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"]))
        torch.manual_seed(number)
        with torch.no_grad():
            for p in (p for p in model.parameters() if p.requires_grad):
                p.normal_(std=0.02)
        model.save_pretrained(folder / str(number))
    return [str(folder / str(number)) for number in range(count)]


def whole_models(label: str, order: tuple):
    """As `models`, with a Llama of two blocks; ``order`` of the two packages."""
    import peft
    import torch

    import engine

    name, settings = CASES[label]
    made = {}
    with TemporaryDirectory() as folder:
        loras = finished_loras(Path(folder)) if label in ROUTERS else []
        for package in order:
            settings = copy.deepcopy(settings) | ({"adapters": {str(i): lora for i, lora in enumerate(loras)}} if label == "XLORA" else {})
            base = llama()
            base.config.use_cache = label != "XLORA"
            torch.manual_seed(1)
            if "arrow_config" in settings:
                made[package] = package.create_arrow_model(base, loras, package.ArrowConfig(**settings["arrow_config"]))
            else:
                made[package] = package.get_peft_model(base, getattr(package, name)(task_type="CAUSAL_LM", **settings))
    lie_alike(made[engine], made[peft])
    inputs = [torch.randint(9, 2000, shape) for shape in ((1, 1), (1, 128), (4, 64))]
    for ids in inputs[1:]:                 # what is heard only behind some words hears them
        ids[:, 10:12] = torch.tensor([7, 8])
    return made[engine], made[peft], *inputs


def call(model) -> Callable:
    """One pass of a model; of one whose method is told each sample's task, PEFT's tuner takes that, not its model."""
    import torch

    kind = next(iter(model.peft_config.values())).peft_type
    if hasattr(getattr(model, "config", None), "vocab_size"):
        def answer(ids):
            more = {"task_ids": torch.zeros(len(ids), dtype=torch.long)} if kind == "MULTITASK_PROMPT_TUNING" else {}
            more |= {"labels": ids} if kind == "CPT" else {}
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False if kind == "SHADOW" else None, **more).logits

        return answer
    if kind != "POLY":
        return model
    run = model.base_model if type(model).__module__.startswith("peft.") else model
    return lambda ids: run(ids, task_ids=torch.zeros(len(ids), dtype=torch.long))


def let_learn(model, parameters: list, on: bool) -> None:
    """Say whether these of the model's parameters learn; ours is told, as it keeps what it has computed from them."""
    for p in parameters:
        p.requires_grad_(on)
    if not type(model).__module__.startswith("peft."):
        model.stack.changed()


def forward(model, learned: list, ids) -> Callable[[], None]:
    """As an adapter runs that was loaded to be used."""
    import torch

    let_learn(model.eval(), learned, False)
    run = call(model)

    def work() -> None:
        with torch.no_grad():
            run(ids)

    return work


def train(model, learned: list, ids) -> Callable[[], None]:
    """Forward and backward; what an optimizer does is the same for both."""
    let_learn(model.train(), learned, True)
    run = call(model)

    def work() -> None:
        run(ids).square().mean().backward()
        for p in learned:
            p.grad = None

    return work


def ratios(ours: Callable[[], None], theirs: Callable[[], None], rounds: int, seconds: float = 0.02) -> list[float]:
    """PEFT's time divided by ours, of rounds in which both take turns."""
    for _ in range(3):
        ours(), theirs()
    counts = []
    for work in (ours, theirs):
        start = time.process_time()
        work()
        counts.append(max(1, min(200, round(seconds / max(time.process_time() - start, 1e-5)))))
    found = []
    for i in range(rounds):
        times = {}
        for who in (0, 1) if i % 2 else (1, 0):
            work = (ours, theirs)[who]
            start = time.process_time()
            for _ in range(counts[who]):
                work()
            times[who] = (time.process_time() - start) / counts[who]
        found.append(times[1] / times[0])
    return found


def measure(label: str, rounds: int, widths: Widths = WIDTHS, works: Sequence[str] = WORK) -> dict[str, list[float]]:
    """Work → how many times as fast ours is, round by round; without training where nothing learns."""
    found: dict[str, list[float]] = {}
    for peft_first in (False, True):
        *both, token, many, batch = models(label, peft_first, widths)
        learned = [[p for p in model.parameters() if p.requires_grad] for model in both]
        for what, prepare, ids in zip(WORK, (forward, forward, train), (token, many, batch), strict=True):
            if what in works and (prepare is forward or "arrow_config" not in CASES[label][1]):
                found[what] = found.get(what, []) + ratios(*(prepare(m, its, ids) for m, its in zip(both, learned, strict=True)), rounds)
    return found


def without_adapter(label: str, rounds: int, widths: Widths = WIDTHS) -> list[float]:
    """How many times as fast one token is where ours is switched off: the plain layers, which no adapter on them can outrun by much."""
    ours, theirs, token, *_ = models(label, widths=widths)
    works = [forward(model, [p for p in model.parameters() if p.requires_grad], token) for model in (ours, theirs)]
    with ours.disable_adapter():
        return ratios(*works, rounds)


def on_wide(label: str, rounds: int) -> dict[str, float]:
    """One token on wide layers; and what plain layers reach, on these and on the usual ones."""
    found = {"token": measure(label, rounds, WIDE, WORK[:1])["token"], "plain": without_adapter(label, rounds, WIDE),
             "plain, usual": without_adapter(label, rounds)}
    return {what: middle(times) for what, times in found.items()}


def middle(times: list[float]) -> float:
    return round(statistics.median(times), 2)


def about(times: list[float]) -> str:
    """Where the median lies with 95 % certainty: a tie has 1 in it."""
    half, times = len(times) / 2, sorted(times)
    away = math.sqrt(len(times))
    return f"{times[max(0, math.floor(half - away))]:.3f} to {times[min(len(times) - 1, math.ceil(half + away) - 1)]:.3f}"


def processor() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] if (
        Path("/proc/cpuinfo").exists()) else [platform.processor()]
    return names[0]


def machine() -> str:
    return f"one thread of {processor()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CASES), help="some of them, by peft_type (and setting)")
    parser.add_argument("--rounds", type=int, default=7, help="for each order in which the two are built")
    parser.add_argument("--save", action="store_true", help="note the results")
    parser.add_argument("--table", action="store_true", help="write the table of methods into README.md; measures nothing")
    args = parser.parse_args()
    if args.table:
        from tests.bench.table import write

        return write()
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, dict[str, float]] = {}
    wide: dict[str, dict[str, float]] = {}
    print(f"{'peft / ours':<24}" + "".join(f"{what:>15}" for what in WORK))
    for label in args.only:
        rounds = measure(label, args.rounds)
        found[label] = {what: middle(times) for what, times in rounds.items()}
        noted = [f"{what}: {about(rounds[what])}" for what, times in found[label].items() if times < 1]
        if label.split()[0] in BUILDS_DENSE and found[label]["token"] < TIMES:
            wide[label] = on_wide(label, args.rounds)
            noted.append(f"token {'below' if wide[label]['token'] < TIMES else 'above'} {TIMES} on wide layers: {wide[label]}")
        print(f"{label:<24}" + "".join(f"{times:>13.2f} ×" for times in found[label].values()) + f"   {', '.join(noted)}", flush=True)
    if args.save:
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        times = {**known.get("times", {}), **found}
        wide = {**{label: its for label, its in known.get("wide", {}).items() if label not in found}, **wide}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({
            "date": datetime.date.today().isoformat(), "machine": machine(), "torch": torch.__version__, "peft": metadata.version("peft"),
            "times": {label: times[label] for label in CASES if label in times}, "wide": wide}, indent=1) + "\n")


if __name__ == "__main__":
    main()
