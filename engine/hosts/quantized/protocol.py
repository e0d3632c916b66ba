"""What has to be known of a quantized layer, whoever quantized it: read its weight, run it, write another weight in its format.

One file a package. None of them is imported before a layer of its kind is met: a layer tells by the names of its classes what it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.errors import UnsupportedLayer

UNITS = 1024                               # unit vectors at a time


class Backend(ABC):
    """One way of storing a linear layer's weight in fewer bits. Stateless. Nothing here changes the layer that it is given, but `settle`.

    (PEFT class ``QuantizationBackend``.)
    """

    name: ClassVar[str]                    # as PEFT's status functions call it
    layers: ClassVar[frozenset[tuple[str, str]]] = frozenset()    # (package, name of the layer's class or of one it inherits from)
    tensors: ClassVar[frozenset[tuple[str, str]]] = frozenset()   # the same of the weight's class, where the layer is an ordinary one

    # --- the protocol ---

    @torch.no_grad()
    def weight(self, layer: nn.Module) -> Tensor:
        """The weight as numbers ``(out, in)``: a new float32 tensor, as exact as what is stored.

        Where a package has no way to read it, the layer tells: what it makes of the unit vectors is its weight.
        """
        (out, columns), dtype, device = self.size(layer), self.dtype(layer), self.device(layer)
        bias, W = getattr(layer, "bias", None), torch.empty(out, columns, device=device)
        for start in range(0, columns, UNITS):
            part = slice(start, min(start + UNITS, columns))
            units = torch.zeros(part.stop - start, columns, dtype=dtype, device=device)
            units[:, part].fill_diagonal_(1)
            seen = layer(units).float()
            W[:, part] = (seen if bias is None else seen - bias.float()).T
        return W

    def run(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's own output, through its own kernel; differentiable with respect to ``x`` in any mode."""
        return layer(x, *args, **kwargs)

    def write(self, layer: nn.Module, W: Tensor) -> nn.Module:
        """A new layer like this one that holds ``W`` ``(out, in)`` in the same format. Raises `UnsupportedLayer` if that cannot be done."""
        raise UnsupportedLayer(f"Nothing can be written into a {self.name} layer.", "Its format is made from data, by a program of its own.",
                               "Merge without `requantize`: the merged layer is then kept in 16 bits.")

    # --- what is cheap to know ---

    def knows(self, kind: type) -> bool:
        """Whether layers of this class are its."""
        return _inherits(kind, self.layers)

    def size(self, layer: nn.Module) -> tuple[int, int]:
        """(out, in) of the weight."""
        return layer.out_features, layer.in_features

    @abstractmethod
    def dtype(self, layer: nn.Module) -> torch.dtype:
        """The number format of the weight before it was quantized, which a merged one takes again."""

    def device(self, layer: nn.Module) -> torch.device:
        """Where the weight lies."""
        return next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))

    def settle(self, layer: nn.Module, model: nn.Module) -> None:
        """Keep the layer from changing its own weight as it runs, and note what only the whole model knows of it."""


def _inherits(kind: type, known: frozenset[tuple[str, str]]) -> bool:
    return any((c.__module__.partition(".")[0], c.__name__) in known for c in kind.__mro__)


_FILES = ("bitsandbytes", "hqq", "torchao", "gptqmodel", "others")


@cache
def _backends() -> tuple[Backend, ...]:
    return tuple(backend for file in _FILES for backend in import_module(f"engine.hosts.quantized.{file}").BACKENDS)


@cache
def _of_layer(kind: type) -> Backend | None:
    return next((backend for backend in _backends() if backend.knows(kind)), None)


@cache
def _of_tensor(kind: type) -> Backend | None:
    return next((backend for backend in _backends() if _inherits(kind, backend.tensors)), None)


def backend_of(layer: nn.Module) -> Backend | None:
    """What knows this quantized layer, or None if it is not quantized. Imports nobody's package."""
    found = _of_layer(type(layer))
    if found is None and isinstance(layer, nn.Linear):
        weight = layer._parameters.get("weight")
        found = None if weight is None or type(weight) is nn.Parameter else _of_tensor(type(weight))
    return found


def settle(model: nn.Module) -> None:
    """Keep all quantized layers of a model from changing their own weights as they run; see `Backend.settle`. Costs one look at each module."""
    for layer in model.modules():
        if (backend := backend_of(layer)) is not None:
            backend.settle(layer, model)


def number_format(model: nn.Module) -> torch.dtype:
    """What the model was made in: by its description, for its norms may have been brought to float32 since then."""
    told = getattr(getattr(model, "config", None), "dtype", None)
    if isinstance(told, torch.dtype) and told.is_floating_point:
        return told
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
