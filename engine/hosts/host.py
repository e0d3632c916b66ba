"""How an adapter sits on a kind of layer: the only place that knows a layer's weight layout and forward.

One file a kind of layer; `host_of` finds the right one. A host has no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import ClassVar

from torch import Tensor, nn

from engine.law import Site


class Layout(ABC):
    """Reads and writes a weight. "Canonical" is the matrix that `Site` describes."""

    packed: ClassVar[bool] = False         # the weight takes less memory than as numbers: it is never kept as such only to run it

    @abstractmethod
    def site(self, path: str, layer: nn.Module) -> Site:
        """Describe the layer's weight."""

    def weight(self, layer: nn.Module) -> Tensor:
        """The layer's weight in its own layout, as numbers (a quantized layer's is made readable)."""
        return layer.weight

    def like(self, layer: nn.Module) -> Tensor:
        """A tensor of the weight's number format on its device, maybe without values, where nothing has to be made readable for that."""
        return self.weight(layer)

    def bias_of(self, layer: nn.Module) -> Tensor | None:
        """The bias that goes with it ``(out,)``."""
        return getattr(layer, "bias", None)

    def put(self, layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        """Let these stand in the layer."""
        layer.weight = weight
        if bias is not None or self.bias_of(layer) is not None:             # an embedding has not even a place for one
            layer.bias = bias

    def names(self, path: str) -> tuple[str, str]:
        """What weight and bias of the layer at ``path`` are called in the model."""
        return f"{path}.weight", f"{path}.bias"

    @abstractmethod
    def canonical(self, weight: Tensor) -> Tensor:
        """Native layout → canonical ``(out, columns)``; a view where possible."""

    @abstractmethod
    def native(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Canonical → native layout of ``like`` (shape only; dtype is kept)."""

    def alike(self, W: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Two canonical matrices in one shape, where a method's ΔW is wider than the weight (see `ConvHost`)."""
        return W, change


class Host(Layout):
    """Knows a kind of layer: the layout of its weight, and how to run it with another one."""

    layers: ClassVar[tuple[type[nn.Module], ...]]

    @abstractmethod
    def project(self, layer: nn.Module, x: Tensor, A: Tensor) -> Tensor:
        """The inner half of a low-rank path: input ``x`` through A ``(rank, columns)`` → rank channels, where the output has its channels."""

    @abstractmethod
    def expand(self, layer: nn.Module, h: Tensor, B: Tensor) -> Tensor:
        """The outer half: rank channels through B ``(out, rank)`` → output channels."""

    @abstractmethod
    def run(self, layer: nn.Module, x: Tensor, matrix: Tensor) -> Tensor:
        """The layer's forward, without bias, with the canonical ``matrix`` instead of its weight (for deltas without factors)."""

    def per_output(self, y: Tensor, gains: Tensor) -> Tensor:
        """Multiply each channel of ``y`` by its entry of ``gains`` ``(channels,)``."""
        return y * gains

    def on_outputs(self, y: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Let ``change`` see the output's channels as the last dimension."""
        return change(y)

    def bias(self, y: Tensor, bias: Tensor) -> Tensor:
        """Add ``bias`` ``(out,)`` along the output's channel dimension."""
        return y + bias


@cache
def _hosts() -> tuple[Host, ...]:
    from engine.hosts.conv import ConvHost
    from engine.hosts.embedding import EmbeddingHost
    from engine.hosts.linear import LinearHost, TransposedLinearHost

    return LinearHost(), TransposedLinearHost(), ConvHost(), EmbeddingHost()


def host_of(layer: nn.Module) -> Host | None:
    """The host for this layer, or None if no adapter can sit on it."""
    from engine.hosts.quantized.host import quantized_host

    return quantized_host(layer) or next((host for host in _hosts() if isinstance(layer, host.layers)), None)
