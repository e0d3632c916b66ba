"""`get_layer_status` and `get_model_status`: what adapters do, layer by layer and altogether; also for prompts, adaption prompts and mixes.

Unlike PEFT, which refuses those. A prompt counts as one layer, called ``prompt_encoder``; an adaption prompt as one for each attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from engine.hosts.adapted import Adapted
from engine.hosts.adaption_prompt import LookingAttention
from engine.hosts.replaced import Replaced
from engine.hosts.stack import LiveStack
from engine.law import PeftConfig
from engine.model.kbit import quantization_backend
from engine.model.lone import LoneTuner
from engine.model.tuner import AT, tuner_of

Irregular = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One layer (PEFT class of the same name).

    Attributes:
        name: its path, beginning with ``model.``, or with nothing where the model was injected into.
        module_type: kind of adapter and of layer, e.g. ``lora.Linear``.
        enabled: whether adapters are switched on. active_adapters: the stack, in order. merged_adapters: those in the weights.
        requires_grad: adapter → whether its tensors here train. available_adapters: names of all adapters that are here.
        devices: adapter → kinds of device. quantization_backend: of the base's weight, e.g. ``bnb 4bit``; None if it is not quantized.
        strengths: active adapter → how strongly it is heard (not in PEFT).
    """

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None = None
    strengths: dict[str, float] = field(default_factory=dict)


@dataclass
class TunerModelStatus:
    """The whole model (PEFT class of the same name); ``"irregular"`` where layers disagree.

    Attributes:
        base_model_type: class of the base. adapter_model_type: PEFT's name for what holds adapters of this kind (``LoraModel``,
            ``MixedModel``; ``None`` where the model was injected into). peft_types: adapter → kind.
        trainable_params, total_params, num_adapter_layers: counts. The others are as in `TunerLayerStatus`.
    """

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
    quantization_backend: str | None | Irregular = None
    strengths: dict[str, float] = field(default_factory=dict)


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """What each layer holds (PEFT function of the same name).

    Args:
        model: a `PeftModel` of any kind, a mix, or a model that was injected into.

    Raises:
        ValueError: it has no adapters.
    """
    tuner = tuner_of(model)
    if tuner is None or not tuner.peft_config:
        raise ValueError("No adapter layers found in the model, please ensure that it's a PEFT model or that you have PEFT adapters "
                         "injected in the model.")
    start = "model." if AT not in model.__dict__ else ""
    layers = [_layer(f"{start}{path}", layer) for path, layer in tuner.layers.items()]
    return [*_lone(tuner), *layers] if isinstance(tuner, LoneTuner) else layers


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """All layers together (PEFT function of the same name). Arguments and errors as of `get_layer_status`."""
    from engine.model.peft_model import count_parameters

    layers, tuner = get_layer_status(model), tuner_of(model)
    trained, total = count_parameters(model)
    injected = AT in model.__dict__
    names = sorted({name for layer in layers for name in layer.available_adapters})
    return TunerModelStatus(
        _kind_of_base(tuner.model, injected), "None" if injected else _kind_of_tuner(tuner.peft_config), _kinds(tuner.peft_config), trained, total,
        len(layers), _alike(layer.enabled for layer in layers), _alike(layer.active_adapters for layer in layers), _merged(layers),
        {n: _alike(layer.requires_grad[n] for layer in layers if n in layer.requires_grad) for n in names}, names,
        {n: sorted({d for layer in layers for d in layer.devices.get(n, ())}) for n in names},
        _alike(layer.quantization_backend for layer in layers), dict(tuner.stack.entries))


# --- parts ---

def _layer(path: str, layer: Adapted | Replaced) -> TunerLayerStatus:
    learn = {name: [t for key, t in layer.tensors(name).items()
                    if tenant.method.tensors(tenant.config, tenant.site)[key].trainable] for name, tenant in layer.tenants.items()}
    here = {name: [*layer.tensors(name).values()] for name in layer.tenants}
    kind = next((type_of(tenant.config).lower() for tenant in layer.tenants.values()), "peft")
    return _status(path, f"{kind}.{type(layer.bare).__name__}", layer._stack, here, learn, [n for n in layer._stack.merged if n in layer.tenants],
                   quantization_backend(getattr(layer, "pristine", layer.bare)))


def _lone(tuner: LoneTuner) -> Iterator[TunerLayerStatus]:
    """Prompts and adaption prompts."""
    if hasattr(tuner, "encoders"):
        here = {name: [*encoder.parameters(), *encoder.buffers()] for name, encoder in tuner.encoders.items()}
        learn = {name: list(encoder.parameters()) for name, encoder in tuner.encoders.items()}
        kinds = {f"{type_of(c).lower()}.{type(tuner.encoders[n]).__name__}" for n, c in tuner.peft_config.items()}
        yield _status("prompt_encoder", "+".join(sorted(kinds)), tuner.stack, here, learn, [], None)
        return
    for path, module in tuner.model.named_modules():
        if isinstance(module, LookingAttention):
            here = {name: list(module.tensors(name).values()) for name in tuner.peft_config if module.tensors(name)}
            yield _status(f"model.{path}", f"adaption_prompt.{type(module.model).__name__}", tuner.stack, here, here, [], None)


def _status(path: str, kind: str, stack: LiveStack, here: dict[str, list[Tensor]], learn: dict[str, list[Tensor]], merged: list[str],
            backend: str | None) -> TunerLayerStatus:
    trains = {name: _alike(t.requires_grad for t in found) for name, found in learn.items() if found}
    return TunerLayerStatus(path, kind, stack.enabled, stack.names, merged, trains, sorted(here),
                            {name: sorted({t.device.type for t in found}) for name, found in here.items() if found}, backend, dict(stack.entries))


def _merged(layers: list[TunerLayerStatus]) -> list[str] | Irregular:
    merged = sorted({name for layer in layers for name in layer.merged_adapters})
    wrong = any(set(layer.available_adapters) & set(merged) - set(layer.merged_adapters) for layer in layers)
    return "irregular" if wrong else merged


def _alike(values: Iterable[Any]) -> Any:
    found = {repr(v): v for v in values}
    return next(iter(found.values())) if len(found) == 1 else "irregular" if found else []


def type_of(config: PeftConfig) -> str:
    """The kind of an adapter as a plain word."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def _kinds(configs: dict[str, PeftConfig]) -> dict[str, str]:
    return {name: type_of(config) for name, config in configs.items()}


def _kind_of_tuner(configs: dict[str, PeftConfig]) -> str:
    kinds = {type(config).__name__.removesuffix("Config") + "Model" for config in configs.values()}
    return kinds.pop() if len(kinds) == 1 else "MixedModel"


def _kind_of_base(model: nn.Module, injected: bool) -> str:
    from transformers import PreTrainedModel

    return "other" if injected and not isinstance(model, PreTrainedModel) else type(model).__name__
