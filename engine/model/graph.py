"""What adapters that change a model's graph have in common, adaption prompts and shadows: some of its modules are wrapped while there is one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.checkpoint.keys import file_key, split
from engine.checkpoint.load import fill
from engine.checkpoint.report import LoadReport
from engine.law import Tensors
from engine.model.lone import LoneTuner, match


class GraphTuner(LoneTuner, nn.Module):
    """Holds the user's model as ``model``, whose attributes are its own. What it wraps is put back when the last adapter there goes."""

    inner: ClassVar[str]                   # where a wrapper has what was there before

    def __init__(self, model: nn.Module):
        nn.Module.__init__(self)
        self.begin(model)
        self._paths: dict[str, list[str]] = {}                 # adapter name → what is wrapped for it

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    @abstractmethod
    def tensors(self, name: str) -> Tensors:
        """The live tensors of an adapter by their keys in the file."""

    @torch.no_grad()
    def load(self, name: str, tensors: Mapping[str, Tensor]) -> LoadReport:
        live = self.tensors(self.known(name)[0])
        given, report = match(self._by_our_keys(tensors, self._paths[name]), {key: t.shape for key, t in live.items()})
        fill(live, given, next(self.model.parameters()).device)
        return report

    def to_file(self, name: str) -> Tensors:
        return self.tensors(self.known(name)[0])

    def forget(self, name: str) -> None:
        for path in self._paths.pop(name):
            wrapper = self.model.get_submodule(path)
            wrapper.clear(name)
            if not any(path in paths for paths in self._paths.values()):
                self._swap(path, getattr(wrapper, self.inner))

    def _swap(self, path: str, module: nn.Module) -> None:
        parent, _, leaf = path.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, module)

    def _by_our_keys(self, file: Mapping[str, Tensor], paths: Sequence[str]) -> dict[str, Tensor]:
        """The file with each key as it should be, whatever prefixes it was written with."""
        known = set(paths)
        return {self._our_key(key, known): tensor for key, tensor in file.items()}

    def _our_key(self, key: str, paths: Set[str]) -> str:
        return file_key(*place) if (place := split(key, paths)) else key
