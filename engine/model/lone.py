"""What adapters outside of single layers have in common, prompts and adaption prompts: they come and go, are chosen and train, and never merge.

They do what `engine.model.tuner.Tuner` does for adapters in layers, by the same names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.checkpoint.keys import split
from engine.checkpoint.load import check_finite, fill
from engine.checkpoint.load import match as match_layers
from engine.checkpoint.report import LoadReport
from engine.errors import BadAdapter, CannotMerge, WrongBase
from engine.hosts.quantized.protocol import settle
from engine.hosts.replaced import Replaced
from engine.hosts.stack import LiveStack
from engine.law import PeftConfig, Tensors
from engine.model.companions import saved_modules, with_heads
from engine.model.inject import check_name, inject


class LoneTuner(ABC):
    """Adapters of one model, by name, that sit in no layer.

    Attributes:
        stack: which are heard. trained: names of those that train. layers: modules that an adapter learns whole beside it.
    """

    prefixed: ClassVar[bool] = True        # in a file, what belongs to its modules begins with `base_model.model`

    def begin(self, model: nn.Module) -> None:
        """Called once; the base's parameters are frozen by the first adapter."""
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.stack = LiveStack()
        self.trained: set[str] = set()
        self.layers: dict[str, Replaced] = {}
        self._thawed = [p for p in model.parameters() if p.requires_grad]
        settle(model)

    # --- what each kind says ---

    @abstractmethod
    def place(self, name: str, config: Any, file: Mapping[str, Tensor] | None, unknown_settings: Sequence[str],
              device: torch.device | None) -> LoadReport:
        """Make the adapter's tensors, new or from a file. Changes nothing if it raises."""

    @abstractmethod
    def load(self, name: str, tensors: Mapping[str, Tensor]) -> LoadReport:
        """Give an adapter the values of a file."""

    @abstractmethod
    def to_file(self, name: str) -> Tensors:
        """An adapter's tensors by their names in the file."""

    @abstractmethod
    def train_only(self, name: str, on: bool) -> None:
        """Let the tensors of one adapter train, or not."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Drop the tensors of one adapter."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's ``generate``."""
        return self.model.generate(*args, **kwargs)

    # --- what training asks for; see `engine.model.training` ---

    def extra_loss(self) -> None:
        """Nothing."""

    def extra_error(self, where: Tensor, targets: Tensor) -> Tensor | None:
        """Nothing, unless an adapter has an error of its own."""
        return None

    def on_step(self, step: int) -> None:
        """Nothing follows the training."""

    def schedule_state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore_schedules(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""

    # --- looking ---

    def known(self, names: str | Iterable[str]) -> list[str]:
        """These names, as a list. Raises `ValueError` if one is not there."""
        names = [names] if isinstance(names, str) else list(names)
        if unknown := [n for n in names if n not in self.peft_config]:
            raise ValueError(f"Adapter {unknown[0]} not found; there are {sorted(self.peft_config)}.")
        return names

    # --- coming and going ---

    def admit(self, name: str, config: PeftConfig, *, trainable: bool, autocast: bool = True, file: Mapping[str, Tensor] | None = None,
              unknown_settings: Sequence[str] = (), device: torch.device | None = None, heads: Sequence[str] = (),
              ignore_mismatched_sizes: bool = False) -> LoadReport:
        """The one way an adapter comes in, new or from the tensors of a ``file``. It is not active yet. Changes nothing if it raises.

        Its dtype is the one that PEFT gives it, whatever ``autocast`` says; and it is whole or it is none, whatever
        ``ignore_mismatched_sizes`` says.

        Raises:
            ValueError: the name, another kind of adapter, settings that the model does not have. WrongBase, BadAdapter: the file.
        """
        check_name(name)
        if name in self.peft_config:
            raise ValueError(f"Adapter with name {name!r} already exists.")
        config = with_heads(config, heads)
        saved = {p.target.path: p for p in saved_modules(self.model, config)}
        of_saved, rest = _parts(file or {}, saved)
        given, more = match_layers(of_saved, saved, {}) if of_saved else ({}, LoadReport(missing=sorted(saved) if file else []))
        more = LoadReport(more.loaded, more.missing, more.unexpected)       # a prompt has no `base_model.model`: nothing is renamed
        report = self.place(name, config, None if file is None else rest, unknown_settings, device) + more
        inject(self, name, list(saved.values()), trainable=trainable, given=given)
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = getattr(self.model, "name_or_path", None) or None
        for parameter in self._thawed:
            parameter.requires_grad_(False)
        self.peft_config[name] = config
        self.set_requires_grad(name, trainable)
        return report

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter. If it was the only active one, the model is the plain base until `set_adapter`."""
        if name not in self.peft_config:
            raise ValueError(f"Adapter {name} does not exist.")
        self.forget(name)
        for layer in self.layers.values():
            layer.remove(name)
        del self.peft_config[name]
        self.trained.discard(name)
        self.stack.arrange({n: s for n, s in self.stack.entries if n != name})

    def leave(self, merged: list[str] | None = None) -> nn.Module:
        """Forget all adapters; the base, as it was."""
        for name in list(self.peft_config):
            self.delete_adapter(name)
        for path, layer in self.layers.items():
            layer.leave(self.model, path)
        self.layers.clear()
        for parameter in self._thawed:
            parameter.requires_grad_(True)
        return self.model

    # --- modules learned whole beside it ---

    def _saved(self, name: str) -> Tensors:
        return {f"{path}.{key}": t for path, layer in self.layers.items() if name in layer.tenants
                for key, t in layer.tensors(name).items() if isinstance(t, nn.Parameter)}

    @torch.no_grad()
    def load_all(self, name: str, tensors: Mapping[str, Tensor]) -> LoadReport:
        """Give an adapter, and the modules that it learns whole, the values of a file."""
        places = {path: layer.tenants[name] for path, layer in self.layers.items() if name in layer.tenants}
        of_saved, rest = _parts(tensors, places)
        given, more = match_layers(of_saved, places, {}) if of_saved else ({}, LoadReport(missing=sorted(places)))
        report = self.load(name, rest) + more
        for path, values in given.items():
            fill(self.layers[path].tensors(name), values, self.layers[path].like.device)
        return report

    # --- which are heard, and what trains ---

    def set_adapter(self, adapter_name: str | Iterable[str] | Mapping[str, float], inference_mode: bool = False) -> None:
        """Choose what is heard: one name, several, or names with strengths. What was made for training trains while it is active."""
        entries = {adapter_name: 1.0} if isinstance(adapter_name, str) else (
            dict(adapter_name) if isinstance(adapter_name, Mapping) else dict.fromkeys(adapter_name, 1.0))
        self.known(entries)
        self.stack.arrange(entries)
        wanted = {n for n in entries if not inference_mode and not self.peft_config[n].inference_mode}
        self.set_requires_grad(self.trained - wanted, False)
        self.set_requires_grad(wanted - self.trained, True)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Say which adapters train; nothing else changes."""
        for name in self.known(adapter_names):
            self.train_only(name, requires_grad)
            for tensor in self._saved(name).values():
                tensor.requires_grad_(requires_grad and tensor.is_floating_point())
            self.trained = self.trained | {name} if requires_grad else self.trained - {name}

    def enable_adapters(self, enabled: bool = True) -> None:
        """Switch all adapters on or off; what trains stays what it was."""
        self.stack.enabled = enabled
        self.stack.changed()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The plain base inside the block."""
        before = self.stack.enabled
        self.enable_adapters(False)
        try:
            yield
        finally:
            self.enable_adapters(before)

    def sampled(self, names: Sequence[str], copies: int = 1) -> AbstractContextManager[None]:
        """Raises `ValueError`: a batch cannot be divided."""
        raise ValueError("`adapter_names` cannot be used with adapters of this kind: all samples of a batch hear the same ones.")

    # --- merging ---

    def unmerge_adapter(self) -> None:
        """Nothing is ever merged."""

    def to_merge(self, names: list[str] | None = None, safe: bool = False) -> list[str]:
        """Raises `CannotMerge`: there is no weight that it could go into."""
        raise CannotMerge("An adapter of this kind cannot be merged.", "It is not in the weights.", "Keep it beside the model.")

    merge_adapter = to_merge


def _parts(file: Mapping[str, Tensor], paths: Container[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of modules at these paths, the rest)."""
    of_paths = {key: tensor for key, tensor in file.items() if split(key, paths) is not None}
    return of_paths, {key: tensor for key, tensor in file.items() if key not in of_paths}


def match(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], unknown_settings: Sequence[str] = ()) -> tuple[Tensors, LoadReport]:
    """Bring a file's tensors together with what an adapter needs; such an adapter is complete or it is none.

    Raises:
        WrongBase: sizes differ. BadAdapter: a tensor is missing, or holds values that are not numbers.
    """
    if missing := [name for name in shapes if name not in tensors]:
        raise BadAdapter(f"The adapter lacks {', '.join(missing[:3])}.", "It is of another kind or for another model, or was cut short.",
                         "Get it again, or choose another model.", details="\n".join(missing))
    wrong = [f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(shape)} in the model" for name, shape in shapes.items()
             if tuple(tensors[name].shape) != tuple(shape)]
    if wrong:
        raise WrongBase("The adapter does not fit this model.", f"{len(wrong)} of its tensors have other sizes (size mismatch).",
                        "It was made for another model (or another size of it): choose that one.", details="\n".join(wrong))
    check_finite({name: tensors[name] for name in shapes})
    return {name: tensors[name] for name in shapes}, LoadReport(
        list(shapes), unexpected=[name for name in tensors if name not in shapes], unknown_settings=list(unknown_settings))
