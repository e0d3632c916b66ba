"""What an adapter brings along beside its own layers: modules learned whole, single words, biases.

Each is the same adapter at another layer, under another law, so that everything that can be done with an adapter is done with it too.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import nn

from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted, unwrapped
from engine.hosts.host import host_of
from engine.hosts.parameter import ParameterLayout
from engine.hosts.replaced import Replaced, SavedModule, whole_site
from engine.law import PeftConfig, TargetedConfig
from engine.hosts.beside import SAVED, STILL, WHOLE_BIAS, AttentionBias, OwnBias, mixed
from engine.methods.trainable_tokens import TOKEN_ADAPTER, TrainableTokens, TrainableTokensConfig
from engine.model.inject import Placement
from engine.model.tying import shared_weights, tied_adapters, tied_modules, tied_words
from engine.model.targets import Target, input_embedding, modules, on_module, whole_target

Config = TypeVar("Config", bound=PeftConfig)


def with_heads(config: Config, heads: Sequence[str]) -> Config:
    """The config with these modules learned whole as well; the one that came in stays as it is."""
    if not heads or not hasattr(config, "modules_to_save") or set(heads) <= set(config.modules_to_save or ()):
        return config
    config = copy.copy(config)
    config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *heads]))
    return config


def with_companions(model: nn.Module, placed: list[Placement], config: TargetedConfig) -> list[Placement]:
    """The placements of the adapter's own method, and those of all that it brings along.

    Raises:
        TypeError: a module that cannot be learned whole. ValueError: settings that contradict one another.
        NotImplementedError: an unknown `bias`.
    """
    saved = saved_modules(model, config)
    if getattr(config, "ensure_weight_tying", False):
        placed, saved = tied_adapters(model, placed), tied_modules(model, saved)
        if not shared_weights(model):
            warnings.warn("ensure_weight_tying=True but the model does not have tied weights." if getattr(config, "trainable_token_indices", None)
                          else "You have requested `ensure_weight_tying`, but no tied modules were found in the model.", stacklevel=4)
    closed = {p.target.path for p in saved}
    if placed and isinstance(placed[0].method, TrainableTokens):
        placed = tied_words(model, placed, closed, ensure=False)
    placed = [*placed, *_words(model, config, {p.target.path for p in placed}, closed)]
    return _with_biases(model, placed, config, closed) + saved


# --- modules learned whole ---

def saved_modules(model: nn.Module, config: PeftConfig) -> list[Placement]:
    """The modules whose paths end with a name of ``modules_to_save`` (PEFT's rule). Raises `TypeError` for one that cannot be replaced."""
    found: dict[str, Placement] = {}
    for path, module in modules(model) if getattr(config, "modules_to_save", None) else ():
        if any(path.endswith(name) for name in config.modules_to_save) and not any(path.startswith(f"{whole}.") for whole in found):
            target = whole_target(path, module, "modules_to_save", SavedModule)
            found[path] = Placement(target, SAVED, config, target.site)
    return list(found.values())


# --- single words ---

def _words(model: nn.Module, config: TargetedConfig, targets: set[str], saved: set[str]) -> list[Placement]:
    wanted = getattr(config, "trainable_token_indices", None)
    if wanted is None:
        return []
    by_name: Mapping[str, list[int]] = wanted if isinstance(wanted, dict) else {input_embedding(model): wanted}
    found: list[Placement] = []
    for name, indices in by_name.items():
        layers = [target for path, module in modules(model) if path.endswith(name) for target in on_module(path, module)]
        if not layers:
            raise ValueError(f"Target modules {{{name!r}}} not found in the base model. Please check `trainable_token_indices`.")
        settings = TrainableTokensConfig(token_indices=list(indices), inference_mode=config.inference_mode)
        for target in layers:
            if target.path in saved:
                raise ValueError("The embedding layer is already marked to be trained fully, either specify "
                                 f"`modules_to_save=[..., \"{name}\", ...]` or `trainable_token_indices={{'{name}': x}}` but not both.")
            if refusal := TOKEN_ADAPTER.refuses(settings, target.site):
                raise UnsupportedLayer(f"`trainable_token_indices` cannot be used on {target.path}.", refusal, "Name other words or another layer.")
            found.append(Placement(target, TOKEN_ADAPTER, settings, target.site))
    found = tied_words(model, found, saved, getattr(config, "ensure_weight_tying", False))
    if both := [p.target.path for p in found if p.target.path in targets]:
        raise TypeError(f"trainable_token_indices cannot be applied to {both[0]}, on which the adapter itself sits, or whose weight is the same.")
    return found


# --- biases ---

def _with_biases(model: nn.Module, placed: list[Placement], config: TargetedConfig, saved: set[str]) -> list[Placement]:
    kind = getattr(config, "bias", None) or "none"
    if kind == "none":
        return placed
    if kind != "all" and not kind.endswith("_only"):
        raise NotImplementedError(f"Requested bias: {kind}, is not implemented. Choose “none”, “all”, or that of the adapted layers only.")
    placed = [replace(p, method=mixed(AttentionBias if isinstance(p.target.host, ParameterLayout) else OwnBias, p.method))
              if issubclass(p.target.wrapper, Adapted) and not p.twin else p for p in placed]
    return placed + list(_other_biases(model, config, {p.target.path for p in placed}, saved)) if kind == "all" else placed


def _other_biases(model: nn.Module, config: TargetedConfig, taken: set[str], saved: set[str]) -> Iterator[Placement]:
    """Every bias of the model that is not that of a layer the adapter sits on."""
    held = [(path, module, _bare(module)) for path, module in modules(model)
            if path not in taken and not any(path == s or path.startswith(f"{s}.") for s in saved)]
    held = [(path, module, bare) for path, module, bare in held if bare._parameters.get("bias") is not None]
    in_leaves = {id(bare.bias) for _, _, bare in held if not bare._modules}
    for path, module, bare in held:
        if bare._modules:
            if id(bare.bias) not in in_leaves:                # one that a layer within has too is learned there
                raise ValueError(f"`bias=\"all\"` cannot be used: the bias of {path} ({type(bare).__name__}) belongs to no single layer.")
        elif isinstance(module, Replaced) or host_of(bare) is None:
            site = whole_site(path, bare, ["bias"])
            yield Placement(Target(path, module, None, site, Replaced), WHOLE_BIAS, config, site)
        else:
            yield from (Placement(target, STILL, config, target.site) for target in on_module(path, module))


def _bare(module: nn.Module) -> nn.Module:
    return module.bare if isinstance(module, Replaced) else unwrapped(module)
