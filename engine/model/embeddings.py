"""Embeddings of the base that travel with an adapter: written beside it where they are asked for, and heard with it where it is loaded.

PEFT writes them over the base. Here the base stays as it is: what the file has instead is a part of the adapter, with its strength.
"""

from __future__ import annotations

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
from engine.hosts.beside import SAVED, OwnWeight, mixed
from engine.model.inject import Placement
from engine.model.targets import modules, whole_target
from engine.model.tying import tied_modules, weight_of
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
    found: dict[str, Tensor] = {}
    for path, layer in _embeddings(tuner.model).items():
        weight = weight_of(layer)
        if isinstance(layer, Replaced) and name in layer.tenants or any(weight is other for other in found.values()):
            continue
        found[f"{path}.base_layer.weight" if isinstance(layer, Adapted) and name in layer.tenants else f"{path}.weight"] = weight
    return found


def _embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by which words enter and leave a model of the transformers library, by path; of other models none."""
    ends = [ask() for ask in (getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None)) if ask is not None]
    return {path: module for path, module in modules(model) if any(module is end for end in ends)}


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
    placed, at = list(placed), {p.target.path: i for i, p in enumerate(placed)}
    ends = _embeddings(model)
    whole: list[Placement] = []
    needless: list[str] = []
    for key in file:
        path, name = split(key, {f"{p}.base_layer" for p in ends} | ends.keys()) or ("", "")
        path = path.removesuffix(".base_layer")
        if name != "weight" or path not in ends or (weight := weight_of(ends[path])) is None or weight.is_meta:
            continue
        learned = path in at and (placed[at[path]].target.site.leaves or isinstance(placed[at[path]].method, MapMethod))     # whole
        if not learned and _same(file[key], weight):
            needless.append(key)
        elif path not in at:
            target = whole_target(path, ends[path], "An embedding in the adapter's file", SavedModule)
            whole.append(Placement(target, SAVED, config, target.site))
        elif not learned:
            placed[at[path]] = replace(placed[at[path]], method=mixed(OwnWeight, placed[at[path]].method))
    return placed + [p for p in tied_modules(model, whole) if p.target.path not in at], needless


def _same(tensor: Tensor, weight: Tensor) -> bool:
    return weight.shape == tensor.shape and torch.equal(weight.detach().cpu().to(tensor.dtype), tensor)
