"""A block of a model beside which a shadow runs, and the cache of the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from engine.hosts.shelves import Shelves
from engine.hosts.stack import LiveStack
from engine.methods.shadow import METHOD, ShadowConfig


@dataclass
class ShadowState:
    """What the blocks of one pass share: which adapter is heard, and the shadow's state ``(batch, seq, width)``; None outside of a pass."""

    stack: LiveStack
    name: str = ""
    config: ShadowConfig | None = None
    now: Tensor | None = None


class ShadowBlock(Shelves):
    """Stands in the place of a block (PEFT: ``ShadowLayer``); outside of a pass with a shadow it is that block."""

    _own = frozenset({"base_layer"})

    def __init__(self, block: nn.Module, state: ShadowState):
        super().__init__()
        self.base_layer, self._state = block, state
        self.train(block.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        state = self._state
        if state.now is None or not (p := self.tensors(state.name)):
            return self.base_layer(*args, **kwargs)
        hidden, *rest = args if args else (kwargs.pop("hidden_states"),)
        if hidden.shape[:-1] != state.now.shape[:-1]:
            raise ValueError(f"Shadow state sequence shape {tuple(state.now.shape[:-1])} does not match base hidden states "
                             f"{tuple(hidden.shape[:-1])}: a cache must be the one that the last pass gave out.")
        seen = METHOD.feed_back(p, state.config, hidden, state.now, state.stack.strength(state.name), self.training)
        output = self.base_layer(seen, *rest, **kwargs)
        state.now = METHOD.update(p, output[0] if isinstance(output, tuple) else output, state.now)
        return output


class PairedCache(Cache):
    """The model's cache and the shadow's (PEFT: ``ShadowCache``). It is the model's wherever only one can be meant."""

    def __init__(self, base: Cache, shadow: Cache | None):
        self.base, self.shadow = base, shadow                 # no `super().__init__`: its layers are those of `base`

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["base"], name)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.update(*args, **kwargs)

    def _both(self, name: str, *args: Any) -> None:
        for cache in (self.base, self.shadow):
            if cache is not None:
                getattr(cache, name)(*args)

    def reset(self) -> None:
        self._both("reset")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._both("reorder_cache", beam_idx)

    def crop(self, max_length: int) -> None:
        self._both("crop", max_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._both("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._both("batch_select_indices", indices)
