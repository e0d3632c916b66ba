"""Layers that the transformers library has renamed or fused since an adapter, or the habit of naming them, was made.

Its fifth release did so with many models: a vision transformer's ``query`` is ``q_proj`` now, and the experts of a mixture, linear layers once,
are one parameter with three axes. The library's own table says what becomes of the names of an old checkpoint's weights; here an adapter's file
and its settings are read by it. (PEFT does so for fused experts alone.)
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from engine.checkpoint.keys import PREFIX, strip
from engine.errors import UnsupportedLayer
from engine.law import Method, PeftConfig, TargetedConfig, by_pattern
from engine.model.targets import Held, experts, modules, shortest_names

ROUTER = "gate"                            # a linear layer once, a module with a weight now


def as_named_now(model: nn.Module, held: Held, method: Method, config: PeftConfig, file: dict[str, Tensor] | None
                 ) -> tuple[PeftConfig, dict[str, Tensor] | None]:
    """The settings and an adapter's file, as they would be had they been made for this model as it is today; the given ones stay as they are.

    ``held``: the model's `modules`.

    Raises `UnsupportedLayer` if some, but not all, of what is one parameter today was to learn.
    """
    if not isinstance(config, TargetedConfig) or not hasattr(model, "base_model_prefix"):
        return config, file
    table = _Table(model)
    if config.peft_type == "LORA" and config.target_modules and (fused := experts(held)):
        config = _with_experts(model, config, fused, table)
    return (config, file) if file is None else _of_file(model, method, config, file, table, {PREFIX + path for path, _ in held})


@dataclass(frozen=True)
class _Table:
    """What became of the names of a model's weights, as the library knows it. It takes 0.4 s to look up for the first time."""

    model: nn.Module

    @cached_property
    def _conversions(self) -> tuple[list, list]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        found = get_model_conversion_mapping(self.model, add_legacy=False)
        return [c for c in found if isinstance(c, WeightRenaming)], [c for c in found if isinstance(c, WeightConverter)]

    def now(self, weight: str) -> tuple[str, str]:
        """(name of a weight now, name of that part of it which the old one was, if it is more now)."""
        from transformers.core_model_loading import rename_source_key

        name, pattern = rename_source_key(weight, *self._conversions)
        return name, "" if pattern is None else _leaf(pattern)

    @cached_property
    def fused(self) -> dict[str, list[str]]:
        """Parameter of a module of experts → what each expert had instead, in order, e.g. ``gate_up_proj → [w1, w3]``."""
        return {converter.target_patterns[0].rpartition(".")[2]: [_leaf(old) for old in converter.source_patterns]
                for converter in self._conversions[1] if all(".experts.*." in f".{old}" for old in converter.source_patterns)}


def _leaf(pattern: str) -> str:
    """``.experts.*.w1.weight`` → ``w1``."""
    return pattern.removesuffix("$").removesuffix(".weight").rpartition(".")[2]


# --- settings ---

def _with_experts(model: nn.Module, config: TargetedConfig, holders: Mapping[str, list[str]], table: _Table) -> TargetedConfig:
    """LoRA's settings with the experts' parameters in the place of the linear layers that they were (PEFT's rule, ranks included)."""
    held = {name for names in holders.values() for name in names}
    fused = {new: old for new, old in table.fused.items() if new in held}
    routers = sorted(path for path, module in modules(model) if path.rpartition(".")[2] == ROUTER and not isinstance(module, nn.Linear)
                     and any(path.rpartition(".")[0] == holder.rpartition(".")[0] for holder in holders)) if fused else []
    named = {new: [name for name in old if _names(config.target_modules, name, holders)] for new, old in fused.items()}
    router = bool(routers) and _names(config.target_modules, ROUTER, {path.rpartition(".")[0]: [] for path in routers})
    if not router and not any(named.values()):
        return config
    for new, found in named.items():
        if 0 < len(found) < len(fused[new]):
            rest = [name for name in fused[new] if name not in found]
            raise UnsupportedLayer(f"Cannot target {', '.join(found)} without also targeting {', '.join(rest)}.",
                                   f"They are fused into {new} in this model.", "Name both, or neither.")
    config = copy.copy(config)
    whole = [new for new, found in named.items() if found]
    config.target_parameters = sorted({*(config.target_parameters or ()), *whole, *([f"{ROUTER}.weight"] if router else [])})
    for new in whole:
        if (parts := len(fused[new])) > 1:
            config.rank_pattern = {**config.rank_pattern, rf".*\.{new}": config.r * parts}
            config.alpha_pattern = {**config.alpha_pattern, rf".*\.{new}": config.lora_alpha * parts}
    paths = {path for path, _ in modules(model)} - set(routers)
    if isinstance(config.target_modules, list):
        gone = {name for found in named.values() for name in found} | ({ROUTER} if router else set())
        config.target_modules = [entry for entry in config.target_modules
                                 if entry.rpartition(".")[2] not in gone or any(f".{path}".endswith(f".{entry}") for path in paths)]
    elif config.target_modules.lower() != "all-linear":
        matched = {path for path in paths if re.fullmatch(config.target_modules, path)}
        config.target_modules = shortest_names(matched, paths - matched)
    return config


def _names(targets: list[str] | str, name: str, holders: Iterable[str]) -> bool:
    """Whether ``target_modules`` mean the layers that were called so, beside or in the modules ``holders``."""
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or any(
            re.fullmatch(targets, path) for holder in holders for path in (f"{holder}.{name}", f"{holder}.0.{name}"))
    return any(entry == name or entry.endswith(f".{name}") for entry in targets)


# --- files ---

def _of_file(model: nn.Module, method: Method, config: TargetedConfig, file: dict[str, Tensor], table: _Table,
             known: Set[str]) -> tuple[TargetedConfig, dict[str, Tensor]]:
    begin = f".{method.prefix}"
    places = {key: strip(key).partition(begin) for key in file if begin in key and key.partition(begin)[0] not in known}
    strange = {path for path, _, _ in places.values() if PREFIX + path.replace(".base_layer", "") not in known}
    now = {path: table.now(f"{path}.weight") for path in strange}
    moved = {path: name.removesuffix(".weight") for path, (name, part) in now.items() if not part and name != f"{path}.weight"}
    parts = {path: (name, part) for path, (name, part) in now.items() if part}
    if not moved and not parts:
        return config, file
    result: dict[str, Tensor] = {}
    pieces: dict[tuple[str, str], dict[tuple[int, str], str]] = {}         # (parameter, tensor) → (expert, part) → key in the file
    for key, tensor in file.items():
        path, dot, name = places.get(key, ("", "", ""))
        if path in parts:
            expert = int(re.search(r".*\.(\d+)\.", path)[1])
            pieces.setdefault((parts[path][0], f"{dot[1:]}{name}"), {})[expert, parts[path][1]] = key
        else:
            result[f"{PREFIX}{moved[path]}{dot}{name}" if path in moved else key] = tensor
    for (parameter, name), keys in pieces.items():
        result |= _joined(model, parameter, name, keys, file, table, {other for other, _ in pieces})
    return _settings_moved(model, config, moved), result


def _joined(model: nn.Module, parameter: str, name: str, keys: Mapping[tuple[int, str], str], file: Mapping[str, Tensor], table: _Table,
            targeted: set[str]) -> dict[str, Tensor]:
    """Experts' A or B as one tensor of the parameter that holds them all; as they were, where some are missing.

    A's rows are stacked part after part within an expert, B is block-diagonal; see `engine.methods.lora` for the experts' order.
    """
    holder, _, leaf = parameter.rpartition(".")
    old, own = table.fused.get(leaf, []), experts(modules(model)).get(holder, [])
    count = 1 + max(expert for expert, _ in keys)
    if len(keys) != count * len(old) or leaf not in own or name not in ("lora_A.weight", "lora_B.weight"):
        return {key: file[key] for key in keys.values()}
    each = [[file[keys[expert, part]] for part in old] for expert in range(count)]
    if name == "lora_A.weight":
        tensor = torch.cat([A for one in each for A in one])
    else:
        tensor = torch.stack([torch.block_diag(*one) for one in each]).permute(1, 2, 0).flatten(1)
    nested = [n for n in own if f"{holder}.{n}" in targeted]               # the last one declared stands outermost
    return {f"{PREFIX}{holder}{'.base_layer' * (len(nested) - 1 - nested.index(leaf))}.{name}": tensor}


def _settings_moved(model: nn.Module, config: TargetedConfig, moved: Mapping[str, str]) -> TargetedConfig:
    """The settings with what they name by its new names."""
    layers = {old: new for old, new in moved.items() if not isinstance(config.target_modules, list)
              or any(f".{old}".endswith(f".{entry}") for entry in config.target_modules)}
    if not layers or config.target_modules is None or str(config.target_modules).lower() == "all-linear":
        return config
    config, paths = copy.copy(config), [path for path, _ in modules(model)]
    stay = [entry for entry in config.target_modules if any(f".{path}".endswith(f".{entry}") for path in paths)
            ] if isinstance(config.target_modules, list) else []
    config.target_modules = sorted({*stay, *shortest_names(set(layers.values()), set(paths) - set(layers.values()))})
    for field in ("rank_pattern", "alpha_pattern"):
        if patterns := getattr(config, field, None):
            setattr(config, field, patterns | {re.escape(new): value for old, new in layers.items()
                                               if (value := by_pattern(old, patterns, None)) is not None})
    return config
