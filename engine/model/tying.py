"""Layers that share a weight (an embedding and the output layer, mostly): what an adapter learns at one of them holds at the others.

A *twin* is a placement without tensors of its own: it uses those of the layer that comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted
from engine.hosts.quantized.adapted import AdaptedQuantized
from engine.hosts.replaced import Replaced, SavedModule
from engine.hosts.beside import SAVED, Mirrored, Tied, TiedModule, mixed
from engine.model.inject import Placement
from engine.model.targets import Target, modules, on_module, whole_target


def weight_of(module: nn.Module) -> Any:
    """W0 as an object that can be told from others, if the module has one."""
    if isinstance(module, AdaptedQuantized):
        return module.pristine._parameters.get("weight")
    if isinstance(module, (Adapted, Replaced)):
        return module.pristine_weight
    return module._parameters.get("weight")


def shared_weights(model: nn.Module) -> list[list[str]]:
    """Paths of the modules that have one weight in common, embeddings first, for every such weight."""
    groups: dict[int, list[tuple[bool, str]]] = {}
    for path, module in modules(model):
        if (weight := weight_of(module)) is not None:
            groups.setdefault(id(weight), []).append((not _looks_up(module), path))
    return [[path for _, path in sorted(group, key=lambda entry: entry[0])] for group in groups.values() if len(group) > 1]


def _looks_up(module: nn.Module) -> bool:
    return isinstance(module.bare if isinstance(module, (Adapted, Replaced)) else module, nn.Embedding)


def tied_words(model: nn.Module, words: Sequence[Placement], saved: set[str], ensure: bool) -> list[Placement]:
    """Placements of words, and of the same ones wherever else their layers' weights are used: these have no tensors of their own.

    Raises `ValueError` if layers that share a weight are to learn different words although ``ensure`` says they stay the same.
    """
    result: list[Placement] = []
    first: dict[int, Placement] = {}
    apart: set[int] = set()
    for place in sorted(words, key=lambda p: p.site.kind != "embedding"):
        known = first.setdefault(id(weight_of(place.target.layer)), place)
        if known is place or known.config.token_indices != place.config.token_indices:
            result.append(place)
        else:
            result.append(_twin(known, place.target))
        if known.config.token_indices != place.config.token_indices:
            apart.add(id(weight_of(place.target.layer)))
            if ensure:
                raise ValueError("Cannot ensure weight tying when different token indices are specified for tied layers. Conflicting layers: "
                                 f"{known.target.path}: {known.config.token_indices}, {place.target.path}: {place.config.token_indices}.")
    taken = {p.target.path for p in result} | saved
    for path, module in modules(model):
        known = first.get(id(weight_of(module)))
        if known is not None and path not in taken and id(weight_of(module)) not in apart:
            result += [_twin(known, target) for target in on_module(path, module)]
    return result


def tied_modules(model: nn.Module, saved: Sequence[Placement]) -> list[Placement]:
    """Modules learned whole, and the same copy wherever else their weight is used. What comes first brings the others (PEFT's rule)."""
    by_path, known = {p.target.path: p for p in saved}, dict(modules(model))
    for first, *others in shared_weights(model):
        config = next((by_path[path].config for path in (first, *others) if path in by_path), None)
        if config is not None:
            for path in (first, *others):
                target = whole_target(path, known[path], "modules_to_save", SavedModule)
                law, twin = (SAVED, "") if path == first else (mixed(TiedModule, SAVED), first)
                by_path.pop(path, None)
                by_path[path] = Placement(target, law, config, target.site, twin)
    return list(by_path.values())


def tied_adapters(model: nn.Module, placed: Sequence[Placement]) -> list[Placement]:
    """An adapter's layers, with the same change at every other layer of the same weight, whichever of them was named.

    Raises `UnsupportedLayer` if the method has no low-rank form, which alone can be turned round.
    """
    by_path, known = {p.target.path: p for p in placed}, dict(modules(model))
    for first, *others in shared_weights(model):
        named = next((by_path[path] for path in (first, *others) if path in by_path), None)
        if named is None:
            continue
        if not hasattr(named.method, "from_factors"):
            raise UnsupportedLayer(f"{named.method.title} cannot be tied between {first} and {others[0]}.", "Only LoRA without variants can.",
                                   "Switch `ensure_weight_tying` off.")
        for path in (first, *others):
            target, = on_module(path, known[path])
            if path == first:
                by_path.setdefault(path, Placement(target, named.method, named.config, target.site))
            else:
                law = mixed(Mirrored if target.site.kind != by_path[first].site.kind else Tied, named.method)
                by_path.pop(path, None)
                by_path[path] = Placement(target, law, named.config, replace(target.site, peers=(by_path[first].site,)), first)
    return list(by_path.values())


def _twin(place: Placement, target: Target) -> Placement:
    return Placement(target, mixed(Tied, place.method), place.config, target.site, twin=place.target.path)
