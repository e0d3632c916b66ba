"""Where adapters' tensors stand in a module tree: by kind, then by adapter, as PEFT names them.

A tensor called ``lora_A.weight`` of the adapter ``joe`` is the parameter ``lora_A.joe.weight``; one called ``hada_w1_a`` is ``hada_w1_a.joe``.
What never learns (positions, fixed projections) is a buffer, as there.
So a key in a file is the key in memory less the adapter's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, KeysView
from typing import Any

import torch
from torch import Tensor, nn

from engine.law import Tensors

Places = dict[str, tuple[dict[str, Any], str]]                # name of a tensor → (what of a module holds it, its name there)


class _Steady(nn.Module):
    """Its buffers stay the same objects when they move or change their number format, as parameters do: others hold them too."""

    def _apply(self, fn: Callable, recurse: bool = True) -> "_Steady":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            if torch._has_compatible_shallow_copy_type(old, new := self._buffers[name]):
                old.data, self._buffers[name] = new, old
        return self


class Fixed(_Steady):
    """A shelf of tensors that never learn, by adapter."""

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor)

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name]

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def keys(self) -> KeysView[str]:
        """Names of the adapters."""
        return self._buffers.keys()


class Various(Fixed):
    """A shelf on which adapters of different methods keep different things under one name: LoRA's ``lora_A`` is a slot, AdaLoRA's a tensor."""

    def __init__(self, shelf: Any):
        super().__init__()
        for name in list(shelf):
            self[name] = shelf[name]

    def __setitem__(self, name: str, thing: Tensor | nn.Module) -> None:
        setattr(self, name, thing) if isinstance(thing, (nn.Module, nn.Parameter)) else self.register_buffer(name, thing)

    def __getitem__(self, name: str) -> Any:
        return next(held[name] for held in (self._modules, self._parameters, self._buffers) if name in held)

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __contains__(self, name: str) -> bool:
        return any(name in held for held in (self._modules, self._parameters, self._buffers))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> KeysView[str]:
        return {**self._modules, **self._parameters, **self._buffers}.keys()


class _WhenAsked:
    """A container of a module's that is made when somebody first asks for it."""

    def __init__(self, name: str, kind: type):
        self.name, self.kind = name, kind

    def __get__(self, module: nn.Module | None, _: type) -> Any:
        return self if module is None else module.__dict__.setdefault(self.name, self.kind())


class Slot(_Steady):
    """Holds one adapter's tensors of one kind (``lora_A`` → ``weight``, ``bias``), so that names nest as in PEFT.

    An adapter on thousands of layers has thousands. What else a module holds, a dozen containers for hooks, it has of its class until it needs it.
    """

    def __init__(self) -> None:
        self.__dict__.update(_parameters={}, _buffers={}, _modules={})

    def put(self, leaf: str, tensor: Tensor) -> None:
        """Store a tensor; where its name has dots (``0.weight``), slots within this one are made for it."""
        first, _, rest = leaf.partition(".")
        if rest:
            if first not in self._modules:
                self.add_module(first, Slot())
            self._modules[first].put(rest, tensor)
        else:                              # what `register_parameter` and `register_buffer` do, without their checks of the name
            (self._parameters if isinstance(tensor, nn.Parameter) else self._buffers)[first] = tensor

    def read(self, prefix: str, found: Places) -> None:
        """Add the places of all tensors to ``found``, by the tensors' dotted names."""
        for held in (self._parameters, self._buffers):
            for leaf in held:
                found[f"{prefix}.{leaf}"] = held, leaf
        for leaf, slot in self._modules.items():
            slot.read(f"{prefix}.{leaf}", found)


for _name, _value in vars(nn.Module()).items():
    setattr(Slot, _name, _WhenAsked(_name, type(_value)) if isinstance(_value, (dict, set)) else _value)


class Shelves(nn.Module):
    """A module with a shelf for each kind of tensor, and on each a place for each adapter."""

    _own: frozenset[str] = frozenset()     # submodules that are no shelves

    def put(self, name: str, tensors: Tensors) -> None:
        """Store an adapter's tensors: parameters as such, others as buffers."""
        for key, tensor in tensors.items():
            kind, _, leaf = key.partition(".")
            if leaf:
                slots = self._shelf(kind, nn.ModuleDict)._modules
                if name not in slots:
                    slots[name] = Slot()
                slots[name].put(leaf, tensor)
            else:
                self._shelf(kind, nn.ParameterDict if isinstance(tensor, nn.Parameter) else Fixed)[name] = tensor

    def tensors(self, name: str) -> Tensors:
        """An adapter's tensors by their names in the method's table; the live ones, not copies."""
        return {key: held[leaf] for key, (held, leaf) in self.places(name).items()}

    def places(self, name: str) -> Places:
        """Where an adapter's tensors are held, by the same names."""
        found: Places = {}
        for kind, shelf in self._modules.items():
            if kind not in self._own and name in shelf:
                if name in shelf._modules:
                    shelf._modules[name].read(kind, found)
                else:
                    found[kind] = shelf._parameters if name in shelf._parameters else shelf._buffers, name
        return found

    def clear(self, name: str) -> None:
        """Forget an adapter; empty shelves go with it."""
        for kind in [k for k in self._modules if k not in self._own]:
            shelf = self._modules[kind]
            if name in shelf:
                del shelf[name]
            if not len(shelf):
                delattr(self, kind)

    def _shelf(self, kind: str, container: type) -> Any:
        if kind not in self._modules:
            self.add_module(kind, container())
        elif not isinstance(self._modules[kind], (container, Various)):
            self._modules[kind] = Various(self._modules[kind])
        return self._modules[kind]
