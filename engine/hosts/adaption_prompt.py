"""An attention that also looks at learned tokens, of every adapter that is heard.

How the families compute queries, keys and values is all that is known of them here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.hosts.shelves import Shelves
from engine.hosts.stack import LiveStack
from engine.methods.adaption_prompt import GATE, METHOD, TOKENS


class Llama:
    """Separate projections and rotated queries; what is seen goes through the output projection."""

    attention = "self_attn"

    def weight(self, attention: nn.Module) -> Tensor:
        return attention.q_proj.weight

    def width(self, attention: nn.Module) -> int:
        return attention.q_proj.in_features

    def query(self, attention: nn.Module, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        """``(batch, heads, T, d)``, turned to its places as the attention itself turns it."""
        query = _heads(attention.q_proj(hidden), attention.head_dim)
        cos, sin = (t.unsqueeze(1) for t in call["position_embeddings"])
        first, second = query.chunk(2, dim=-1)
        return query * cos + torch.cat((-second, first), dim=-1) * sin

    def key_value(self, attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _heads(attention.k_proj(tokens), attention.head_dim), _heads(attention.v_proj(tokens), attention.head_dim)

    def output(self, attention: nn.Module, seen: Tensor) -> Tensor:
        """The bias is in the attention's own output already."""
        bias = attention.o_proj.bias
        return attention.o_proj(seen) if bias is None else attention.o_proj(seen) - bias


class GPT2:
    """One projection for all three; what is seen is added as it is."""

    attention = "attn"

    def weight(self, attention: nn.Module) -> Tensor:
        return attention.c_attn.weight

    def width(self, attention: nn.Module) -> int:
        return attention.embed_dim

    def query(self, attention: nn.Module, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        return _heads(attention.c_attn(hidden).split(attention.split_size, dim=2)[0], attention.head_dim)

    def key_value(self, attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
        _, key, value = attention.c_attn(tokens).split(attention.split_size, dim=2)
        return _heads(key, attention.head_dim), _heads(value, attention.head_dim)

    def output(self, attention: nn.Module, seen: Tensor) -> Tensor:
        return seen


FAMILIES = {"llama": Llama(), "mistral": Llama(), "gpt2": GPT2()}          # by model_type


class LookingAttention(Shelves):
    """Stands in the place of the attention ``model`` (PEFT: ``AdaptedAttention``); without a heard adapter it is that attention."""

    _own = frozenset({"model"})

    def __init__(self, attention: nn.Module, family: Llama | GPT2, stack: LiveStack):
        super().__init__()
        self.model, self._family, self._stack = attention, family, stack

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, *rest = self.model(*args, **kwargs)
        heard = [name for name in self._stack.heard() if TOKENS in self._modules and name in self._modules[TOKENS]]
        if not heard:
            return output, *rest
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        query = self._family.query(self.model, hidden, kwargs)
        for name in heard:
            p = self.tensors(name)
            key, value = self._family.key_value(self.model, p[TOKENS])
            seen = METHOD.looked_at(query, key, value, self._stack.strength(name) * p[GATE])
            output = output + self._family.output(self.model, seen).to(output.dtype)
        return output, *rest


def _heads(x: Tensor, width: int) -> Tensor:
    """``(batch, T, heads · d)`` → ``(batch, heads, T, d)``."""
    return x.unflatten(2, (-1, width)).transpose(1, 2)

