"""Layer replication: a model's blocks in another order and number, sharing their weights, so that adapters can tell the copies apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

_PLACES = ("layers", "encoder.layer", "h")                    # Llama's and its relatives', Bert's, Falcon's and GPT-2's


def replicate_layers(model: nn.Module, layer_map: Sequence[Sequence[int]]) -> Callable[[], None]:
    """Replace the blocks by those of ``[[start, end], …]``, ends exclusive: ``[[0, 4], [2, 5]]`` makes 0 1 2 3 2 3 4 (PEFT function).

    Copies share every parameter and buffer with their original. Returns a function that puts everything back.

    Raises:
        ValueError: the model keeps its blocks in none of the usual places, or has fewer than the map names.
    """
    inner, place = _find(model)
    blocks = _at(inner, place)
    chosen = [i for start, end in layer_map for i in range(start, end)]
    if not chosen or not 0 <= min(chosen) <= max(chosen) < len(blocks):
        raise ValueError(f"`layer_replication` names the blocks {sorted(set(chosen))}, but the model has {len(blocks)}, numbered from 0.")
    copies = nn.ModuleList(_sharing_copy(blocks[i]) for i in chosen)
    for number, block in enumerate(copies):
        for module in block.modules():
            if hasattr(module, "layer_idx"):                  # where transformers keeps the place in its cache
                module.layer_idx = number
    parent, _, leaf = place.rpartition(".")
    home, config = inner.get_submodule(parent), getattr(inner, "config", None)
    depth, kinds = getattr(config, "num_hidden_layers", None), getattr(config, "layer_types", None)      # of attention, block by block

    def put(modules: nn.ModuleList, number: int | None, kinds: list[str] | None) -> None:
        setattr(home, leaf, modules)
        if kinds is not None:
            config.layer_types = kinds
        if depth is not None:
            config.num_hidden_layers = number

    put(copies, len(copies), None if kinds is None else [kinds[i] for i in chosen])
    return lambda: put(blocks, depth, kinds)


def part(model: nn.Module) -> None:
    """Give each copy of a block tensors of its own, as a merged model has them: shared ones could not be saved."""
    inner, place = _find(model)
    seen: set[int] = set()
    for module in _at(inner, place).modules():
        for name, tensor in ((name, tensor) for name, tensor in module._parameters.items() if tensor is not None):
            if (address := tensor.data_ptr()) in seen and not tensor.is_meta:
                module._parameters[name] = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
            seen.add(address)


def _find(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that has the blocks, and what it calls them."""
    inner = model
    while hasattr(inner, "model"):
        inner = inner.model
    inner = getattr(inner, "bert", inner)
    place = next((place for place in _PLACES if _at(inner, place) is not None), None)
    if place is None:
        raise ValueError("Could not locate the layers attribute in the model. Expected Llama, Bert or Falcon compatible architectures.")
    return inner, place


def _at(model: nn.Module, place: str) -> nn.ModuleList | None:
    for name in place.split("."):
        model = getattr(model, name, None)
    return model if isinstance(model, nn.ModuleList) else None


def _sharing_copy(block: nn.Module) -> nn.Module:
    """A copy of the modules with the very same parameters and buffers."""
    kept = {id(tensor): tensor for tensors in (block.parameters(), block.buffers()) for tensor in tensors}
    return copy.deepcopy(block, memo=kept)
