"""PEFT's classes of layers and tuners, told by what a layer of ours holds rather than by inheritance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from engine.errors import StudioError
from engine.hosts.adapted import Adapted
from engine.hosts.replaced import Replaced, SavedModule
from engine.methods.trainable_tokens import TokenAdapter, TrainableTokens
from engine.model.tuner import Tuner

PeftError = StudioError


class PeftWarning(UserWarning):
    """Warnings of adapters."""


class Told(type):
    """The type of classes that stand for others: an object is an instance if `holds` says so."""

    holds: Callable[[Any], bool]

    def __instancecheck__(cls, thing: Any) -> bool:
        return type.__instancecheck__(cls, thing) or ("holds" in cls.__dict__ and cls.holds(thing))


class BaseTunerLayer(metaclass=Told):
    """Any layer with adapters. A program's own class may be derived from it; see `engine.compat.custom`."""

    def __init__(self, base_layer: nn.Module, adapter_name: str | None = None, config: Any = None, r: int = 0, lora_alpha: float = 1, **kwargs: Any):
        self.make_shelves()
        if adapter_name is not None:       # PEFT's own classes of layers; ``LoraLayer`` is not told for whom it is
            self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    holds = staticmethod(lambda thing: isinstance(thing, (Adapted, Replaced)) and not isinstance(thing, (SavedModule, TrainableTokensWrapper)))


class BaseTuner(metaclass=Told):
    """What stands between a `PeftModel` and the user's model."""

    holds = staticmethod(lambda thing: isinstance(thing, Tuner))


def _words(thing: Any) -> bool:
    return isinstance(thing, Adapted) and bool(thing.tenants) and all(isinstance(t.method, TokenAdapter) for t in thing.tenants.values())


class ModulesToSaveWrapper(metaclass=Told):
    """A module that is trained as a whole."""

    holds = staticmethod(lambda thing: isinstance(thing, SavedModule))


class TrainableTokensWrapper(metaclass=Told):
    """A layer of which some rows are trained, beside an adapter of another kind."""

    holds = staticmethod(_words)


class TrainableTokensLayer(metaclass=Told):
    """The rows themselves."""

    holds = staticmethod(lambda thing: isinstance(thing, Adapted) and any(isinstance(t.method, TrainableTokens) for t in thing.tenants.values()))


class AuxiliaryTrainingWrapper(metaclass=Told):
    """Either of the two."""

    holds = staticmethod(lambda thing: isinstance(thing, (ModulesToSaveWrapper, TrainableTokensWrapper)))


@cache
def kind(name: str, peft_type: str, layer: str = "") -> type:
    """The class ``name`` of PEFT's: layers (or tuners, where the name ends in “Model”) with an adapter of this type.

    Args:
        layer: only round a layer of this class (``Linear`` …).
    """
    def sits(thing: Any) -> bool:
        return isinstance(thing, BaseTunerLayer) and any(t.config.peft_type == peft_type for t in thing.tenants.values()) and (
            not layer or type(thing.bare).__name__ == layer)

    def tunes(thing: Any) -> bool:
        return isinstance(thing, Tuner) and any(c.peft_type == peft_type for c in thing.peft_config.values())

    holds = tunes if name.endswith("Model") else sits
    return Told(name, (BaseTuner if name.endswith("Model") else BaseTunerLayer,), {
        "holds": staticmethod(holds), "uses_shared_state": False, "__module__": "peft", "__doc__": f"PEFT's {name}, by what it holds."})


@cache
def layer_class(cls: type[Adapted], kind: str) -> type[Adapted]:
    """``cls`` under another name for each kind of adapters, as in PEFT, so that programs can tell layers by their types."""
    made = type(f"{cls.__name__}_{kind}", (cls,), {"__module__": __name__})
    globals()[made.__name__] = made        # where pickles look for it
    return made


@cache
def refusing(name: str) -> type:
    """A class for a name of PEFT's that this engine has nothing for: it says so when it is used."""
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name} is not offered by this engine.")

    return type(name, (), {"__new__": refuse, "from_pretrained": classmethod(refuse), "__doc__": "Not offered by this engine.", "__module__": "peft"})


class BufferDict(nn.Module):
    """Buffers by name, as `torch.nn.ParameterDict` keeps parameters."""

    def __init__(self, buffers: dict[str, torch.Tensor] | None = None, persistent: bool = False):
        super().__init__()
        self.persistent = persistent
        self.update(buffers or {})

    def update(self, buffers: Any) -> None:
        """Take in all of these."""
        for name, tensor in dict(buffers).items():
            self[name] = tensor

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self.register_buffer(name, tensor, persistent=self.persistent)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._buffers[name]

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Any:
        return iter(self._buffers)

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def keys(self) -> Any:
        return self._buffers.keys()

    def items(self) -> Any:
        return self._buffers.items()

    def values(self) -> Any:
        return self._buffers.values()

    def pop(self, name: str) -> torch.Tensor:
        """Take one out."""
        return self._buffers.pop(name)

    def clear(self) -> None:
        self._buffers.clear()
