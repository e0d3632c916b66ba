"""Adapters that a `PeftModel` has left in its base, when another one is made of the same base without `unload`.

PEFT lets both share the layers, so that neither knows what is heard. Here the base is plain again before the new one's first adapter comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from torch import nn

from engine.hosts.adapted import Adapted
from engine.hosts.parameter import AdaptedParameter
from engine.hosts.replaced import Replaced
from engine.model.targets import modules

if TYPE_CHECKING:
    from engine.model.tuner import Tuner


def clear_abandoned(model: nn.Module, tuner: type["Tuner"], failing: ExitStack) -> None:
    """Put plain layers back where others' adapters are; when ``failing`` closes, everything is as before.

    Args:
        tuner: the class of what steers adapters: below one that is part of ``model`` nothing is abandoned.
    """
    for path, layer in list(_abandoned(model, tuner)):
        merged = layer._stack.merged
        layer.unmerge()
        layer.leave(model, path)
        failing.callback(layer.merge, merged)
        failing.callback(layer.enter, model, path)
    for hooks in (model._forward_pre_hooks, model._forward_hooks):         # X-LoRA's second look
        for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), tuner)]:
            failing.callback(hooks.__setitem__, key, hooks.pop(key))


def _abandoned(model: nn.Module, tuner: type["Tuner"]) -> Iterator[tuple[str, Adapted | Replaced]]:
    """(path as its tuner had it, layer) of every wrapped layer that no tuner within ``model`` steers."""
    inside: list[str] = []
    for path, layer in modules(model):
        inside += [f"{path}."] if isinstance(layer, tuner) else []
        if path.startswith(tuple(inside)):
            continue
        while isinstance(layer, AdaptedParameter):
            yield f"{path}.{layer.host.name}", layer
            layer = layer.base_layer
        if isinstance(layer, (Adapted, Replaced)):
            yield path, layer
