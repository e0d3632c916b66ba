"""A module that adapters replace as a whole: a new output layer, a norm, or only its bias.

Each adapter has its own copy beside the module, under PEFT's names. One of them at strength 1 is run itself; otherwise the module runs with
``W + Σ strength · (W' − W)`` in place of each of its tensors. The module itself is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.hosts.adapted import NOTHING, Adapted, Tenant, unwrapped
from engine.hosts.basis import Basis
from engine.hosts.shelves import Shelves
from engine.hosts.stack import LiveStack
from engine.law import Leaf, Site, Tensors
from engine.hosts.beside import WholeBias

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)     # they have no forward that could be replaced


def state_of(module: nn.Module) -> Tensors:
    """The live tensors of a module by their names in its state dict."""
    return dict(module.state_dict(keep_vars=True))


def whole_site(path: str, module: nn.Module, only: Iterable[str] | None = None) -> Site:
    """Describe a module, or only those of its tensors."""
    state = state_of(module)
    return Site(path, "module", 0, 0, leaves=tuple(
        Leaf(name, tuple(state[name].shape), state[name].dtype, isinstance(state[name], nn.Parameter)) for name in (only or state)))


def check_whole(module: nn.Module, what: str) -> None:
    """Raise `TypeError` if a module cannot be replaced as a whole. ``what`` asks for it."""
    if isinstance(module, CONTAINERS) or any(isinstance(m, Adapted) for m in module.modules()):
        raise TypeError(f"{what} cannot be applied to modules of type {type(module)}"
                        f"{'' if isinstance(module, CONTAINERS) else ': adapters sit on it, or on layers inside it'}.")


class Replaced(Shelves):
    """Stands in the place of a module and behaves like it wherever nothing is in the stack."""

    keeps: ClassVar[str] = "base_layer"    # the name under which the module itself stays

    def __init__(self, module: nn.Module, host: None, site: Site, stack: LiveStack):
        super().__init__()
        self._own = frozenset({self.keeps})
        self.add_module(self.keeps, module)
        self.site, self._stack = site, stack
        self.tenants: dict[str, Tenant] = {}
        self._kept: Tensors | None = None                     # the pristine tensors while merged ones stand in their place
        self._known: tuple[Any, Basis, Tensors] = ((), NOTHING, {})                # what was composed last, for which state and of what
        self._state: tuple[Any, list[str], nn.Module | None] = ((), [], None)      # what `_heard` found last, and for which state
        self.training = module.training

    @property
    def bare(self) -> nn.Module:
        """The module itself."""
        return self._modules[self.keeps]

    def enter(self, model: nn.Module, path: str) -> None:
        """Stand in the module's place in ``model``."""
        parent, _, leaf = path.rpartition(".")
        setattr(unwrapped(model.get_submodule(parent)), leaf, self)

    def leave(self, model: nn.Module, path: str) -> None:
        """Let the module have its place again."""
        parent, _, leaf = path.rpartition(".")
        setattr(unwrapped(model.get_submodule(parent)), leaf, self.bare)

    # --- adapters ---

    def add(self, name: str, tenant: Tenant, tensors: Tensors) -> None:
        """Let an adapter in; ``tensors`` by their names in the method's table."""
        law, pristine = tenant.method, self.pristine()
        for key, tensor in tensors.items():                   # what never learns need not be finer than the module
            if tenant.config.inference_mode and tensor.is_floating_point() and not tensor.is_meta:
                tensors[key] = nn.Parameter(tensor.detach().to(pristine[_leaf(key)].dtype), requires_grad=False)
        self.tenants[name] = tenant
        self._forget()
        if isinstance(law, WholeBias):
            self.put(name, tensors)
            return
        own = {**tenant.shared, **tensors}
        twin = copy.deepcopy(self.bare, {id(now): own[f"{law.prefix}.{leaf}"] if isinstance(now, nn.Parameter) else own[f"{law.prefix}.{leaf}"].data
                                         for leaf, now in state_of(self.bare).items()})
        self._shelf(law.prefix, nn.ModuleDict)[name] = twin

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        self.tenants.pop(name, None)
        self.clear(name)
        self._forget()

    def begin(self, tenant: Tenant, tensors: Tensors, fresh: frozenset[str]) -> None:
        """Let the tensors of ``fresh`` be those of the module."""
        for key in fresh:
            tensors[key].copy_(self.pristine()[_leaf(key)])

    def all_tensors(self, name: str) -> Tensors:
        """An adapter's tensors, those included that belong to another layer."""
        law = self.tenants[name].method
        if isinstance(law, WholeBias):
            return super().tensors(name)
        return {f"{law.prefix}.{leaf}": tensor for leaf, tensor in state_of(self._modules[law.prefix][name]).items()}

    def tensors(self, name: str) -> Tensors:
        tenant = self.tenants[name]
        own = tenant.method.tensors(tenant.config, tenant.site)
        return {key: tensor for key, tensor in self.all_tensors(name).items() if key in own}

    # --- running ---

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._stack.samples is not None:
            return self._per_sample(args, kwargs)
        return self._run(self._stack, args, kwargs)

    def _run(self, stack: LiveStack, args: tuple, kwargs: dict) -> Any:
        heard, twin = self._heard(stack)
        if twin is not None:
            return twin(*args, **kwargs)
        return functional_call(self.bare, self._present(stack, heard), args, kwargs)

    def _heard(self, stack: LiveStack) -> tuple[list[str], nn.Module | None]:
        """(adapters that are heard here, the one module that is all there is to run, if there is one); found out once for a state of the stack."""
        state = (stack, stack.version, stack.tick)
        if self._state[0] != state:
            heard = [name for name in stack.heard() if name in self.tenants]
            self._state = (state, heard, self._alone(stack, heard) if heard else self.bare)
        return self._state[1:]

    def _alone(self, stack: LiveStack, heard: list[str]) -> nn.Module | None:
        """The one copy that is all there is to run."""
        law = self.tenants[heard[0]].method
        if len(heard) > 1 or stack.strength(heard[0]) != 1 or self._kept is not None or isinstance(law, WholeBias):
            return None
        twin = self._modules[law.prefix][heard[0]]
        return twin if all(a.dtype == b.dtype for a, b in zip(twin.parameters(), self.bare.parameters(), strict=True)) else None

    def _forget(self) -> None:
        """What was found out and composed no longer holds."""
        self._known, self._state = ((), NOTHING, {}), ((), [], None)

    def _present(self, stack: LiveStack, heard: list[str]) -> Tensors:
        """What the module runs with; where nothing learns, composed anew only when a strength or a tensor has changed."""
        if torch.is_grad_enabled() or any(t.requires_grad for name in heard for t in self.all_tensors(name).values()):
            return self.composed(heard, stack, onto=state_of(self.bare))
        state = (stack, stack.version, stack.tick)
        if self._known[0] != state or self._known[1].moved():
            places = [(held, key) for module in self.modules() for held in (module._parameters, module._buffers) for key in held]
            self._known = (state, Basis(places, False), self.composed(heard, stack, onto=state_of(self.bare)))
        return self._known[2]

    def _per_sample(self, args: tuple, kwargs: dict) -> Tensor:
        """Each row of the batch through its own adapter (or none)."""
        samples, x = self._stack.samples, args[0] if args else next(iter(kwargs.values()))
        samples.check(x)
        count = len(samples)
        y = None
        for name, rows in samples.rows.items():
            def part(value: Any, rows: Tensor = rows) -> Any:
                return value[rows] if isinstance(value, Tensor) and value.dim() and value.shape[0] == count else value

            given, named = tuple(map(part, args)), {key: part(value) for key, value in kwargs.items()}
            done = self._run(self._stack.solo(name), given, named) if name in self.tenants else self.bare(*given, **named)
            if not isinstance(done, Tensor):
                raise TypeError(f"Mixed batching is only supported for modules that return one tensor; {type(self.bare).__name__} does not.")
            y = done.new_empty(count, *done.shape[1:]) if y is None else y
            y[rows] = done
        return y

    # --- merging: composed from the pristine module, never subtracted ---

    @property
    def pristine_weight(self) -> Tensor:
        """One of the module's own tensors, which tells device and number format."""
        return next((t for t in self.pristine().values() if t.is_floating_point()), torch.empty(0))

    @property
    def like(self) -> Tensor:
        """As `pristine_weight`."""
        return self.pristine_weight

    def pristine(self) -> Tensors:
        """The module's own tensors, whatever is merged."""
        return state_of(self.bare) if self._kept is None else self._kept

    def composed(self, names: Iterable[str], stack: LiveStack, pristine: Mapping[str, Tensor] | None = None,
                 onto: Mapping[str, Tensor] | None = None) -> Tensors:
        """Those of the module's tensors that differ with these adapters put on, by leaf; differentiable, in the module's dtypes.

        Args:
            pristine: the module's tensors, where it holds none itself (streaming merges). onto: what they are put on, if not those.
        """
        pristine = self.pristine() if pristine is None else pristine
        found: Tensors = {}
        for name in names:
            if name not in self.tenants or (strength := stack.strength(name)) == 0:
                continue
            tenant = self.tenants[name]
            for key, other in self.all_tensors(name).items():
                leaf = _leaf(key)
                if leaf not in pristine or key in tenant.fresh:
                    continue
                W0 = pristine[leaf].detach()
                other = other.to(W0.device)
                if not W0.is_floating_point():
                    found[leaf] = other
                    continue
                exact = torch.promote_types(W0.dtype, torch.float32)
                W = found.get(leaf, onto[leaf].detach() if onto is not None else W0).to(exact)
                alone = leaf not in found and strength == 1 and (onto is None or self._kept is None)
                found[leaf] = other.to(exact) if alone else W + strength * (other.to(exact) - W0.to(exact))
        return {leaf: tensor.to(pristine[leaf].dtype) for leaf, tensor in found.items()}

    @torch.no_grad()
    def compose_leaf(self, leaf: str, W0: Tensor) -> Tensor:
        """One tensor with the stack baked in, where the module itself holds none (streaming merges)."""
        return self.composed(self._stack.names, self._stack, {leaf: W0})[leaf]

    @torch.no_grad()
    def to_write(self, names: Iterable[str]) -> Tensors:
        """What a merge puts in the place of the module's own tensors."""
        return self.composed(names, self._stack)

    def merge(self, names: Iterable[str]) -> None:
        """Let composed tensors stand in for the module's own, which are kept; `unmerge` puts the very same objects back."""
        found = self.to_write(names)
        if found:
            self._kept = {**state_of(self.bare), **(self._kept or {})}
            self._forget()
            self._put({leaf: t.clone() for leaf, t in found.items()})

    def merged_tensors(self) -> Iterator[tuple[Tensor, Tensor, Callable[[Tensor], None]]]:
        """(pristine tensor, the one that stands in its place, what puts another there)."""
        now = {} if self._kept is None else state_of(self.bare)
        yield from ((self._kept[leaf], tensor, lambda other, leaf=leaf: self._put({leaf: other})) for leaf, tensor in now.items()
                    if tensor is not self._kept[leaf])

    def unmerge(self) -> None:
        """Restore the module's tensors, bit for bit."""
        if self._kept is not None:
            self._put(self._kept)
            self._kept = None
            self._forget()

    def _put(self, tensors: Tensors) -> None:
        for leaf, tensor in tensors.items():
            path, _, name = leaf.rpartition(".")
            owner = self.bare.get_submodule(path)
            if name in owner._buffers:
                owner._buffers[name] = tensor
            else:
                owner._parameters[name] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)

    # --- looking like the module ---

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_stack" not in self.__dict__:
                raise
            heard, twin = self._heard(self._stack)
            own = self.bare._parameters.get(name) if twin is None and self._stack.samples is None else None
            if own is not None:            # read past `forward`: layers that run as one kernel do that
                return self._present(self._stack, heard).get(name, own)
            return getattr(self.bare if twin is None else twin, name)

    def _apply(self, fn: Any, recurse: bool = True) -> "Replaced":
        super()._apply(fn, recurse)
        if self._kept is not None:
            self._kept = {leaf: nn.Parameter(fn(t.data), requires_grad=False) if isinstance(t, nn.Parameter) else fn(t)
                          for leaf, t in self._kept.items()}
        self._forget()
        return self


class SavedModule(Replaced):
    """A module that an adapter has a copy of beside what it does elsewhere (``modules_to_save``)."""

    keeps = "original_module"


def _leaf(key: str) -> str:
    """``modules_to_save.dense.weight`` → ``dense.weight``."""
    return key.partition(".")[2]
