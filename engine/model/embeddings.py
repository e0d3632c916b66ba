"""Embeddings of the base that travel with an adapter: written beside it where they are asked for, and heard with it where it is loaded.

PEFT writes them over the base. Here the base stays as it is: what the file has instead is a part of the adapter, with its strength.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.checkpoint.keys import split
from engine.errors import BadModel
from engine.hosts.adapted import Adapted
from engine.hosts.replaced import Replaced, SavedModule
from engine.law import MapMethod, PeftConfig
from engine.hosts.beside import SAVED, STILL, OwnWeight, PlainWeight, TiedWeight, mixed
from engine.model.inject import Placement
from engine.model.targets import modules, on_module, whole_target
from engine.model.tying import shared_weights, tied_modules, weight_of
from engine.store.library import read_json

if TYPE_CHECKING:
    from engine.model.lone import LoneTuner
    from engine.model.tuner import Tuner


# --- writing ---

def embeddings_to_save(tuner: "Tuner | LoneTuner", name: str, wanted: bool | str) -> dict[str, Tensor]:
    """Path in the file, tensor's name included → the base's embeddings, unless the adapter has learned them whole anyway.

    Args:
        wanted: as ``save_embedding_layers`` of `PeftModel.save_pretrained`.
    """
    if not (wanted if wanted != "auto" else _resized(tuner.model, tuner.peft_config[name])):
        return {}
    if not (embeddings := _embeddings(tuner.model)):
        warnings.warn("Could not identify embedding layer(s) because the model is not a 🤗 transformers model.", stacklevel=2)
    found: dict[str, Tensor] = {}
    for path, layer in embeddings.items():
        weight = weight_of(layer)
        if isinstance(layer, Replaced) and name in layer.tenants or any(weight is other for other in found.values()):
            continue
        found[f"{path}.base_layer.weight" if isinstance(layer, Adapted) and name in layer.tenants else f"{path}.weight"] = weight
    return found


def _embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by which words enter and leave a model of the transformers library, by path; of other models none."""
    ends = [ask() for ask in (getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None)) if ask is not None]
    known = {id(end) for end in ends}
    return {path: module for path, module in modules(model) if id(module) in known}


def _resized(model: nn.Module, config: PeftConfig) -> bool:
    """Whether the vocabulary is another one than in the base's own files; False where these are not on this computer."""
    path, now = Path(config.base_model_name_or_path or "") / "config.json", getattr(getattr(model, "config", None), "vocab_size", None)
    if not config.base_model_name_or_path or not path.is_file() or now is None:
        return False
    return read_json(path, BadModel).get("vocab_size", now) != now


# --- reading ---

def with_embeddings(model: nn.Module, placed: Sequence[Placement], file: Mapping[str, Tensor],
                    config: PeftConfig) -> tuple[list[Placement], list[str]]:
    """The placements, with those that hear the embeddings that an adapter's file has; and the file's keys that need no place.

    These are what is the same in the base, as it mostly is: then only the file is larger than it had to be.
    """
    own = tuple({p.method.prefix for p in placed})
    strange = [key for key in file if key.endswith(".weight") and not key.removesuffix(".weight").rpartition(".")[2].startswith(own)]
    if not strange:
        return list(placed), []
    at = {p.target.path: p for p in placed}
    ends = _embeddings(model)
    changed: list[str] = []
    needless: list[str] = []
    for key in strange:
        path, name = split(key, {f"{p}.base_layer" for p in ends} | ends.keys()) or ("", "")
        path = path.removesuffix(".base_layer")
        if name != "weight" or path not in ends or (weight := weight_of(ends[path])) is None or weight.is_meta or _learned(at.get(path)):
            continue
        if _same(file[key], weight):
            needless.append(key)
        else:
            changed.append(path)
    return (_heard(model, placed, changed, config) if changed else list(placed)), needless


def _learned(place: Placement | None) -> bool:
    """Whether an adapter has the whole layer, or turns it: then no other weight is for it to bring along."""
    return place is not None and bool(place.target.site.leaves or isinstance(place.method, MapMethod))


def _heard(model: nn.Module, placed: Sequence[Placement], changed: Sequence[str], config: PeftConfig) -> list[Placement]:
    """The placements, with what hears the other weights of these layers and of all that share them."""
    at, sharing, known = {p.target.path: p for p in placed}, shared_weights(model), dict(modules(model))
    whole: list[Placement] = []
    for path in changed:
        group = [path, *(other for group in sharing if path in group for other in group if other not in changed)]
        if not any(other in at and not _learned(at[other]) for other in group):
            target = whole_target(path, known[path], "An embedding in the adapter's file", SavedModule)
            whole.append(Placement(target, SAVED, config, target.site))
            continue
        for other in group:                # the layer that has the tensor comes first
            if (place := at.pop(other, None)) is None:
                target, = on_module(other, known[other])
                place, own = Placement(target, STILL, config, target.site), PlainWeight
            else:
                own = OwnWeight
            if other == path:
                at[other] = replace(place, method=mixed(own, place.method))
            else:
                follows = not _learned(place) and place.twin in ("", path)
                at[other] = replace(place, method=mixed(TiedWeight, place.method), twin=path) if follows else place
    return [*at.values(), *(p for p in tied_modules(model, whole) if p.target.path not in at)]


def _same(tensor: Tensor, weight: Tensor) -> bool:
    return weight.shape == tensor.shape and torch.equal(weight.detach().cpu().to(tensor.dtype), tensor)
