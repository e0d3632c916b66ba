"""PEFT's helper functions on models that have little to do with adapters."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import state
from engine.checkpoint.report import LoadReport
from engine.checkpoint.save import write_adapter
from engine.hosts.adapted import Adapted, unwrapped
from engine.hosts.host import host_of
from engine.law import PeftConfig
from engine.mix import to_lora
from engine.model import lora_calibrate, status
from engine.model.mixed import PeftMixedModel
from engine.model.peft_model import PeftModel
from engine.model.status import TunerLayerStatus, TunerModelStatus
from engine.model.tuner import tuner_of


def infer_device() -> str:
    """The kind of the best device that is there."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


@functools.cache
def availability(package: str) -> Callable[[], bool]:
    """A function that says whether this package of others can be used."""
    needs = {"bnb": "bitsandbytes", "bnb_4bit": "bitsandbytes", "auto_awq": "awq", "te": "transformer_engine", "torch_tpu": "torch_xla"}

    def available() -> bool:
        if package == "xpu":
            return hasattr(torch, "xpu") and torch.xpu.is_available()
        return importlib.util.find_spec(needs.get(package, package)) is not None

    return functools.wraps(available)(functools.cache(available))


def _get_submodules(model: nn.Module, key: str) -> tuple[nn.Module, nn.Module, str]:
    """(parent, the module itself, its name in the parent)."""
    parent, module, name = model, model, key.rpartition(".")[2]
    for part in key.split(".") if key else ():                # views show other things under the names of some modules
        parent, module = module, module._modules.get(part) or getattr(module, part)
    return parent, module, name


def set_peft_model_state_dict(model: nn.Module, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = "default",
                              ignore_mismatched_sizes: bool = False, low_cpu_mem_usage: bool = False) -> LoadReport:
    """As `engine.checkpoint.state.set_peft_model_state_dict`; as in PEFT, what is not the adapter's but the base's goes into the base."""
    tuner = tuner_of(model)
    report = state.set_peft_model_state_dict(model, peft_model_state_dict, adapter_name, ignore_mismatched_sizes, low_cpu_mem_usage)
    base = {key: tensor for key in report.unexpected if (tensor := _of_base(tuner, key)) is not None
            and tensor.shape == peft_model_state_dict[key].shape}
    with torch.no_grad():
        for key, tensor in base.items():
            tensor.copy_(peft_model_state_dict[key])
    tuner.stack.changed()
    return dataclasses.replace(report, unexpected=[key for key in report.unexpected if key not in base])


def _of_base(tuner: Any, key: str) -> Tensor | None:
    """The base's own tensor that a key of a file names, if it names one."""
    path, _, leaf = key.removeprefix("base_model.model.").rpartition(".")
    try:
        module = unwrapped(tuner.model.get_submodule(path.removesuffix(".base_layer")))
    except AttributeError:
        return None
    return getattr(module, "bare", module)._parameters.get(leaf)


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """As `engine.model.status.get_layer_status`, refused with PEFT's error where PEFT cannot say anything."""
    return status.get_layer_status(_told(model, "get_layer_status"))


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """As `engine.model.status.get_model_status`, refused with PEFT's error where PEFT cannot say anything."""
    return status.get_model_status(_told(model, "get_model_status"))


def _told(model: nn.Module, function: str) -> nn.Module:
    if isinstance(model, PeftMixedModel):
        raise TypeError(f"{function} is not supported for PeftMixedModel.")
    if isinstance(model, PeftModel) and model.lone is not None:
        raise TypeError(f"{function}() got an invalid PeftModel instance; prefix tuning and adaption prompt are not supported.")
    return model


def register_peft_method(**_: Any) -> None:
    """Refused: methods for this engine are written against its own protocol (`engine.register_method`)."""
    raise NotImplementedError("A method written for PEFT's layer classes cannot be registered here: see engine.register_method.")


def preprocess_loraga(model: nn.Module, lora_config: PeftConfig, train_step: Callable[[], None], cache_file: str | None = None) -> None:
    """As `engine.preprocess_loraga`; until the adapter is made each layer shows its gradient, as in PEFT."""
    lora_calibrate.preprocess_loraga(model, lora_config, train_step, cache_file)
    for path, found in lora_config.calibration.items():
        layer = unwrapped(model.get_submodule(path))
        layer._peft_loraga_grad = host_of(layer).native(found["gradient"], layer.weight)


# --- conversion to LoRA, as far as PEFT goes; `engine.to_lora` goes further ---

_TO_LORA = {"LORA", "LOHA", "LOKR", "VERA", "RANDLORA", "VBLORA", "UNILORA", "TINYLORA", "FOURIERFT", "WAVEFT", "C3A", "DELORA", "GRALORA", "MISS",
            "PSOFT"}


def supports_lora_conversion(model: nn.Module, adapter_name: str = "default") -> bool:
    """Whether `convert_to_lora` converts this adapter: one that adds to the weights of linear layers, and does not look at them."""
    places = [m.tenants[adapter_name] for m in model.modules() if isinstance(m, Adapted) and adapter_name in m.tenants]
    return bool(places) and all(p.site.kind == "linear" and p.config.peft_type in _TO_LORA and not getattr(p.config, "kasa_config", None)
                                for p in places)


def convert_to_lora(model: nn.Module, rank: int | float, adapter_name: str = "default", progressbar: bool = False,
                    compile_kwargs: dict[str, Any] | None = None) -> tuple[PeftConfig, dict[str, Tensor]]:
    """`engine.convert_to_lora`, refused where PEFT refuses."""
    places = [m.tenants[adapter_name] for m in model.modules() if isinstance(m, Adapted) and adapter_name in m.tenants]
    if places and not supports_lora_conversion(model, adapter_name):
        raise TypeError("Some module types on this model do not support LoRA conversion: engine.to_lora may do it.")
    if places and (bias := getattr(places[0].config, "bias", "none")) != "none":
        raise ValueError(f"The adapter's config sets bias={bias}, this is not supported right now: engine.to_lora does it.")
    return to_lora.convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)


def save_as_lora(path: Any, model: nn.Module, rank: int | float, adapter_name: str = "default", progressbar: bool = False,
                 compile_kwargs: dict[str, Any] | None = None) -> None:
    """`convert_to_lora` into the folder ``path``."""
    config, tensors = convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)
    write_adapter(path, tensors, config)


def shift_tokens_right(input_ids: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Decoder inputs for these labels: one step later, -100 as padding."""
    shifted = input_ids.new_zeros(input_ids.shape)
    shifted[:, 1:], shifted[:, 0] = input_ids[:, :-1].clone(), decoder_start_token_id
    return shifted.masked_fill_(shifted == -100, pad_token_id)


def transpose(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    """``weight`` as ``(out, in)``."""
    return weight.T if fan_in_fan_out else weight


def id_tensor_storage(tensor: Tensor) -> tuple[torch.device, int, int]:
    """What tells whether two tensors share memory."""
    storage = tensor.untyped_storage()
    return tensor.device, storage.data_ptr(), storage.nbytes()


def _get_batch_size(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> int:
    if input_ids is None and inputs_embeds is None:
        raise ValueError("You have to provide either input_ids or inputs_embeds")
    return (inputs_embeds if input_ids is None else input_ids).shape[0]


def _freeze_adapter(model: nn.Module, adapter_name: str) -> None:
    for name, parameter in model.named_parameters():
        if f".{adapter_name}" in name:
            parameter.requires_grad_(False)


def fsdp_auto_wrap_policy(model: nn.Module) -> Any:
    """A policy for FSDP: blocks of the model whole, and everything that trains apart from what is frozen."""
    from torch.distributed.fsdp.wrap import _or_policy, lambda_auto_wrap_policy, transformer_auto_wrap_policy

    def trains(module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return not list(module.children()) and weight is not None and weight.requires_grad

    blocks = set(getattr(model, "_no_split_modules", None) or [])
    classes = {type(m) for m in model.modules() if type(m).__name__ in blocks}
    return functools.partial(_or_policy, policies=[functools.partial(lambda_auto_wrap_policy, lambda_fn=trains),
                                                   functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=classes)])


def build_peft_weight_mapping(weight_conversions: list[Any] | None, adapter_name: str, peft_config: PeftConfig | None = None) -> list[Any]:
    """Rules by which transformers brings an adapter's file into the model: prefix off, adapter's name in, renamings of the model kept."""
    import re

    from transformers.core_model_loading import WeightRenaming

    from engine.compat.names import lookup

    prefixes = lookup("PEFT_TYPE_TO_PREFIX_MAPPING")
    wanted = {prefixes[peft_config.peft_type]} if getattr(peft_config, "peft_type", None) in prefixes else set(prefixes.values())
    rules = [WeightRenaming("base_model.model.model.", "model."), WeightRenaming("base_model.model.", "")]
    rules += [WeightRenaming(source_patterns=rf"({re.escape(prefix)}[^\.]*)", target_patterns=rf"\1.{adapter_name}") for prefix in sorted(wanted)]
    return rules + [rule for rule in weight_conversions or () if isinstance(rule, WeightRenaming)]
