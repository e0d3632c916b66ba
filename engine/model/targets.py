"""Which layers an adapter sits on: a pure plan that says for every module why, before anything is changed.

The rules and their order are PEFT's (``check_target_module_exists``); unlike there, a name in a list that matches nothing
is reported, with the nearest name that would have matched.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted, unwrapped
from engine.hosts.attention import IN, IN_LAYOUT, OUT, is_only_read, projections, wrapper
from engine.hosts.host import Layout, host_of
from engine.hosts.linear import LinearHost
from engine.hosts.parameter import AdaptedParameter, ParameterLayout, Read, cannot_be_read
from engine.hosts.replaced import Replaced, check_whole, whole_site
from engine.hosts.shelves import Shelves
from engine.law import Method, Site, TargetedConfig, Whole
from engine.methods.trainable_tokens import TrainableTokens

# Where `target_modules` is left open: by the model's `config.model_type`, as PEFT chooses for LoRA and its relatives.
_QV = ["q_proj", "v_proj"]
DEFAULT_TARGETS: dict[str, list[str] | str] = {
    **dict.fromkeys(["bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral", "stablelm", "gemma", "gemma2",
                     "gemma3_text", "qwen2", "qwen3"], _QV),
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "electra", "layoutlm"], ["query", "value"]),
    **dict.fromkeys(["bloom", "gpt_neox", "chatglm", "falcon", "RefinedWeb", "RefinedWebModel"], ["query_key_value"]),
    **dict.fromkeys(["t5", "mt5"], ["q", "v"]), **dict.fromkeys(["gpt2", "gpt_bigcode"], ["c_attn"]),
    "phi": ["q_proj", "v_proj", "fc1", "fc2"], "blip-2": ["q", "v", "q_proj", "v_proj"], "deberta-v2": ["query_proj", "value_proj"],
    "deberta": ["in_proj"], "mpt": ["Wqkv"], "btlm": ["c_proj", "c_attn"], "codegen": ["qkv_proj"],
    "vit": ["query", "value", "q_proj", "v_proj"],           # as the library names them until its fourth release, and since
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"], "rwkv": ["key", "value", "receptance", "output"],
    "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"], "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
}

# Blocks of these families hand the weights of some of their layers to a kernel of their own and never run the layers
_MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
_READ_PAST = frozenset({"out_proj", "conv1d", "dt_proj"})


Held = Sequence[tuple[str, nn.Module]]     # (path, module) of all that a model holds


class Target(NamedTuple):
    """A layer, or a parameter, that the adapter will sit on: ``layer`` holds it, or is what stands round it already."""

    path: str
    layer: nn.Module
    host: Layout | None                    # None: it is replaced as a whole
    site: Site
    wrapper: type[Adapted | Replaced] = Adapted
    law: Method | None = None              # if it is another one than the adapter's
    in_vain: Site | None = None            # whose tensors PEFT draws once in vain before this one's: the same seed must give the same adapter


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

    def add(self, target: Target, method: Method, config: TargetedConfig) -> None:
        """Take a target in, once. Raises `UnsupportedLayer` if the method refuses it."""
        refusal = method.refuses(config, target.site) or (
            cannot_be_read(method) if target.wrapper is AdaptedParameter or target.wrapper is not Adapted and is_only_read(target.layer) else "")
        if refusal:
            raise UnsupportedLayer(f"{method.title} cannot sit on {target.path}.", refusal, "Leave it out of `target_modules`.")
        if self.reasons.get(target.path) != "matched":         # attention's output may be named beside the attention itself
            self.targets.append(target)
        self.reasons[target.path] = "matched"


def plan(model: nn.Module, method: Method, config: TargetedConfig, held: Held | None = None) -> Plan:
    """Walk the modules once and decide. Nothing is changed. ``held``: the model's `modules`, where they have been walked already.

    Raises:
        NoMatchingPeftModuleError: nothing matched.
        UnsupportedLayer: a named layer cannot carry this method; says which and why.
    """
    method.settle(config, _family(model))
    if config.target_modules is None and isinstance(method, TrainableTokens):
        config.target_modules = input_embedding(model)
    wanted = _wanted(model, config)
    result, hits, closed_off, choose, past = Plan(), set(), [], _chooser(config, wanted), _read_past(model)
    for path, module in modules(model) if held is None else held:
        if isinstance(module, Replaced):
            closed_off.append(path)
        entry, reason = choose(path, module)
        if entry is None:
            result.reasons[path] = reason
            continue
        hits.add(entry)
        if past and path.rpartition(".")[2] in past:
            raise UnsupportedLayer(f"Module '{path}' is incompatible with Mamba-based models (model_type='{_family(model)}').",
                                   "Its block hands the layer's weight to a kernel and never runs the layer, so that no adapter would be heard.",
                                   f"Leave {', '.join(sorted(past))} out of `target_modules`.")
        if closed_off and (closed := next((whole for whole in closed_off if path.startswith(f"{whole}.")), None)):
            raise UnsupportedLayer(f"No adapter can sit on {path}.", f"Another adapter replaces {closed} as a whole.",
                                   "Leave it out of `target_modules`, or delete the other adapter first.")
        if own := module.__dict__.get("remade") or config.custom_modules and _own(module, config.custom_modules):
            targets = [own(path, module, method, config)]
        else:
            targets = [whole_target(path, module, method.title)] if isinstance(method, Whole) else on_module(path, module, model)
        for target in targets:
            result.add(target, method, config)
        result.reasons[path] = "matched"
    named = getattr(config, "target_parameters", None) or []
    found = list(_on_parameters(model, named, {t.site.path for t in result.targets}))
    if result.targets and named and not found:
        warnings.warn(f"target_parameters={named} were set but no parameter was matched.", RuntimeWarning, stacklevel=2)
    for target in found:
        result.add(target, method, config)
    if not isinstance(wanted, (str, _AllLinear)) and not hits.issuperset(wanted):
        leaves = sorted({p.rpartition(".")[2] for p in result.reasons})
        result.unmatched = {e: difflib.get_close_matches(e.rpartition(".")[2], leaves, 3) for e in wanted if e not in hits}
    result.resolved = wanted
    if isinstance(wanted, _AllLinear):
        result.resolved = shortest_names((t.path for t in result.targets), (p for p, reason in result.reasons.items() if reason != "matched"))
    if not result.targets and not config.target_modules and getattr(config, "target_parameters", None):
        raise NoMatchingPeftModuleError("No `target_modules` passed but also no `target_parameters` found.",
                                        "The adapter would sit on nothing at all.", "Check the names of the parameters.")
    if result.targets:
        return result
    taken = [path for path, reason in result.reasons.items() if reason in ("excluded", "learned whole")
             and (isinstance(wanted, _AllLinear) or _finder(wanted)(path) is not None)]
    if taken:
        raise NoMatchingPeftModuleError(
            "No modules were targeted for adaptation. This might be caused by a combination of targets with `exclude_modules` or "
            f"`modules_to_save`, which take {', '.join(taken[:3])}{' …' if len(taken) > 3 else ''} away from them.",
            "The adapter would sit on no layer at all.", "Name other layers in `target_modules`.")
    near = sorted({name for names in result.unmatched.values() for name in names})
    raise NoMatchingPeftModuleError(
        f"Target modules {config.target_modules} not found in the base model.", "The adapter would sit on no layer at all.",
        f"Did you mean {', '.join(near)}?" if near else "Check that the adapter was made for this model.")


def _own(module: nn.Module, custom: Mapping[type[nn.Module], Callable[..., Target]]) -> Callable[..., Target] | None:
    """What makes a target of a module that a program has layers of its own for."""
    return next((make for kind, make in custom.items() if isinstance(module, kind)), None)


def named_modules(model: nn.Module, config: TargetedConfig) -> list[str]:
    """Paths of the modules that the config names, whatever they are."""
    choose = _chooser(config, _wanted(model, config))
    return [path for path, module in modules(model) if choose(path, module)[0] is not None]


def input_embedding(model: nn.Module) -> str:
    """Path of the layer that turns words into vectors; where the model does not say, ``embed_tokens``."""
    try:
        words = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return "embed_tokens"
    return next((path for path, module in modules(model) if module is words), "embed_tokens")


def modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module below ``model`` once, in `named_modules` order, with adapted layers as one: what is inside them is nobody's target,
    and so the walk stays as short for the hundredth adapter as for the first."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = {id(model)}

    def walk(prefix: str, parent: nn.Module) -> None:
        for name, child in parent._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append((path := prefix + name, child))
                if isinstance(child, Shelves):
                    if isinstance(child, Adapted) and not isinstance(child, AdaptedParameter):
                        continue
                    child = unwrapped(child)
                    child = child.bare if isinstance(child, Replaced) else child
                if child._modules:
                    walk(f"{path}.", child)

    walk("", model)
    return found


def whole_target(path: str, module: nn.Module, what: str, wrapper: type[Replaced] = Replaced) -> Target:
    """A module that an adapter replaces. Raises `TypeError` if it is none that could be; ``what`` asks for it."""
    if isinstance(module, Replaced):
        return Target(path, module, None, whole_site(path, module.bare), wrapper)
    check_whole(module, what)
    return Target(path, module, None, whole_site(path, module), wrapper)


def _round(module: nn.Module) -> tuple[dict[str, AdaptedParameter], nn.Module]:
    """(wrappers of single parameters round a module by the parameter's name, what is inside them)."""
    wrappers: dict[str, AdaptedParameter] = {}
    while isinstance(module, AdaptedParameter):
        wrappers[module.host.name] = module
        module = module.base_layer
    return wrappers, module


def experts(held: Iterable[tuple[str, nn.Module]]) -> dict[str, list[str]]:
    """Of a model's `modules`: path of one that holds the weights of many experts → names of those parameters, in order."""
    found = {}
    for path, module in held:
        holder = unwrapped(module) if isinstance(module, AdaptedParameter) else module
        if holder._parameters and (names := [name for name, p in holder._parameters.items() if p is not None and p.dim() == 3]):
            if host_of(holder) is None:
                found[path] = names
    return found


def on_module(path: str, module: nn.Module, model: nn.Module | None = None) -> list[Target]:
    """What an adapter on this module sits on. Raises `UnsupportedLayer`."""
    wrappers, layer = _round(module)
    if isinstance(layer, Replaced):
        raise UnsupportedLayer(f"No adapter can sit on {path}.", "Another adapter replaces it as a whole.",
                               "Leave it out of `target_modules`, or delete the other adapter first.")
    if isinstance(layer, Read):
        return [Target(path, layer, layer.host, replace(layer.site, path=path, file=""), Read)]
    if isinstance(layer, Adapted):
        return [Target(path, layer, layer.host, layer.site)]
    if isinstance(layer, nn.MultiheadAttention):
        into, out = projections(path, layer)
        return [Target(f"{path}.{IN}", wrappers.get(IN, layer), IN_LAYOUT, into, AdaptedParameter, in_vain=out),
                Target(f"{path}.{OUT}", layer.out_proj, host_of(unwrapped(layer.out_proj)), out, Read)]
    host = host_of(layer)
    if host is None or wrappers:
        raise UnsupportedLayer(f"Target module {path} is a {type(layer).__name__}, on which no adapter can sit.",
                               "An adapter sits on one of its parameters already." if wrappers else "",
                               "Leave it out of `target_modules`, or name the layers inside it.")
    parent = None if model is None else unwrapped(model.get_submodule(path.rpartition(".")[0]))
    return [Target(path, layer, host, host.site(path, layer), wrapper(layer, parent))]


def _on_parameters(model: nn.Module, names: list[str], taken: set[str]) -> Iterator[Target]:
    """Parameters named by ``target_parameters``; ``taken``: modules that the same adapter sits on.

    In the file an adapter's parameters of one module nest: the last one declared stands outermost, as ``<module>``, the one before as
    ``<module>.base_layer``, and so on. Raises `ValueError` for parameters that cannot be wrapped.
    """
    if top := [name for name in model._parameters if name in names]:
        raise ValueError(f"Targeting an nn.Parameter on the top-level module is not supported (parameter '{top[0]}').")
    entry = _finder(names)
    for path, module in modules(model) if names else ():
        wrappers, layer = _round(module)
        holder = unwrapped(layer)
        named = [n for n, p in holder._parameters.items() if p is not None and entry(f"{path}.{n}") is not None]
        if named and (path in taken or layer is not holder):
            raise ValueError(f"Trying to wrap an `nn.Parameter` of layer '{path}' of type {type(holder).__name__}, which is not a valid target. "
                             "Make sure that this layer is not also targeted with `target_modules`.")
        for inner, name in enumerate(named):
            axes = holder._parameters[name].dim()
            if axes not in (2, 3):
                raise ValueError(f"{path}.{name}: lora.ParamWrapper was initialized with {axes} dimensional Parameter, "
                                 "but only 2d and 3d are supported.")
            layout = ParameterLayout(name, flipped=axes == 3 and getattr(holder, "is_transposed", False))
            site = replace(layout.site(f"{path}.{name}", holder), file=path + ".base_layer" * (len(named) - 1 - inner))
            yield Target(f"{path}.{name}", wrappers.get(name, holder), layout, site, AdaptedParameter)


@dataclass(frozen=True)
class _AllLinear:
    """Every linear layer but the output head, and what else is never one of them."""

    head: nn.Module | None
    names: frozenset[str]


def _family(model: nn.Module) -> str | None:
    """The model's ``model_type``; a config may also be a dict, or say it only as one."""
    config = getattr(model, "config", None)
    if isinstance(named := getattr(config, "model_type", None), str):
        return named
    config = config.to_dict() if hasattr(config, "to_dict") else config
    return config.get("model_type") if isinstance(config, dict) else None


def _read_past(model: nn.Module) -> frozenset[str]:
    return _READ_PAST if _family(model) in _MAMBA else frozenset()


def _wanted(model: nn.Module, config: TargetedConfig) -> str | list[str] | _AllLinear:
    targets = config.target_modules
    if targets is None:
        model_type = _family(model)
        if model_type not in DEFAULT_TARGETS and getattr(config, "target_parameters", None):
            return []
        if model_type not in DEFAULT_TARGETS:
            raise ValueError("Please specify `target_modules` in `peft_config`")
        targets = DEFAULT_TARGETS[model_type]
        targets = targets if isinstance(targets, str) else sorted(targets)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        names = frozenset({"score", "classifier"}) if config.task_type == "SEQ_CLS" else frozenset()
        return _AllLinear(unwrapped(head), names | _read_past(model))
    return targets


def shortest_names(chosen: Iterable[str], others: Iterable[str]) -> list[str]:
    """The chosen modules by the shortest names that match none of the others."""
    taken = {path.rpartition(".")[2] for path in others}
    leaves = ((path, path.rpartition(".")[2]) for path in chosen)
    return sorted({path if leaf in taken else leaf for path, leaf in leaves})


def _chooser(config: TargetedConfig, wanted: str | list[str] | _AllLinear) -> Callable[[str, nn.Module], tuple[str | None, str]]:
    """What says of a module (the entry that means it, "") or (None, the reason why none does)."""
    excluded = None if config.exclude_modules is None else _finder(config.exclude_modules)
    whole = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in config.modules_to_save or ()]
    named = None if isinstance(wanted, _AllLinear) else _finder(wanted)
    paths = frozenset(wanted if isinstance(wanted, list) else ())          # a path in full counts at any depth
    depths = [config.layers_to_transform] if isinstance(config.layers_to_transform, int) else config.layers_to_transform

    def choose(path: str, module: nn.Module) -> tuple[str | None, str]:
        if excluded is not None and excluded(path) is not None:
            return None, "excluded"
        if whole and any(name.match(path) for name in whole):
            return None, "learned whole"
        if named is None:
            layer = unwrapped(module)
            host = host_of(layer)
            if not isinstance(host, LinearHost):
                return None, "not a linear layer"
            if layer is wanted.head or path.rpartition(".")[2] in wanted.names:
                return None, "read by its block's own kernel" if path.rpartition(".")[2] in _READ_PAST else "the output head"
            entry = "all-linear"
        elif (entry := named(path)) is None:
            return None, "not named"
        if depths and path not in paths and _depth(path, config.layers_pattern) not in depths:
            return None, "at another depth"
        return entry, ""

    return choose


def _finder(names: str | Iterable[str]) -> Callable[[str], str | None]:
    """What finds the entry of ``names`` that means a path: a regular expression for all of it, or one of several names that it ends with."""
    if isinstance(names, str):
        pattern = re.compile(names)
        return lambda path: names if pattern.fullmatch(path) else None
    known = frozenset(names)

    def find(path: str) -> str | None:
        at = len(path)
        while at > 0:                      # the last name, the last two …
            at = path.rfind(".", 0, at)
            if path[at + 1:] in known:
                return path[at + 1:]
        return None

    return find


def _depth(path: str, pattern: list[str] | str | None) -> int | None:
    """Number of the block: the first numbered segment, or the one after ``layers_pattern``."""
    for prefix in ([r"[^.]*"] if not pattern else [pattern] if isinstance(pattern, str) else pattern):
        if found := re.match(rf".*?\.?{prefix}\.(\d+)\.", path):
            return int(found.group(1))
    return None
