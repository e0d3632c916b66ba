"""A quantized layer with adapters. Merging never touches its bytes: another layer stands in its place until it is unmerged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from engine.hosts.adapted import Adapted
from engine.hosts.quantized.host import Widened


class AdaptedQuantized(Adapted):
    """Wraps a quantized ``base_layer``; see `Adapted`."""

    @property
    def pristine(self) -> nn.Module:
        """The quantized layer itself, whatever is merged."""
        return self.base_layer if self._kept is None else self._kept[0]

    @property
    def pristine_weight(self) -> Tensor:
        """W0 as numbers, in float32: a new tensor each time."""
        return self._host.weight(self.pristine)

    @property
    def pristine_bias(self) -> Tensor | None:
        return self._host.bias_of(self.pristine)

    @property
    def like(self) -> Tensor:
        return self._host.like(self.base_layer)

    @property
    def runner(self) -> Callable[..., Tensor]:
        return self.base_layer if self._kept is not None else partial(self._host.backend.run, self.base_layer)

    def merge(self, names: Iterable[str]) -> None:
        """Let a layer in the number format of before the quantization stand in for the quantized one."""
        self._stand_in(names, lambda weight, bias: Widened(weight.to(self._host.backend.dtype(self.pristine)), bias))

    def requantize(self, names: Iterable[str]) -> None:
        """As `merge`, but in the quantized format, with the error that `requantization_error` tells. Raises `UnsupportedLayer`."""
        self._stand_in(names, self._written)

    def _written(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        layer = self._host.backend.write(self.pristine, weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer

    def _stand_in(self, names: Iterable[str], made: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
        names = [name for name in names if name in self.tenants]
        if not names:
            return
        weight, bias = self.compose_both(names=names)
        layer = made(weight, None if bias is None else bias.clone())
        layer.train(self.pristine.training)
        if self._kept is None:
            self._kept = (self.base_layer,)
        self.base_layer = layer

    def unmerge(self) -> None:
        """Put the quantized layer back: it is the same object that was there before."""
        if self._kept is not None:
            self.base_layer, = self._kept
            self._kept = None

    @torch.no_grad()
    def requantization_error(self, names: Iterable[str]) -> tuple[float, float]:
        """(‖Q(W) − W‖, ‖W − W0‖) of the merged weight W: what writing it into the quantized format loses, and what the adapters change."""
        W, _ = self.compose_both(names=names)
        written = self._host.backend.weight(self._host.backend.write(self.pristine, W))
        return float((written - W).norm()), float((W - self.pristine_weight).norm())

    def _move_kept(self, fn: Callable) -> None:
        self._kept[0]._apply(fn)
