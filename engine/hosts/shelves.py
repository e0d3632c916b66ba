"""Where adapters' tensors stand in a module tree: by kind, then by adapter, as PEFT names them.

A tensor called ``lora_A.weight`` of the adapter ``joe`` is the parameter ``lora_A.joe.weight``; one called ``hada_w1_a`` is ``hada_w1_a.joe``.
So a key in a file is the key in memory less the adapter's name.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from engine.methods.base import Tensors


class Slot(nn.Module):
    """Holds one adapter's tensors of one kind (``lora_A`` → ``weight``, ``bias``), so that names nest as in PEFT."""

    def put(self, leaf: str, parameter: nn.Parameter) -> None:
        """Store a tensor; where its name has dots (``0.weight``), slots within this one are made for it."""
        first, _, rest = leaf.partition(".")
        if not rest:
            self.register_parameter(first, parameter)
            return
        if first not in self._modules:
            self.add_module(first, Slot())
        self._modules[first].put(rest, parameter)

    def read(self, prefix: str, found: Tensors) -> None:
        """Add all tensors to ``found``, by their dotted names."""
        for leaf, parameter in self._parameters.items():
            found[f"{prefix}.{leaf}"] = parameter
        for leaf, slot in self._modules.items():
            slot.read(f"{prefix}.{leaf}", found)


class Shelves(nn.Module):
    """A module with a shelf for each kind of tensor, and on each a place for each adapter."""

    _own: frozenset[str] = frozenset()     # submodules that are no shelves

    def put(self, name: str, tensors: Tensors) -> None:
        """Store an adapter's tensors; what is no parameter yet becomes one that does not train."""
        for key, tensor in tensors.items():
            kind, _, leaf = key.partition(".")
            parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
            if leaf:
                shelf = self._shelf(kind, nn.ModuleDict)
                if name not in shelf:
                    shelf[name] = Slot()
                shelf[name].put(leaf, parameter)
            else:
                self._shelf(kind, nn.ParameterDict)[name] = parameter

    def tensors(self, name: str) -> Tensors:
        """An adapter's tensors by their names in the method's table; the live parameters, not copies."""
        found: Tensors = {}
        for kind, shelf in self._modules.items():
            if kind not in self._own and name in shelf:
                if isinstance(shelf[name], Slot):
                    shelf[name].read(kind, found)
                else:
                    found[kind] = shelf[name]
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
        return self._modules[kind]
