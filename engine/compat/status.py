"""`get_layer_status` and `get_model_status`: what adapters do, layer by layer and altogether."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from engine.compat.direct import tuner_of
from engine.hosts.adapted import Adapted
from engine.model.kbit import quantization_backend

Irregular = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One layer (PEFT class of the same name)."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None = None


@dataclass
class TunerModelStatus:
    """The whole model (PEFT class of the same name)."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]] = field(default_factory=dict)
    quantization_backend: str | None = None


def _alike(values: Iterable[Any]) -> Any:
    found = {repr(v): v for v in values}
    return next(iter(found.values())) if len(found) == 1 else "irregular"


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """One entry a layer. Raises `TypeError` for a model whose adapters sit on no layers."""
    tuner = tuner_of(model)
    if tuner is None:
        raise TypeError("get_layer_status() only works on models that have adapter layers.")
    return [_layer(path, layer) for path, layer in tuner.layers.items()]


def _layer(path: str, layer: Adapted) -> TunerLayerStatus:
    tensors = {name: layer.tensors(name) for name in layer.tenants}
    trains = {name: _alike(t.requires_grad for k, t in found.items() if layer.tenants[name].method.tensors(
        layer.tenants[name].config, layer.tenants[name].site)[k].trainable) for name, found in tensors.items() if found}
    devices = {name: sorted({t.device.type for t in found.values()}) for name, found in tensors.items()}
    return TunerLayerStatus(f"model.{path}", layer._get_name(), layer._stack.enabled, list(layer._stack.names), layer.merged_adapters, trains,
                            sorted(layer.tenants), devices, quantization_backend(getattr(layer, "pristine", layer.bare)))


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """All layers together; ``"irregular"`` where they disagree. Raises `TypeError` as `get_layer_status`."""
    layers, tuner = get_layer_status(model), tuner_of(model)
    names = sorted({name for layer in layers for name in layer.available_adapters})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return TunerModelStatus(
        type(tuner.model).__name__, tuner.peft_kind, {n: str(getattr(c.peft_type, "value", c.peft_type)) for n, c in tuner.peft_config.items()},
        trained, sum(p.numel() for p in model.parameters()), len(layers), _alike(layer.enabled for layer in layers),
        _alike(layer.active_adapters for layer in layers), list(tuner.stack.merged),
        {n: _alike(layer.requires_grad[n] for layer in layers if n in layer.requires_grad) for n in names}, names,
        {n: sorted({d for layer in layers for d in layer.devices.get(n, ())}) for n in names},
        _alike(layer.quantization_backend for layer in layers))
