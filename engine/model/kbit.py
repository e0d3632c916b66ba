"""Quantized bases as a whole: getting one ready for training, and keeping its description true when its layers are no longer quantized."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engine.hosts.quantized.host import Widened
from engine.hosts.quantized.protocol import backend_of, settle

_KEPT_AS_THEY_ARE = ("gptq", "aqlm", "eetq", "hqq", "torchao")    # PEFT brings none of their parameters to float32


def prepare_model_for_kbit_training(model: nn.Module, use_gradient_checkpointing: bool = True,
                                    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, auto_clear_cache: bool = True) -> nn.Module:
    """Get a quantized model of transformers ready for an adapter (PEFT function of the same name); changes it and returns it.

    All its parameters are frozen; those in 16 bits (norms, embeddings, the output layer, biases; nothing packed) become float32; and if the
    model is quantized, gradients are checkpointed. Beyond PEFT's, it keeps 4-bit layers learning after they have been evaluated (`settle`).

    Args:
        use_gradient_checkpointing: whether they are.
        gradient_checkpointing_kwargs: handed on; unless they say ``use_reentrant=False``, the embeddings' outputs are made to take gradients.
        auto_clear_cache: give the memory of the 16-bit values back to the graphics card.
    """
    method = getattr(model, "quantization_method", None)
    method = "hqq" if getattr(model, "hqq_quantized", False) else str(getattr(method, "value", method))
    kept = method in _KEPT_AS_THEY_ARE
    quantized = kept or any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if not kept and parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.float()
    if auto_clear_cache and not kept:
        for kind in (torch.cuda, getattr(torch, "xpu", None)):
            if kind is not None and kind.is_available():
                kind.empty_cache()
    settle(model)
    if quantized and use_gradient_checkpointing:
        _checkpoint_gradients(model, dict(gradient_checkpointing_kwargs or {}))
    return model


def _checkpoint_gradients(model: nn.Module, settings: dict[str, Any]) -> None:
    if settings.get("use_reentrant", True):
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
        else:
            model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    if hasattr(model, "activation_checkpointing_enable"):     # the newer name; the older one warns
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    elif "gradient_checkpointing_kwargs" in inspect.signature(model.gradient_checkpointing_enable).parameters:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable()
        if settings:
            warnings.warn("gradient_checkpointing_kwargs is not supported in this version of transformers. The passed kwargs will be ignored.",
                          FutureWarning, stacklevel=3)


def tell_what_is_widened(model: nn.Module) -> None:
    """After a merge some layers, or all, are no longer quantized: let the model's description say so, or its files could not be loaded again."""
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    widened = [path for path, module in model.named_modules() if isinstance(module, Widened)]
    if settings is None or not widened:
        return
    quantizer = getattr(model, "hf_quantizer", None)
    if any(backend_of(module) is not None for module in model.modules()):
        skipped = getattr(quantizer, "modules_to_not_convert", None) or getattr(settings, "llm_int8_skip_modules", None) or []
        settings.llm_int8_skip_modules = sorted({*skipped, *widened})
    elif quantizer is not None:
        quantizer.remove_quantization_config(model)
        for bits in (4, 8):
            model.__dict__.pop(f"is_loaded_in_{bits}bit", None)


def quantization_backend(layer: nn.Module) -> str | None:
    """How a layer is quantized, by PEFT's names (“bnb 4bit” …); None if it is not."""
    backend = backend_of(layer)
    return None if backend is None else backend.name


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """What is frozen to ``dtype``, what trains to float32, in place; other than floating point nothing changes (PEFT function of the same name)."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
