"""Layers whose tensors `accelerate` keeps elsewhere, in main memory or on the disk, while they do not run (``device_map``, ``cpu_offload``).

Their parameters hold nothing then, and whoever computes with them gets whatever lies in memory: so they are fetched for that moment.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

HOOK = "_hf_hook"


def away(module: nn.Module) -> list[nn.Module]:
    """The modules in it whose tensors are elsewhere now."""
    return [m for m in module.modules() if _hook(m) is not None and any(p is not None and p.is_meta for p in m._parameters.values())]


@contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Inside the block all tensors in ``module`` are here, and stay when one of its modules has run."""
    found = away(module)
    forwards = [m.__dict__.pop("forward", None) for m in found]
    try:
        for m in found:
            _hook(m).pre_forward(m)
        yield
    finally:
        for m, forward in zip(found, forwards, strict=True):
            _hook(m).post_forward(m, None)
            if forward is not None:
                m.__dict__["forward"] = forward


def here(module: nn.Module, read: Callable[[nn.Module], Tensor | None]) -> Tensor | None:
    """What ``read`` gives of ``module``, fetched if it is elsewhere."""
    found = read(module)
    if found is None or not found.is_meta:
        return found
    with fetched(module):
        return read(module)


def keep_elsewhere(module: nn.Module, tensors: Mapping[str, Tensor | None] | None) -> None:
    """Let these be what is fetched for ``module`` from now on; None: its own ones again."""
    if (hook := _hook(module)) is not None:
        own = hook.weights_map.maps[-1] if isinstance(hook.weights_map, ChainMap) else hook.weights_map
        hook.weights_map = own if tensors is None else ChainMap({name: t.detach() for name, t in tensors.items() if t is not None}, own)


def _hook(module: nn.Module) -> Any:
    hook = module.__dict__.get(HOOK)
    return hook if getattr(hook, "offload", False) else None
