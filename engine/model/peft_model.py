"""PeftModel: a base model with adapters, by PEFT's API, on one live stack.

Four things are independent of one another: which adapters are *active* (the stack, in order, with strengths), which are
*trainable*, which are *merged*, and whether adapters are *enabled* at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.load import locate, match, read_tensors, unknown_settings
from engine.checkpoint.report import LoadReport
from engine.checkpoint.save import save_adapter
from engine.checkpoint.shared import shared_specs
from engine.hosts.adapted import Adapted, Tenant
from engine.hosts.shelves import Shelves
from engine.hosts.stack import LiveStack
from engine.methods.base import PeftConfig, TargetedConfig, Tensors, TensorSpec
from engine.methods.registry import law
from engine.model.inject import Injection, bake, check_name, eject, inject, placements, remove
from engine.model.targets import plan


class Tuned(Shelves):
    """Between `PeftModel` and the user's model, so that parameter names read ``base_model.model.…`` as in PEFT.

    Tensors that all layers of an adapter share stand here.
    """

    _own = frozenset({"model"})

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class PeftModel(nn.Module):
    """A base model with named adapters (PEFT class of the same name).

    Args:
        model: the base; its layers are wrapped in place and its parameters frozen.
        peft_config: settings of the first adapter.
        adapter_name: its name; the first adapter is active and trainable (unless ``inference_mode`` is set).
        autocast_adapter_dtype: new adapters are float32 whatever the base is; otherwise they take the base weight's dtype.
        folder: read the first adapter's tensors from this folder instead of starting anew (see `from_pretrained`).

    Attributes:
        peft_config: adapter name → config. base_model: the wrapped model, ``base_model.model`` is the user's.
        stack: the live stack of active adapters. adapted: module path → wrapped layer.
    """

    def __init__(self, model: nn.Module, peft_config: TargetedConfig, adapter_name: str = "default", *,
                 autocast_adapter_dtype: bool = True, folder: Path | None = None):
        super().__init__()
        self.peft_config: dict[str, PeftConfig] = {}
        self.base_model = Tuned(model)
        self._injection = Injection(shared=self.base_model)
        self._trained: set[str] = set()    # adapters that train
        self._thawed = [p for p in model.parameters() if p.requires_grad]   # of the base; frozen while there are adapters
        trainable = not peft_config.inference_mode
        self.load_report = self._admit(adapter_name, peft_config, trainable=trainable, autocast=autocast_adapter_dtype, folder=folder)
        for parameter in self._thawed:
            parameter.requires_grad_(False)
        self.stack.arrange([adapter_name])

    # --- looking ---

    @property
    def stack(self) -> LiveStack:
        return self._injection.stack

    @property
    def adapted(self) -> dict[str, Adapted]:
        return self._injection.layers

    def tenants(self, name: str) -> dict[str, Tenant]:
        """Module path → what the adapter is there."""
        return {path: layer.tenants[name] for path, layer in self.adapted.items() if name in layer.tenants}

    def shared_tensors(self, name: str) -> Tensors:
        """The adapter's tensors that all its layers share; the live parameters."""
        return self.base_model.tensors(name)

    @property
    def active_adapters(self) -> list[str]:
        return self.stack.names

    @property
    def active_adapter(self) -> str | list[str]:
        return self.stack.names[0] if len(self.stack.names) == 1 else self.stack.names

    @property
    def active_peft_config(self) -> PeftConfig:
        return self.peft_config[self.stack.names[0]]

    @property
    def merged_adapters(self) -> list[str]:
        return list(self.stack.merged)

    def get_base_model(self) -> nn.Module:
        """The user's model, with its layers wrapped."""
        return self.base_model.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameter counts."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")

    # --- running ---

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_base_model().generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":       # not built yet: do not recurse
                raise
            return getattr(self.base_model, name)

    # --- adapters ---

    def _admit(self, name: str, config: TargetedConfig, *, trainable: bool, autocast: bool = True, folder: Path | None = None,
               given: dict[str, Tensors] | None = None) -> LoadReport:
        """Plan, read, inject: the one way an adapter comes in, new or from ``folder``. Changes nothing if it raises."""
        check_name(name)
        if name in self.peft_config:
            raise ValueError(f"Adapter with name {name!r} already exists.")
        model, method = self.get_base_model(), law(config)
        planned, report = plan(model, method, config), LoadReport()
        placed = placements(planned.targets, method, config)
        if folder is not None:
            given, report = match(read_tensors(folder), {p.target.path: p for p in placed}, shared_specs(placed), unknown_settings(folder))
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
        inject(model, self._injection, name, placed, trainable=trainable, given=given, dtype=torch.float32 if autocast else None)
        config.target_modules = planned.resolved
        self.peft_config[name] = config
        self._trained |= {name} if trainable else set()
        return report

    def add_adapter(self, adapter_name: str, peft_config: TargetedConfig, autocast_adapter_dtype: bool = True) -> None:
        """Add an untrained adapter; it is neither active nor trained until `set_adapter`. Atomic."""
        self._admit(adapter_name, peft_config, trainable=False, autocast=autocast_adapter_dtype)

    def load_adapter(self, model_id: Path | str, adapter_name: str, is_trainable: bool = False, *, subfolder: str | None = None,
                     **hub: Any) -> LoadReport:
        """Read an adapter from a folder or the Hub and add it, not yet active. Atomic; see `LoadReport`.

        Raises:
            BadAdapter: damaged, hostile or unknown. WrongBase: it does not fit this model. ValueError: the name is taken.
        """
        folder = locate(model_id, subfolder, **hub)
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = not is_trainable
        return self._admit(adapter_name, config, trainable=is_trainable, folder=folder)

    @classmethod
    def from_pretrained(cls, model: nn.Module, model_id: Path | str, adapter_name: str = "default", is_trainable: bool = False, *,
                        subfolder: str | None = None, **hub: Any) -> "PeftModel":
        """A base with one saved adapter, active. ``model`` is changed only if the adapter fits. Raises as `load_adapter`."""
        folder = locate(model_id, subfolder, **hub)
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = not is_trainable
        chosen = cls if cls is not PeftModel else task_class(config.task_type)
        self = chosen(model, config, adapter_name, folder=folder)
        return self if is_trainable else self.eval()

    def set_adapter(self, adapter_name: str | Iterable[str] | Mapping[str, float], inference_mode: bool = False) -> None:
        """Choose the stack: one name, several in order, or names with strengths. Merged weights are unmerged first.

        An adapter that was made for training becomes trainable while it is active and frozen when it is not, as in PEFT;
        one that was loaded for inference never becomes trainable here (`set_requires_grad` does that).
        """
        entries = {adapter_name: 1.0} if isinstance(adapter_name, str) else (
            dict(adapter_name) if isinstance(adapter_name, Mapping) else dict.fromkeys(adapter_name, 1.0))
        if unknown := [name for name in entries if name not in self.peft_config]:
            raise ValueError(f"Adapter {unknown[0]} not found; there are {sorted(self.peft_config)}.")
        self.unmerge_adapter()
        self.stack.arrange(entries)
        wanted = {name for name in entries if not inference_mode and not self.peft_config[name].inference_mode}
        self.set_requires_grad(self._trained - wanted, False)
        self.set_requires_grad(wanted - self._trained, True)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Say which adapters train; nothing else changes."""
        for name in {adapter_names} if isinstance(adapter_names, str) else set(adapter_names):
            if name not in self.peft_config:
                raise ValueError(f"Adapter {name} not found; there are {sorted(self.peft_config)}.")
            for layer in self.adapted.values():
                if name in layer.tenants:
                    tenant = layer.tenants[name]
                    _set_training(layer.tensors(name), tenant.method.tensors(tenant.config, tenant.site), requires_grad)
            _set_training(self.shared_tensors(name), shared_specs(self.tenants(name).values()), requires_grad)
            self._trained = self._trained | {name} if requires_grad else self._trained - {name}
        self.stack.changed()

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. The rest of the stack stays as it is; without any adapter the model is the base."""
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        if adapter_name in self.stack.merged:
            raise ValueError(f"The adapter {adapter_name} is merged; unmerge it first.")
        remove(self._injection, adapter_name)
        del self.peft_config[adapter_name]
        self._trained.discard(adapter_name)
        self.stack.arrange({n: s for n, s in self.stack.entries if n != adapter_name})

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The plain base inside the block; afterwards everything, also what was merged, is as before."""
        merged, enabled = list(self.stack.merged), self.stack.enabled
        self.unmerge_adapter()
        self.stack.enabled = False
        self.stack.changed()
        try:
            yield
        finally:
            self.stack.enabled = enabled
            self.stack.changed()
            if merged:
                self.merge_adapter(merged)

    # --- merging ---

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Bake the active adapters (or those named) into the weights for speed. W0 is kept; `unmerge_adapter` is bit-exact.

        Raises:
            ValueError: ``safe_merge`` and a merged weight would hold values that are not numbers; nothing is merged then.
        """
        names = self._to_merge(adapter_names, safe_merge)
        for layer in self.adapted.values():
            layer.unmerge()
            layer.merge(names)
        self.stack.merged = tuple(names)
        self.stack.changed()

    def unmerge_adapter(self) -> None:
        """Put the untouched base weights back."""
        if self.stack.merged:
            for layer in self.adapted.values():
                layer.unmerge()
            self.stack.merged = ()
            self.stack.changed()

    def merge_and_unload(self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None) -> nn.Module:
        """The plain model with the active adapters (or those named) baked in. This `PeftModel` is empty afterwards."""
        names = self._to_merge(adapter_names, safe_merge)
        model = self.get_base_model()
        bake(model, self._injection, names)
        self.peft_config.clear()
        _tell_if_untied(model)
        return model

    def unload(self) -> nn.Module:
        """The plain base, as it was before the first adapter. This `PeftModel` is empty afterwards."""
        model = self.get_base_model()
        eject(model, self._injection)
        self.peft_config.clear()
        for parameter in self._thawed:
            parameter.requires_grad_(True)
        return model

    def _to_merge(self, names: list[str] | None, safe: bool) -> list[str]:
        if isinstance(names, str):
            raise TypeError("adapter_names should be a list of strings")
        names = self.stack.names if names is None else list(names)
        if unknown := [n for n in names if n not in self.peft_config]:
            raise ValueError(f"Adapter {unknown[0]} not found; there are {sorted(self.peft_config)}.")
        missing = {n: 1.0 for n in names if n not in self.stack.names}
        if missing:
            self.stack.arrange({**dict(self.stack.entries), **missing})
        if safe:
            for path, layer in self.adapted.items():
                if not torch.isfinite(layer.compose(names=names)).all():
                    raise ValueError(f"NaNs detected in the merged weights of {path}. The adapter seems to be broken")
        return names

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "svd",
                             svd_rank: int | None = None, svd_clamp: float | None = None, *, density: float | None = None,
                             majority_sign_method: str = "total") -> None:
        """A new LoRA adapter made of several low-rank ones (PEFT method of the same name); not active yet. See `engine.mix.combine`.

        Every adapter counts with its own scaling, rsLoRA's too, and with its learned bias. Raises `ValueError` for adapters of other
        kinds, unequal numbers of names and weights, or ranks that differ where they must not; nothing is added then.
        """
        from engine.mix.weighted import weighted_adapter

        config, tensors = weighted_adapter(self.get_base_model(), self.adapted, adapters, weights, combination_type, svd_rank, svd_clamp,
                                           density, majority_sign_method)
        self._admit(adapter_name, config, trainable=False, given=tensors)

    # --- files ---

    def save_pretrained(self, save_directory: Path | str, selected_adapters: list[str] | None = None, **_: Any) -> None:
        """Write adapters in PEFT's format: “default” into the folder itself, any other into a sub-folder of its name."""
        for name in selected_adapters if selected_adapters is not None else list(self.peft_config):
            if name not in self.peft_config:
                raise ValueError(f"There is no adapter named {name!r}; there are {sorted(self.peft_config)}.")
            save_adapter(self, name, Path(save_directory) if name == "default" else Path(save_directory) / name)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.get_base_model().prepare_inputs_for_generation(*args, **kwargs)


class PeftModelForCausalLM(PeftModel):
    """A causal language model with adapters (PEFT class of the same name)."""


def task_class(task_type: str | None) -> type[PeftModel]:
    """The class for a ``task_type``. Raises `ValueError` for one that is unknown."""
    if task_type in (None, ""):
        return PeftModel
    classes = {"CAUSAL_LM": PeftModelForCausalLM}
    name = getattr(task_type, "value", task_type)
    if name not in classes:
        raise ValueError(f"Invalid task type: '{name}'. Must be one of the following task types: {', '.join(classes)}.")
    return classes[name]


def get_peft_model(model: nn.Module, peft_config: TargetedConfig, adapter_name: str = "default", *,
                   autocast_adapter_dtype: bool = True) -> PeftModel:
    """Wrap ``model`` with one new adapter, by the config's ``task_type`` (PEFT function of the same name)."""
    peft_config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    return task_class(peft_config.task_type)(model, peft_config, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)


def _set_training(tensors: Tensors, specs: Mapping[str, TensorSpec], trains: bool) -> None:
    for key, tensor in tensors.items():
        tensor.requires_grad_(trains and specs[key].trainable and tensor.is_floating_point())


def _tell_if_untied(model: nn.Module) -> None:
    """After a merge into one of two tied layers they are no longer the same; the config must say so, or a reload would tie them again."""
    config = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False) or not hasattr(model, "get_output_embeddings"):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        config.tie_word_embeddings = False
