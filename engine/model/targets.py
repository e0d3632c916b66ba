"""Which layers an adapter sits on: a pure plan that says for every module why, before anything is changed.

The rules and their order are PEFT's (``check_target_module_exists``); unlike there, a name in a list that matches nothing
is reported, with the nearest name that would have matched.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import nn

from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted
from engine.hosts.host import Host, host_of
from engine.methods.base import Method, Site, TargetedConfig

# Where `target_modules` is left open: by the model's `config.model_type`, as PEFT chooses for LoRA and its relatives.
_QV = ["q_proj", "v_proj"]
DEFAULT_TARGETS: dict[str, list[str]] = {
    **dict.fromkeys(["bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral", "stablelm", "gemma", "gemma2",
                     "gemma3_text", "qwen2", "qwen3"], _QV),
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "electra", "layoutlm", "vit"], ["query", "value"]),
    **dict.fromkeys(["bloom", "gpt_neox", "chatglm", "falcon", "RefinedWeb", "RefinedWebModel"], ["query_key_value"]),
    **dict.fromkeys(["t5", "mt5"], ["q", "v"]), **dict.fromkeys(["gpt2", "gpt_bigcode"], ["c_attn"]),
    "phi": ["q_proj", "v_proj", "fc1", "fc2"], "blip-2": ["q", "v", "q_proj", "v_proj"], "deberta-v2": ["query_proj", "value_proj"],
    "deberta": ["in_proj"], "mpt": ["Wqkv"], "btlm": ["c_proj", "c_attn"], "codegen": ["qkv_proj"],
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


@dataclass(frozen=True)
class Target:
    """A layer that the adapter will sit on."""

    path: str
    layer: nn.Module
    host: Host
    site: Site


class NoMatchingPeftModuleError(UnsupportedLayer):
    """No layer of the model matches the adapter's targets (PEFT class of the same name, also a `ValueError`)."""

    code = "no-matching-layer"


@dataclass
class Plan:
    """What an injection would do. ``reasons`` covers every module that was looked at."""

    targets: list[Target] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)     # path → "matched", "excluded", "not named", or why not
    unmatched: dict[str, list[str]] = field(default_factory=dict)   # entry of target_modules → nearest names
    resolved: list[str] | str = field(default_factory=list)   # target_modules spelled out, as it belongs in the saved config


def plan(model: nn.Module, method: Method, config: TargetedConfig) -> Plan:
    """Walk the modules once and decide. Nothing is changed.

    Raises:
        NoMatchingPeftModuleError: nothing matched.
        UnsupportedLayer: a named layer cannot carry this method; says which and why.
    """
    method.settle(config, getattr(getattr(model, "config", None), "model_type", None))
    wanted = _wanted(model, config)
    result, hits = Plan(), set()
    for path, module in modules(model):
        adapted = isinstance(module, Adapted)
        entry, reason = _match(path, module, config, wanted)
        if entry is None:
            result.reasons[path] = reason
            continue
        hits.add(entry)
        layer = module.base_layer if adapted else module
        host = host_of(layer)
        if host is None:
            raise UnsupportedLayer(f"Target module {path} is a {type(layer).__name__}, on which no adapter can sit.",
                                   do="Leave it out of `target_modules`, or name the layers inside it.")
        site = module.site if adapted else host.site(path, layer)
        if refusal := method.refuses(config, site):
            raise UnsupportedLayer(f"{method.title} cannot sit on {path}.", refusal, "Leave it out of `target_modules`.")
        result.reasons[path] = "matched"
        result.targets.append(Target(path, module, host, site))
    if not isinstance(wanted, (str, _AllLinear)):
        leaves = sorted({p.rpartition(".")[2] for p in result.reasons})
        result.unmatched = {e: difflib.get_close_matches(e.rpartition(".")[2], leaves, 3) for e in wanted if e not in hits}
    result.resolved = wanted
    if isinstance(wanted, _AllLinear):
        result.resolved = shortest_names((t.path for t in result.targets), (p for p, reason in result.reasons.items() if reason != "matched"))
    if not result.targets:
        near = sorted({name for names in result.unmatched.values() for name in names})
        raise NoMatchingPeftModuleError(
            f"Target modules {config.target_modules} not found in the base model.", "The adapter would sit on no layer at all.",
            f"Did you mean {', '.join(near)}?" if near else "Check that the adapter was made for this model.")
    return result


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module below ``model`` once, in `named_modules` order, with adapted layers as one: what is inside them is nobody's target,
    and so the walk stays as short for the hundredth adapter as for the first."""
    seen: set[int] = {id(model)}

    def walk(prefix: str, parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, child in parent._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                yield prefix + name, child
                if not isinstance(child, Adapted):
                    yield from walk(f"{prefix}{name}.", child)

    return walk("", model)


@dataclass(frozen=True)
class _AllLinear:
    """Every linear layer but the output head."""

    head: nn.Module | None
    names: frozenset[str]


def _wanted(model: nn.Module, config: TargetedConfig) -> str | list[str] | _AllLinear:
    targets = config.target_modules
    if targets is None:
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        if model_type not in DEFAULT_TARGETS:
            raise ValueError("Please specify `target_modules` in `peft_config`")
        targets = sorted(DEFAULT_TARGETS[model_type])
    if isinstance(targets, str) and targets.lower() == "all-linear":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        names = frozenset({"score", "classifier"}) if config.task_type == "SEQ_CLS" else frozenset()
        return _AllLinear(head.base_layer if isinstance(head, Adapted) else head, names)
    return targets


def shortest_names(chosen: Iterable[str], others: Iterable[str]) -> list[str]:
    """The chosen modules by the shortest names that match none of the others."""
    taken = {path.rpartition(".")[2] for path in others}
    leaves = ((path, path.rpartition(".")[2]) for path in chosen)
    return sorted({path if leaf in taken else leaf for path, leaf in leaves})


def _match(path: str, module: nn.Module, config: TargetedConfig, wanted: str | list[str] | _AllLinear) -> tuple[str | None, str]:
    """(the entry that matched, "") or (None, the reason why not)."""
    if config.exclude_modules is not None and _named(path, config.exclude_modules) is not None:
        return None, "excluded"
    if isinstance(wanted, _AllLinear):
        layer = module.base_layer if isinstance(module, Adapted) else module
        host = host_of(layer)
        if host is None or layer.weight.dim() != 2 or isinstance(layer, nn.Embedding):
            return None, "not a linear layer"
        if layer is wanted.head or path.rpartition(".")[2] in wanted.names:
            return None, "the output head"
        entry = "all-linear"
    else:
        entry = _named(path, wanted)
        if entry is None:
            return None, "not named"
    depths = config.layers_to_transform
    if depths is not None and depths != [] and not (isinstance(wanted, list) and path in wanted):
        depth = _depth(path, config.layers_pattern)
        if depth is None or depth not in ([depths] if isinstance(depths, int) else depths):
            return None, "at another depth"
    return entry, ""


def _named(path: str, names: str | list[str]) -> str | None:
    if isinstance(names, str):
        return names if re.fullmatch(names, path) else None
    return next((name for name in names if path == name or path.endswith(f".{name}")), None)


def _depth(path: str, pattern: list[str] | str | None) -> int | None:
    """Number of the block: the first numbered segment, or the one after ``layers_pattern``."""
    for prefix in ([r"[^.]*"] if not pattern else [pattern] if isinstance(pattern, str) else pattern):
        if found := re.match(rf".*?\.?{prefix}\.(\d+)\.", path):
            return int(found.group(1))
    return None
