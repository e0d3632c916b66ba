"""What PEFT's models have and ours have not, put on ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.save import adapter_tensors
from engine.compat.configs import as_sets
from engine.compat.kinds import PeftWarning
from engine.law import Method, TargetedConfig
from engine.methods.registry import method
from engine.model.lone import LoneTuner
from engine.model.peft_model import PeftModel
from engine.model.tuner import Tuner

_PICKLE = "adapter_model.bin"


class _Layers(dict):
    """Our wrapped layers by path; by number, those of the user's model, which PEFT's tuner lets through."""

    def __init__(self, tuner: Tuner, layers: dict[str, Any]):
        super().__init__(layers)
        self._tuner = tuner

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return self._tuner.model.layers[key]
        raise KeyError(key)


def _as_given(configs: dict[str, Any], name: str, config: Any) -> None:
    """As in PEFT, the very object that the program has becomes the adapter's config, with what its task has added."""
    if configs[name] is not config:
        config.__dict__.update(configs[name].__dict__)
        configs[name] = config
    as_sets(config)


class TunerViews:
    """What ``BaseTuner`` has in PEFT, for `Tuner`; see `engine.compat.views.attach`."""

    uses_shared_state = False

    @property
    def layers(self: Tuner) -> dict[str, Any]:
        return self.__dict__["layers"]

    @layers.setter
    def layers(self: Tuner, layers: dict[str, Any]) -> None:
        self.__dict__["layers"] = _Layers(self, layers)

    @property
    def prefix(self: Tuner) -> str:
        return method(next(iter(self.peft_config.values())).peft_type).prefix

    @property
    def peft_kind(self: Tuner) -> str:
        """The name of PEFT's class for it."""
        from engine.compat.names import _MODELS

        kinds = {str(getattr(c.peft_type, "value", c.peft_type)) for c in self.peft_config.values()}
        return next((name for name, kind in _MODELS.items() if kinds == {kind}), "None" if not kinds else "MixedModel")

    @property
    def active_adapter(self: Tuner) -> str | list[str]:
        return self.stack.names

    @property
    def targeted_module_names(self: Tuner) -> list[str]:
        return list(self.layers)

    @property
    def targeted_parameter_names(self: Tuner) -> list[str]:
        return []

    def admit(self: Tuner, name: str, config: Any, **kwargs: Any) -> Any:
        try:
            done = TunerViews.native["admit"](self, name, config, **kwargs)
        except TypeError as error:         # words on the adapter's own layer: PEFT has wrapped it by then, and names that wrapper
            if str(error).startswith("trainable_token_indices"):
                raise TypeError(f"trainable_token_indices cannot be applied to modules of type <class 'peft.tuners.lora.layer.Embedding'>: {error}"
                                ) from error
            raise
        _as_given(self.peft_config, name, config)
        self.model.__dict__["peft_config"] = self.peft_config
        own = {id(t): (layer, key.partition(".")[0]) for layer in self.layers.values() if name in layer.tenants
               for key, t in layer.tensors(name).items()}
        for layer in self.layers.values():
            layer.bare.__dict__.pop("_peft_loraga_grad", None)
        for layer in self.layers.values():                    # one whose weight is another's shows the other's tensors as its own
            for tensor in layer.tenants[name].shared.values() if name in layer.tenants else ():
                if (owner := own.get(id(tensor))) is not None and owner[0] is not layer:
                    layer.__dict__.setdefault("_owners", {})[owner[1]] = owner[0]
        return done

    def leave(self: Tuner, *args: Any, **kwargs: Any) -> nn.Module:
        self.model.__dict__.pop("peft_config", None)
        return TunerViews.native["leave"](self, *args, **kwargs)

    def get_model_config(self: Tuner, model: nn.Module) -> dict[str, Any]:
        config = getattr(model, "config", {"model_type": "custom"})
        return config.to_dict() if hasattr(config, "to_dict") else config

    def enable_adapters(self: Tuner, enabled: bool = True) -> None:
        """As in PEFT, nothing of an adapter trains while they are off; afterwards, what did before."""
        for layer in self.layers.values():
            layer.__dict__.pop("_off", None)
        if not enabled:
            self.__dict__.setdefault("_trained_before", set(self.trained))
            self.set_requires_grad(self.trained, False)
        else:
            self.set_requires_grad(self.__dict__.pop("_trained_before", set()) & self.peft_config.keys())
        TunerViews.native["enable_adapters"](self, enabled)

    def enable_adapter_layers(self: Tuner) -> None:
        self.enable_adapters(True)

    def disable_adapter_layers(self: Tuner) -> None:
        self.enable_adapters(False)

    @contextmanager
    def disabled(self: Tuner) -> Iterator[None]:
        if len({layer.disable_adapters for layer in self.layers.values()}) > 1:
            warnings.warn("The model contains some adapter layers that are enabled and others that are disabled. This is most likely "
                          "unintentional. After exiting the disable_adapter context, all adapters will be enabled.")
        with TunerViews.native["disabled"](self):
            yield

    def __getattr__(self: Tuner, name: str) -> Any:
        """FRoD's frames come by category first, and then by adapter."""
        if name in ("frod_V", "frod_s_indices"):
            found: dict[str, dict[str, Any]] = {}
            for adapter in self.peft_config:
                for key, tensor in self.tensors(adapter).items():
                    if key.startswith(f"{name}."):
                        found.setdefault(key.partition(".")[2], {})[adapter] = tensor
            if found:
                return found
        return TunerViews.native["__getattr__"](self, name)

    def _get_kasa_loss(self: Tuner, adapter_names: str | list[str] | None = None) -> Tensor | float:
        """What KaSA adds to the loss, for training loops that are written out: of the active adapters or those named; 0 without any."""
        return sum((loss for loss, _ in _extra_losses(self, "kasa_config", adapter_names)), 0.0)

    def _get_monteclora_loss(self: Tuner, adapter_names: str | list[str] | None = None) -> Tensor | float:
        """The same of MonteCLoRA: the mean of all layers' terms, in training."""
        found = _extra_losses(self, "monteclora_config", adapter_names) if self.training else []
        return sum(loss * layers for loss, layers in found) / sum(layers for _, layers in found) if found else 0.0

    def get_nb_savable_parameters(self: Tuner, adapter: str = "default") -> tuple[int, int]:
        """(numbers of a VB-LoRA in its file, in units of four bytes; what else trains)."""
        ours = {id(p) for layer in self.layers.values() for p in layer.tensors(adapter).values()} | {id(p) for p in self.tensors(adapter).values()}
        stored = adapter_tensors(self, adapter).values()
        return (sum(t.numel() * t.element_size() for t in stored) // 4,
                sum(p.numel() for p in self.model.parameters() if p.requires_grad and id(p) not in ours))

    def _get_module_names_tied_with_embedding(self: Tuner) -> list[str]:
        from engine.compat.families import _get_module_names_tied_with_embedding

        return _get_module_names_tied_with_embedding(self.model)

    def _init_vblora_vector_bank(self: Tuner, config: Any, adapter_name: str) -> None:
        with torch.no_grad():
            self.tensors(adapter_name)["vblora_vector_bank"].uniform_(-config.init_vector_bank_bound, config.init_vector_bank_bound)

    def _init_tinylora_v(self: Tuner, config: Any, adapter_name: str) -> None:
        with torch.no_grad():
            for vector in self.tensors(adapter_name).values():
                vector.uniform_(-config.init_v_bound, config.init_v_bound)

    def delete_adapter(self: Tuner, name: str | list[str]) -> None:
        """As in PEFT, another adapter becomes active when none is left that was; several names may be given."""
        names = [name] if isinstance(name, str) else list(name)
        if merged := sorted(set(names) & set(self.stack.merged)):
            raise ValueError(f"Cannot delete adapter(s) {merged} while they are merged. Please unmerge them first.")
        for each in names:
            was_heard = each in self.stack.names
            TunerViews.native["delete_adapter"](self, each)
            if was_heard and not self.stack.names and self.peft_config:
                self.set_adapter(min(self.peft_config))

    def merge_adapter(self: Tuner, adapter_names: list[str] | None = None, safe_merge: bool = False, **more: Any) -> None:
        """As in PEFT, what is merged already stays merged."""
        names = self.stack.names if adapter_names is None else adapter_names
        if self.stack.merged and not isinstance(names, str):
            if set(names) <= set(self.stack.merged):
                warnings.warn("All adapters are already merged, nothing to do.")
                return
            adapter_names = [*self.stack.merged, *(n for n in names if n not in self.stack.merged)]
        TunerViews.native["merge_adapter"](self, adapter_names, safe_merge, **more)

    def merge_and_unload(self: Tuner, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None) -> nn.Module:
        return self.leave(self.to_merge(adapter_names, safe_merge))

    def unload(self: Tuner) -> nn.Module:
        return self.leave()


def _extra_losses(tuner: Tuner, setting: str, names: str | list[str] | None) -> list[tuple[Tensor, int]]:
    """(what each of these adapters that has this setting adds to the loss, on how many layers it is)."""
    names = [names] if isinstance(names, str) else tuner.stack.names if names is None else names
    found = []
    for name in names:
        config = tuner.peft_config[name]
        tenants = tuner.tenants(name) if getattr(config, setting, None) is not None else {}
        at = {path: tenant.method for path, tenant in tenants.items() if type(tenant.method).extra_loss is not Method.extra_loss}
        if at:
            found.append((next(iter(at.values())).extra_loss(config, {path: tuner.layers[path].all_tensors(name) for path in at}), len(at)))
    return found


class LoneViews:
    """What adapters outside of layers have in PEFT, for `LoneTuner`."""

    def admit(self: LoneTuner, name: str, config: Any, **kwargs: Any) -> Any:
        done = LoneViews.native["admit"](self, name, config, **kwargs)
        _as_given(self.peft_config, name, config)
        return done

    @property
    def _active_adapter(self: LoneTuner) -> str | list[str]:
        return self.stack.names[0] if len(self.stack.names) == 1 else self.stack.names

    def enable_adapter_layers(self: LoneTuner) -> None:
        self.enable_adapters(True)

    def disable_adapter_layers(self: LoneTuner) -> None:
        self.enable_adapters(False)

    def delete_adapter(self: LoneTuner, name: str) -> None:
        """As in PEFT, another adapter becomes active when none is left that was."""
        LoneViews.native["delete_adapter"](self, name)
        if not self.stack.names and self.peft_config:
            self.set_adapter(min(self.peft_config))


class GraphViews:
    """What adapters round whole blocks have in PEFT, for `GraphTuner`."""

    prefix = TunerViews.prefix


class ModelViews:
    """What ``PeftModel`` has in PEFT; see `engine.compat.views.attach`."""

    special_peft_forward_args = {"adapter_names", "alora_offsets"}

    @property
    def peft_type(self: PeftModel) -> Any:
        return next(iter(self.peft_config.values())).peft_type

    @property
    def has_active_enabled_adapter(self: PeftModel) -> bool:
        return bool(self.stack.names) and any(not layer.disable_adapters for layer in self.adapted.values())

    def get_layer_status(self: PeftModel) -> Any:
        from engine.compat.functions import get_layer_status

        return get_layer_status(self)

    def get_model_status(self: PeftModel) -> Any:
        from engine.compat.functions import get_model_status

        return get_model_status(self)

    @property
    def is_prompt_learning(self: PeftModel) -> bool:
        return any(config.is_prompt_learning for config in self.peft_config.values())

    def prepare_model_for_gradient_checkpointing(self: PeftModel, model: nn.Module) -> nn.Module:
        return self._prepare_model_for_gradient_checkpointing(model)

    def _prepare_model_for_gradient_checkpointing(self: PeftModel, model: nn.Module) -> nn.Module:
        """Let the inputs of the first block carry gradients, without which checkpointing leaves adapters none."""
        if not any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8)):
            if hasattr(model, "enable_input_require_grads"):
                model.enable_input_require_grads()
            elif hasattr(model, "get_input_embeddings"):
                model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
        return model

    def supports_lora_conversion(self: PeftModel, adapter_name: str = "default") -> bool:
        from engine.compat.functions import supports_lora_conversion

        return supports_lora_conversion(self, adapter_name)

    def add_adapter(self: PeftModel, adapter_name: str, peft_config: Any, low_cpu_mem_usage: bool = False,
                    autocast_adapter_dtype: bool = True) -> None:
        if type(self).__name__ == "PeftMixedModel" and not isinstance(peft_config, TargetedConfig):
            raise ValueError(f"The provided `peft_type` '{peft_config.peft_type.value}' is not compatible with the `PeftMixedModel`.")
        if self.peft_config and peft_config.peft_type != self.peft_type and type(self).__name__ != "PeftMixedModel":
            raise ValueError(f"Cannot combine adapters with different peft types. Found {self.peft_type} and {peft_config.peft_type}.")
        ModelViews.native["add_adapter"](self, adapter_name, peft_config, low_cpu_mem_usage, autocast_adapter_dtype)

    def save_pretrained(self: PeftModel, save_directory: str | Path, safe_serialization: bool = True, selected_adapters: list[str] | None = None,
                        save_embedding_layers: str | bool = "auto", is_main_process: bool = True, **kwargs: Any) -> None:
        if Path(save_directory).is_file():
            raise ValueError(f"Provided path ({save_directory}) should be a directory, not a file")
        names = list(self.peft_config) if selected_adapters is None else selected_adapters
        if unknown := [name for name in names if name not in self.peft_config]:
            raise ValueError(f"You passed an invalid `selected_adapters` arguments, current supported adapter names are "
                             f"{list(self.peft_config)} - got {unknown}.")
        for name in names:
            tell_of_shards(self, name)
        ModelViews.native["save_pretrained"](self, save_directory, selected_adapters=names, is_main_process=is_main_process,
                                             save_embedding_layers=save_embedding_layers, **kwargs)
        for name in names if is_main_process else ():
            folder = Path(save_directory) if name == "default" else Path(save_directory) / name
            if not safe_serialization:
                as_pickle(folder)

    def load_adapter(self: PeftModel, model_id: Any, adapter_name: str, is_trainable: bool = False, *args: Any, **kwargs: Any) -> Any:
        if adapter_name not in self.peft_config:
            done = ModelViews.native["load_adapter"](self, model_id, adapter_name, is_trainable, *args, **kwargs)
        else:
            from engine.checkpoint.load import locate, read_tensors
            from engine.checkpoint.state import set_peft_model_state_dict

            hub = {k: v for k, v in kwargs.items() if k in ("subfolder", "revision", "cache_dir", "token")}
            done = set_peft_model_state_dict(self, read_tensors(locate(model_id, **hub)), adapter_name)
        if not is_trainable:
            self.eval()
        return done

    @classmethod
    def from_pretrained(cls: type[PeftModel], model: nn.Module, model_id: Any, adapter_name: str = "default", is_trainable: bool = False,
                        *args: Any, **kwargs: Any) -> PeftModel:
        self = ModelViews.native["from_pretrained"].__func__(cls, model, model_id, adapter_name, is_trainable, *args, **kwargs)
        if self.load_report.missing:
            warnings.warn(f"Found missing adapter keys while loading the checkpoint: {self.load_report.missing}.")
        return self

    def set_adapter(self: PeftModel, adapter_name: str | Iterable[str], inference_mode: bool = False) -> None:
        ModelViews.native["set_adapter"](self, adapter_name, inference_mode)


def tell_of_shards(model: PeftModel, name: str) -> None:
    """Warn, as PEFT does, of LoRA's matrices that are none: parts that the processes of a training were to put together first."""
    torn = [key for key, tensor in adapter_tensors(model, name).items()
            if (".lora_A." in key or ".lora_B." in key) and (tensor.dim() < 2 or not tensor.numel())]
    if torn:
        warnings.warn(f"{len(torn)} matrices of the adapter {name!r} are incomplete ({torn[0]} …): DeepSpeed ZeRO-3 / FSDP shards have to be "
                      "gathered before `save_pretrained`, or the file will fit no model.", PeftWarning, stacklevel=3)


# --- the old file format ---

def as_pickle(folder: Path) -> None:
    """Replace ``adapter_model.safetensors`` by PEFT's older ``adapter_model.bin``."""
    from engine.checkpoint.load import read_tensors

    torch.save({key: tensor.clone() for key, tensor in read_tensors(folder).items()}, folder / _PICKLE)
    (folder / "adapter_model.safetensors").unlink()

