"""The table of methods in README.md: what each is, where it sits and what can be done with it, tried out rather than said; with the bench's times."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

import engine
from engine.hosts.host import host_of
from engine.hosts.parameter import cannot_be_read
from engine.methods import registry
from engine.law import MapMethod, Method, Site, Whole
from engine.methods.trainable_tokens import TrainableTokens
from tests.bench import readme
from tests.bench.methods import CASES, RESULTS, WIDE, WIDTHS, WORK
from tests.support.methods import METHODS

HEAD = ["method", "kind", "sits on", "merges", "mixes", "lines", "PEFT's time / ours"]
LAYERS = {"linear": nn.Linear(12, 12), "conv": nn.Conv2d(4, 8, 3), "grouped": nn.Conv2d(4, 8, 3, groups=2), "embedding": nn.Embedding(12, 8)}
STARTS = {"lora_start": "PiSSA, OLoRA, CorDA, LoRA-GA", "lora_orthogonal": "LoRA, orthogonal start"}      # variants that bear LoRA's name
MORE: dict[str, tuple[str, dict]] = {      # what has no row of its own among the laws' methods
    "alora": ("LoraConfig", {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}),
    "loftq": ("LoraConfig", {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}),
    "qalora": ("LoraConfig", {"use_qalora": True, "qalora_group_size": 4}), "tokens": ("TrainableTokensConfig", {"token_indices": [1]}),
    "norms": ("LNTuningConfig", {}), "poly": ("PolyConfig", {}), "lily": ("LilyConfig", {}), "arrow": ("LoraConfig", {"arrow_config": {}})}


def configs() -> dict[str, list[Any]]:
    """Module of a method (or of a variant of one) → configs of adapters that follow its law; empty for what sits in no layer."""
    found: dict[str, list[Any]] = {type(registry.method(name)).__module__: [] for name in registry.names() if name in registry._BUILT_IN}
    found.update({module: [] for variants in registry._VARIANTS.values() for module in variants})
    for name, settings in (*((row.config, {**row.settings, **row.heard}) for row in METHODS.values()), *MORE.values()):
        try:
            config = getattr(engine, name)(**{"target_modules": ["first"], **settings})
        except (AttributeError, ValueError, TypeError):        # a method, or a setting, that is not there
            continue
        found[type(registry.law(config)).__module__].append(config)
    return found


def sites(configs: list[Any]) -> list[str]:
    """The layers that at least one of the configs is not refused on."""
    def carried(config: Any, site: Site) -> bool:
        return not registry.law(config).refuses(config, site)

    on = [name for name, layer in LAYERS.items() if any(carried(c, host_of(layer).site("first", layer)) for c in configs)]
    if "linear" in on and not all(cannot_be_read(registry.law(c)) for c in configs):
        on.append("attention")
    if any(takes_parameters(c) and not cannot_be_read(registry.law(c)) and carried(c, Site("first", "parameter", 12, 8, experts=2)) for c in configs):
        on.append("parameters")
    return on


def takes_parameters(config: Any) -> bool:
    try:
        dataclasses.replace(config, target_parameters=["first"])
    except (TypeError, ValueError):
        return False
    return True


def tried(config: Any, layer: str) -> tuple[bool, bool]:
    """Whether an adapter can be merged, and be heard together with a LoRA on the same layer."""
    model = nn.ModuleDict({"first": copy.deepcopy(LAYERS[layer])})
    config = copy.deepcopy(config)
    config.target_modules = ["first"]
    results = []
    for work in (lambda peft: peft.merge_adapter(),
                 lambda peft: (peft.add_adapter("b", engine.LoraConfig(r=2, target_modules=["first"])), peft.set_adapter(["default", "b"]))):
        peft = engine.get_peft_model(copy.deepcopy(model), config)
        try:
            work(peft)
            results.append(True)
        except (NotImplementedError, ValueError):
            results.append(False)
    return results[0], results[1]


def kind(law: Any) -> str:
    """As the architecture sorts them."""
    if not isinstance(law, Method):
        return "prompt" if hasattr(law, "config") and issubclass(law.config, engine.PromptLearningConfig) else "graph"
    if isinstance(law, (Whole, TrainableTokens)):
        return "replace"
    if isinstance(law, MapMethod):
        return "map"
    return "of the base" if law.needs_base else "delta"


def rows() -> Iterator[list[str]]:
    """Cells of the table by method, without the times; the last cell is the module's name."""
    methods = {type(registry.method(name)).__module__: registry.method(name) for name in registry.names() if name in registry._BUILT_IN}
    for module, known in configs().items():
        name = module.rpartition(".")[2]
        variant = module not in methods
        law = registry.law(known[0]) if known else None if variant else methods[module]
        if law is None:
            continue
        lines = str(len(Path(import_module(module).__file__).read_text(encoding="utf-8").splitlines()))
        on = sites(known)
        merges, mixes = tried(next(c for c in known if sites([c])), sites(known)[0]) if on else (False, False)
        what = kind(law)
        if isinstance(law, Method) and not merges and what == "delta":
            what = "route"
        mixed = {"map": "in order", "prompt": "–", "graph": "with its own"}.get(what, "yes" if mixes or what == "replace" else "–")
        title = STARTS.get(name, law.title)
        yield [title, what, ", ".join(on) or {"prompt": "the model", "graph": "blocks", "replace": "any module", "route": "LoRAs"}.get(what, "–"),
               "yes" if merges or isinstance(law, Whole) else "no", mixed, lines, name]


def times() -> dict[str, str]:
    """Module → times of its first case, as they are shown."""
    noted = json.loads(RESULTS.read_text(encoding="utf-8"))["times"] if RESULTS.exists() else {}
    found: dict[str, str] = {}
    for label, (name, settings) in CASES.items():
        if label in noted:
            method = registry.method(getattr(engine, name).peft_type)
            law = registry.law(getattr(engine, name)(task_type="CAUSAL_LM", **settings)) if isinstance(method, Method) else method
            shown = (f"{noted[label][what]:.1f}" if what in noted[label] else "–" for what in WORK)       # nothing learns: no training
            found.setdefault(type(law).__module__.rpartition(".")[2], " · ".join(shown))
    return found


def table() -> str:
    """The table in Markdown, sorted by kind and title."""
    order = ["delta", "of the base", "map", "replace", "route", "graph", "prompt"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = times()
        lines = [[*cells, measured.get(module, "")] for *cells, module in sorted(rows(), key=lambda r: (order.index(r[1]), r[0].lower()))]
    return readme.rows(HEAD, *lines)


def written() -> str:
    """What stands between the marks in README.md."""
    return readme.read("methods")


def note() -> str:
    """How the times were measured."""
    noted = json.loads(RESULTS.read_text(encoding="utf-8"))
    return (f"Times: PEFT {noted['peft']}'s divided by ours, for one token · 128 tokens · a training step of 4 × 64, on two linear layers "
            f"({_arrows(WIDTHS)}) or, of prompts, graphs, aLoRA and routers of LoRAs, on a Llama of two blocks (256 wide), float32, "
            f"{noted['machine']}, {noted['date']}, medians of rounds in turn (`python -m tests.bench.methods`)."
            + "".join(f" {_title(label)} on one token: {its['token']:.1f} on layers as wide as in a model of 1.1 B ({_arrows(WIDE)}), where plain "
                      f"layers without any adapter reach {its['plain']:.1f}; on those of the table they reach {its['plain, usual']:.1f}."
                      for label, its in noted.get("wide", {}).items()))


def _arrows(widths: Iterable[int]) -> str:
    return " → ".join(map(str, widths))


def _title(label: str) -> str:
    name, settings = CASES[label]
    return registry.law(getattr(engine, name)(**settings)).title


def write() -> None:
    """Put the table into README.md."""
    readme.put("methods", f"{table()}\n\n{note()}" if RESULTS.exists() else table())
