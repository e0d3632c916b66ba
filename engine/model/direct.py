"""Adapters in a model that stays the user's own: `inject_adapter_in_model` and the other functions of ``peft.functional``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from engine.checkpoint.keys import strip
from engine.law import PeftConfig, TargetedConfig
from engine.methods.registry import method
from engine.model.tuner import AT, Tuner, tuner_of


def inject_adapter_in_model(peft_config: PeftConfig, model: nn.Module, adapter_name: str = "default", low_cpu_mem_usage: bool = False,
                            state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Put an adapter into layers of ``model`` in place and return it (PEFT function of the same name); the model keeps its class.

    The new adapter is the active one and trains (unless ``inference_mode`` is set); others that train go on doing so.

    Args:
        peft_config: of a method that sits in layers. low_cpu_mem_usage: its tensors hold no values until `set_peft_model_state_dict`.
        state_dict: its keys say in which layers it sits, whatever the config says; its values are not used.

    Raises:
        ValueError: a prompt or adaption prompt, which sits in no layer; a name that is taken; ``state_dict`` with ``target_parameters``.
        UnsupportedLayer: a target cannot carry this method. The model is unchanged then.
    """
    if not isinstance(peft_config, TargetedConfig):
        raise ValueError("`inject_adapter_in_model` does not support prompt learning and adaption prompt: use `get_peft_model`.")
    if state_dict is not None:
        _aim(peft_config, state_dict)
    tuner = tuner_of(model) or Tuner(model)
    tuner.admit(adapter_name, peft_config, trainable=not peft_config.inference_mode, device=torch.device("meta") if low_cpu_mem_usage else None)
    object.__setattr__(model, AT, tuner)
    home = next(iter(tuner.layers.values())) if isinstance(model, nn.Sequential) else model       # which would call it as one more layer
    for shelf in tuner._modules.keys() - {"model"}:            # what all layers share learns with the model that it now belongs to
        setattr(home, shelf, tuner._modules[shelf])
    model.peft_config = tuner.peft_config
    tuner.unmerge_adapter()
    tuner.stack.arrange([adapter_name])
    return model


def _aim(config: TargetedConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Let the config name the layers that the keys of a state dict name."""
    if getattr(config, "target_parameters", None):
        raise ValueError("Trying to inject an adapter from a state_dict but the PEFT config uses `target_parameters`: its keys do not tell them.")
    mark = f".{method(config.peft_type).prefix}"
    named = sorted({path[:path.rfind(mark)] for path in map(strip, state_dict) if mark in path})        # what all layers share has none
    if not named:
        raise ValueError(f"No key of the state_dict belongs to an adapter of the kind {config.peft_type}.")
    meant = config.target_modules
    if isinstance(meant, (list, set)) and any(not any(path == name or path.endswith(f".{name}") for name in meant) for path in named):
        warnings.warn("While injecting the PEFT adapters, an inconsistency was discovered between the PEFT config and the provided state_dict: "
                      "the state_dict decides.", RuntimeWarning, stacklevel=3)
    config.target_modules = named


def _tuner(model: nn.Module) -> Tuner:
    tuner = tuner_of(model)
    if tuner is None:
        raise ValueError("This model has no adapters: inject one first.")
    return tuner


def delete_adapter(model: nn.Module, adapter_name: str, prefix: str = "", layer_cls: type | None = None) -> list[str] | None:
    """Forget an adapter; returns the names that stay active, None if there are none. A name that is not there is no error.

    ``prefix`` and ``layer_cls`` say in PEFT how its parts are found; here the model knows them.
    """
    tuner = _tuner(model)
    if adapter_name in tuner.peft_config:
        tuner.delete_adapter(adapter_name)
    return tuner.stack.names or None


def set_adapter(model: nn.Module, adapter_name: str | Iterable[str] | Mapping[str, float], inference_mode: bool = False,
                layer_cls: type | None = None) -> None:
    """Choose the stack, as `PeftModel.set_adapter` (PEFT function of the same name). Raises `ValueError` for names that are not there."""
    _tuner(model).set_adapter(adapter_name, inference_mode)


def set_requires_grad(model: nn.Module, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
    """Say whether these adapters train (``requires_grad``); nothing else changes (PEFT function of the same name).

    Raises `ValueError` for names that are not there.
    """
    _tuner(model).set_requires_grad(adapter_names, requires_grad)


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Bring an adapter's float16 and bfloat16 tensors to float32, unless ``autocast_adapter_dtype`` is False (PEFT function of the same name).

    Raises `ValueError` for an unknown name.
    """
    tuner = _tuner(model)
    tuner.known(adapter_name)
    for layer in tuner.layers.values() if autocast_adapter_dtype else ():
        for tensor in layer.tensors(adapter_name).values() if adapter_name in layer.tenants else ():
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
    tuner.stack.changed()
