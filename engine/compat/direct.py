"""Adapters in a model that stays the user's own: `inject_adapter_in_model` and the functions of `peft.functional`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.report import LoadReport
from engine.checkpoint.state import get_peft_model_state_dict as state_of
from engine.checkpoint.state import set_peft_model_state_dict as set_state_of
from engine.hosts.adapted import Adapted, Tenant, unwrapped
from engine.methods.base import PeftConfig, Tensors
from engine.model.peft_model import PeftModel
from engine.model.tuner import Tuner

_AT = "_adapters_of_this_model"            # where a model keeps its tuner; not as a sub-module, for it holds the model itself


class Direct:
    """What the functions on state dicts ask of a `PeftModel`, for a model that was injected into."""

    lone = prompts = None

    def __init__(self, tuner: Tuner):
        self.tuner, self.peft_config, self.stack, self.adapted = tuner, tuner.peft_config, tuner.stack, tuner.layers

    def tenants(self, name: str) -> dict[str, Tenant]:
        return self.tuner.tenants(name)

    def shared_tensors(self, name: str) -> Tensors:
        return self.tuner.tensors(name)


def tuner_of(model: nn.Module) -> Tuner | None:
    """The tuner of a `PeftModel` or of a model that was injected into."""
    if isinstance(model, PeftModel):
        return model.tuner if isinstance(model.tuner, Tuner) else None
    return model.__dict__.get(_AT)


def _bare(model: nn.Module) -> nn.Module:
    """Without what sharded or parallel training wraps round it."""
    while not isinstance(model, PeftModel) and _AT not in model.__dict__ and isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def _asked(model: nn.Module) -> Any:
    model = _bare(model)
    if isinstance(model, PeftModel):
        return model
    tuner = tuner_of(model)
    if tuner is None:
        raise ValueError("This model has no adapters: inject one first.")
    return Direct(tuner)


def inject_adapter_in_model(peft_config: PeftConfig, model: nn.Module, adapter_name: str = "default", low_cpu_mem_usage: bool = False,
                            state_dict: dict[str, Tensor] | None = None) -> nn.Module:
    """Wrap layers of ``model`` in place and return it (PEFT function of the same name). The new adapter is active and trains.

    Args:
        state_dict: its keys say which layers are wrapped, whatever the config says.

    Raises:
        ValueError: a method that does not sit on layers, or one of whose targets cannot carry it.
    """
    if peft_config.is_prompt_learning or peft_config.is_adaption_prompt:
        raise ValueError("`create_and_replace` does not support prompt learning and adaption prompt yet.")
    tuner = tuner_of(model)
    if tuner is None:
        tuner = Tuner.__new__(Tuner)
        Tuner.__init__(tuner, model)
    if state_dict is not None:
        peft_config.target_modules = sorted({key[:key.rfind(f".{law_prefix(peft_config)}")] for key in state_dict
                                             if f".{law_prefix(peft_config)}" in key})
    tuner.admit(adapter_name, peft_config, trainable=not peft_config.inference_mode, device=torch.device("meta") if low_cpu_mem_usage else None)
    object.__setattr__(model, _AT, tuner)
    model.peft_config = tuner.peft_config
    tuner.stack.arrange([*(n for n in tuner.stack.names if n != adapter_name), adapter_name] if tuner.stack.names else [adapter_name])
    if len(tuner.stack.names) > 1:                            # as in PEFT, the first stays the active one
        tuner.set_adapter(tuner.stack.names[0])
    return model


def law_prefix(config: PeftConfig) -> str:
    """What all tensor names of the config's method begin with."""
    from engine.methods.registry import method

    return method(config.peft_type).prefix


def get_peft_model_state_dict(model: nn.Module, state_dict: dict[str, Tensor] | None = None, adapter_name: str = "default",
                              unwrap_compiled: bool = False, save_embedding_layers: str | bool = "auto") -> dict[str, Tensor]:
    """An adapter's tensors by their names in the file; without PEFT's prefix where the model is the user's own."""
    model = _bare(getattr(model, "_orig_mod", model) if unwrap_compiled else model)
    found = state_of(_asked(model), adapter_name)
    return found if isinstance(model, PeftModel) else {key.removeprefix("base_model.model."): t for key, t in found.items()}


def set_peft_model_state_dict(model: nn.Module, peft_model_state_dict: dict[str, Tensor], adapter_name: str = "default",
                              ignore_mismatched_sizes: bool = False, low_cpu_mem_usage: bool = False) -> LoadReport:
    """Give an existing adapter these values. As in PEFT, what is not the adapter's but the base's goes into the base."""
    asked = _asked(model)
    report = set_state_of(asked, peft_model_state_dict, adapter_name)
    base = {key: tensor for key in report.unexpected if (tensor := _of_base(asked.tuner, key)) is not None
            and tensor.shape == peft_model_state_dict[key].shape}
    with torch.no_grad():
        for key, tensor in base.items():
            tensor.copy_(peft_model_state_dict[key])
    asked.stack.changed()
    return dataclasses.replace(report, unexpected=[key for key in report.unexpected if key not in base])


def _of_base(tuner: Any, key: str) -> Tensor | None:
    """The base's own tensor that a key of a file names, if it names one."""
    path, _, leaf = key.removeprefix("base_model.model.").rpartition(".")
    try:
        module = unwrapped(tuner.model.get_submodule(path.removesuffix(".base_layer")))
    except AttributeError:
        return None
    return getattr(module, "bare", module)._parameters.get(leaf)


def delete_adapter(model: nn.Module, adapter_name: str, prefix: str = "", layer_cls: type = Adapted) -> list[str] | None:
    """Forget an adapter; returns the names that stay active, None if there are none."""
    tuner = tuner_of(model)
    if adapter_name in tuner.peft_config:
        tuner.delete_adapter(adapter_name)
    return tuner.stack.names or None


def set_adapter(model: nn.Module, adapter_name: str | Iterable[str], inference_mode: bool = False, layer_cls: type = Adapted) -> None:
    """Choose the stack."""
    tuner_of(model).set_adapter(adapter_name, inference_mode)


def set_requires_grad(model: nn.Module, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
    """Say which adapters train."""
    tuner_of(model).set_requires_grad(adapter_names, requires_grad)


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Bring an adapter's 16-bit tensors to float32."""
    if autocast_adapter_dtype:
        for layer in tuner_of(model).layers.values():
            for tensor in layer.tensors(adapter_name).values() if adapter_name in layer.tenants else ():
                if tensor.dtype in (torch.float16, torch.bfloat16):
                    tensor.data = tensor.data.float()
        tuner_of(model).stack.changed()
