"""What PEFT's classes have and ours have not, put on ours: properties that show, methods that translate."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from engine.compat import blocks
from engine.errors import StudioError
from engine.compat.kinds import AuxiliaryTrainingWrapper, TrainableTokensLayer, TrainableTokensWrapper, layer_class
from engine.hosts.adapted import Adapted
from engine.hosts.parameter import AdaptedParameter
from engine.hosts.replaced import Replaced, SavedModule
from engine.hosts.shelves import Fixed, Slot
from engine.hosts.beside import BIAS, SAVED
from engine.methods.alora import Activated
from engine.methods.frod import category
from engine.methods.trainable_tokens import ROWS


def attach(views: type, cls: type) -> None:
    """Give ``cls`` the members of ``views``; what it had under their names stays at hand in ``views.native``."""
    views.native = {name: getattr(cls, name) for name in vars(views) if name in dir(cls)}
    for name, member in vars(views).items():
        if name not in ("__module__", "__doc__", "__dict__", "__weakref__", "native", "__qualname__", "__firstlineno__", "__static_attributes__"):
            setattr(cls, name, member)


def attach_all() -> None:
    """Dress the engine's classes; once a process."""
    from engine.compat import configs, custom, model, names, xlora
    from engine.methods.registry import config_class
    from engine.methods.registry import names as known
    from engine.model.graph import GraphTuner
    from engine.model.lone import LoneTuner
    from engine.model.peft_model import PeftModel
    from engine.model.tuner import Tuner
    from engine.model.xlora import XLoraTuner

    for peft_type in known():
        if peft_type in names._CONFIGS:
            configs.dress(config_class(peft_type), peft_type)
    config_class("LORA")._register_custom_module = custom.register
    attach(configs.ConfigViews, configs.PeftConfig)
    for cls in (Adapted, Replaced):
        attach(WrapperViews, cls)
    attach(LayerViews, Adapted)
    attach(ReplacedViews, Replaced)
    attach(SlotViews, Slot)
    attach(ErrorViews, StudioError)
    attach(model.TunerViews, Tuner)
    attach(model.LoneViews, LoneTuner)
    attach(model.GraphViews, GraphTuner)
    attach(xlora.XLoraViews, XLoraTuner)
    attach(model.ModelViews, PeftModel)


class _PerAdapter(MutableMapping):
    """A dict by adapter name that is read from the layer each time it is asked."""

    def __init__(self, layer: Adapted, read: Any, write: Any = None):
        self._layer, self._read, self._write = layer, read, write

    def settle(self) -> None:
        """Be an ordinary dict from now on, with the values of this moment."""
        values = dict(self)
        self._read, self._layer = values.__getitem__, SimpleNamespace(tenants={name: name for name in values})
        self._write = None

    def __getitem__(self, name: str) -> Any:
        if name not in self._layer.tenants:
            raise KeyError(name)
        return self._read(self._layer.tenants[name])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(name)
        return self[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if repr(value) == repr(self.get(name)):
            return
        if self._write is None:
            raise TypeError("This setting cannot be changed from outside of its adapter's config.")
        self._layer.tenants[name] = self._write(self._layer.tenants[name], value)
        self._layer._stack.changed()

    def __delitem__(self, name: str) -> None:
        raise TypeError("Use delete_adapter.")

    def copy(self) -> dict[str, Any]:
        """As an ordinary dict."""
        return dict(self)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._layer.tenants))

    def __len__(self) -> int:
        return len(self._layer.tenants)

    def __repr__(self) -> str:
        return repr(dict(self))


def _setting(*fields: str, default: Any = None) -> property:
    """A view of a config's field, by adapter."""
    return property(lambda layer: _PerAdapter(layer, lambda t: next((getattr(t.config, f) for f in fields if hasattr(t.config, f)), default)))


def _innermost(law: Any, name: str) -> Any:
    """What the law, or one that it goes round, has under this name; None if none has."""
    while not hasattr(law, name) and hasattr(law, "inner"):
        law = law.inner
    return getattr(law, name, None)


def _scale(tenant: Any) -> float:
    scale = _innermost(tenant.method, "scale")
    return float(scale(tenant.config, tenant.site)) if scale is not None else 1.0


def _rescale(tenant: Any, value: float) -> Any:
    """The tenant with settings that give this scale: alpha grows in proportion to what it was at first."""
    import copy

    origin = tenant._replace(config=getattr(tenant.config, "_unscaled", tenant.config))
    config, first = copy.copy(origin.config), _scale(origin)
    if value == first:
        return origin
    factor = value / first if first else 0.0
    field = next((f for f in ("lora_alpha", "alpha") if hasattr(config, f)), None)
    if field is None:
        raise TypeError(f"The scaling of {type(config).__name__} cannot be changed.")
    setattr(config, field, getattr(config, field) * factor)
    if getattr(config, "alpha_pattern", None):
        config.alpha_pattern = {k: v * factor for k, v in config.alpha_pattern.items()}
    config._unscaled = origin.config
    return tenant._replace(config=config)


# what layers of a method have in PEFT, whether or not there is something on it
_SHELVES = {"LORA": ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_variant"),
            "DEFT": ("deft_P", "deft_R")}
_WORDS = (ROWS, "trainable_tokens_original")


class _Empty(nn.ModuleDict):
    """A shelf that no adapter has put anything on; it is part of no module tree."""


class WrapperViews:
    """What ``BaseTunerLayer`` and ``AuxiliaryTrainingWrapper`` have in PEFT, for `Adapted` and `Replaced`."""

    r = property(lambda layer: _PerAdapter(layer, lambda t: _rank(layer, t)))
    lora_alpha, alpha = _setting("lora_alpha", "alpha"), _setting("alpha", "lora_alpha")
    use_rslora, use_dora, lora_bias = (_setting(n, default=False) for n in ("use_rslora", "use_dora", "lora_bias"))
    is_feedforward = property(lambda layer: any(getattr(t.method, "acts_in", lambda *_: False)(t.config, t.site) for t in layer.tenants.values()))
    lora_dropout = property(lambda layer: _PerAdapter(layer, lambda t: _dropout(t.method.dropout(t.config))))
    fan_in_fan_out = property(lambda layer: type(layer.bare).__name__ == "Conv1D")

    @property
    def scaling(self: Adapted) -> MutableMapping:
        """The same object each time, so that a program which has kept it and gives the layer another one still has the old numbers."""
        if "_scaling" not in self.__dict__:
            self.__dict__["_scaling"] = _PerAdapter(self, _scale, _rescale)
        return self.__dict__["_scaling"]

    @scaling.setter
    def scaling(self: Adapted, scaling: Mapping[str, float]) -> None:
        values, before = dict(scaling), self.__dict__.pop("_scaling", None)
        if before is not None:
            before.settle()
        for name, value in values.items():
            self.scaling[name] = value

    @property
    def in_features(self: Adapted) -> int:
        base = self.bare
        known = next((getattr(base, n) for n in ("in_features", "num_embeddings", "in_channels") if hasattr(base, n)), None)
        return self.site.columns if known is None else known

    @property
    def out_features(self: Adapted) -> int:
        base = self.bare
        known = next((getattr(base, n) for n in ("out_features", "embedding_dim", "out_channels") if hasattr(base, n)), None)
        return self.site.out if known is None else known

    @property
    def adapter_layer_names(self: Adapted) -> tuple[str, ...]:
        return tuple(kind for kind, shelf in self._modules.items() if kind not in self._own and type(shelf) is not Fixed)

    @property
    def other_param_names(self: Adapted) -> tuple[str, ...]:
        fixed = tuple(kind for kind, shelf in self._modules.items() if kind not in self._own and type(shelf) is Fixed)
        return ("r", "lora_alpha", "scaling", "lora_dropout", *fixed)

    @property
    def active_adapters(self: Adapted) -> list[str]:
        """Of a tuner layer, whatever is active in the model; of what stands beside one, what is here."""
        names = self._stack.names
        return [n for n in names if n in self.tenants] if isinstance(self, AuxiliaryTrainingWrapper) else names

    @property
    def active_adapter(self: Adapted) -> str | list[str]:
        """Of a tuner layer a list, of what stands beside one the name, if there is one."""
        names = self.active_adapters
        return names[0] if len(names) == 1 and isinstance(self, SavedModule) else names

    @property
    def _adapters(self: Adapted) -> set[str]:
        return set(self.tenants)

    _active_adapter = active_adapter

    @property
    def merged_adapters(self: Adapted) -> list[str]:
        return [name for name in self._stack.merged if name in self.tenants]

    @property
    def merged(self: Adapted) -> bool:
        return bool(self.merged_adapters)

    @property
    def disable_adapters(self: Adapted) -> bool:
        return not self._stack.enabled or "_off" in self.__dict__

    _disable_adapters = disable_adapters

    def enable_adapters(self: Adapted, enabled: bool) -> None:
        """Switch this layer's adapters on (the active ones train then) or off."""
        self.__dict__.pop("_off", None)
        if not enabled:
            self.__dict__["_off"] = True
            self.unmerge()
        for name in self._stack.names if enabled else self.tenants:
            self.set_requires_grad(name, enabled)

    def get_base_layer(self: Adapted) -> nn.Module:
        return self.bare

    def _get_available_adapters(self: Adapted) -> set[str]:
        return set(self.tenants)

    def _all_available_adapter_names(self: Adapted) -> list[str]:
        return sorted(self.tenants)

    def set_adapter(self: Adapted, adapter_names: str | Iterable[str], inference_mode: bool = False) -> None:
        """Make these the stack (of the whole model: one stack is shared by all layers), and let them train."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if self._stack.names != names:
            self._stack.arrange(names)
        for name in self.tenants:
            self.set_requires_grad(name, name in names and not inference_mode)

    def set_requires_grad(self: Adapted, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.tenants:
                tenant = self.tenants[name]
                specs = tenant.method.tensors(tenant.config, tenant.site)
                for key, tensor in self.tensors(name).items():
                    tensor.requires_grad_(requires_grad and specs[key].trainable and tensor.is_floating_point())
        self._stack.changed()

    def delete_adapter(self: Adapted, adapter_name: str) -> None:
        if adapter_name in self.tenants:
            self.remove(adapter_name)
        if adapter_name in self._stack.names:
            self._stack.arrange({n: s for n, s in self._stack.entries if n != adapter_name})

    def set_scale(self: Adapted, adapter: str, scale: float) -> None:
        """The adapter's own scaling times ``scale``."""
        if adapter in self.tenants:
            first = self.__dict__.setdefault("_first_scaling", {}).setdefault(adapter, self.scaling[adapter])
            self.scaling[adapter] = first * scale

    def scale_layer(self: Adapted, scale: float) -> None:
        for name in self._stack.names:
            if name in self.tenants and scale != 1:
                self.__dict__.setdefault("_first_scaling", {}).setdefault(name, self.scaling[name])
                self.scaling[name] *= scale

    def unscale_layer(self: Adapted, scale: float | None = None) -> None:
        for name in self._stack.names:
            if name in self.tenants:
                first = self.__dict__.get("_first_scaling", {}).get(name, self.scaling[name])
                self.scaling[name] = first if scale is None else self.scaling[name] / scale

    def _shelf(self: Adapted, kind: str, container: type) -> Any:
        if kind not in self._modules:      # `__getattr__` shows shelves that are not there
            self._modules[kind] = container()
        return WrapperViews.native["_shelf"](self, kind, container)

    def extra_repr(self: Adapted) -> str:
        if isinstance(self, AdaptedParameter):
            return f"parameter_name={self.host.name!r}"
        return f"in_features={self.in_features}, out_features={self.out_features}" if type(self.bare).__name__ == "Conv1D" else ""

    def _get_name(self: Adapted) -> str:
        kinds = sorted({str(getattr(t.config.peft_type, "value", t.config.peft_type)).lower() for t in self.tenants.values()})
        layer = "ParamWrapper" if isinstance(self, AdaptedParameter) and self.site.kind == "parameter" else type(self.bare).__name__
        return f"{kinds[0] if kinds else 'peft'}.{'Linear' if layer == 'Conv1D' else layer}"


class LayerViews:
    """What only layers with a weight have in PEFT, for `Adapted`."""

    def add(self: Adapted, name: str, tenant: Any, tensors: Any) -> None:
        """As ever, and the layer gets the class of its first kind of adapters."""
        LayerViews.native["add"](self, name, tenant, tensors)
        blocks.show(self, name)
        self.__class__ = _classes(self)[0]

    def named_modules(self: Adapted, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
        """Where kinds of adapters meet on a layer, PEFT has a layer round the layer: here the same one shows once more for each further kind.
        Words beside another adapter have one, too, which is in their names."""
        words = self._modules.get(ROWS) if isinstance(self, TrainableTokensWrapper) else None
        for path, module in LayerViews.native["named_modules"](self, memo, prefix, remove_duplicate):
            yield (f"{prefix}.token_adapter.{ROWS}" if module is words and words is not None else path), module
        for cls in _classes(self)[1:]:
            twin = cls.__new__(cls)
            twin.__dict__ = self.__dict__
            yield f"{prefix}.base_layer", twin

    def forward(self: Adapted, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As ever, unless this layer alone is switched off: that can be done to PEFT's layers one by one."""
        if "_off" in self.__dict__:
            return self.base_layer(x, *args, **kwargs)
        return LayerViews.native["forward"](self, x, *args, **kwargs)

    def merge(self: Adapted, safe_merge: bool | list[str] = False, adapter_names: list[str] | None = None) -> None:
        """Ours takes names; PEFT's checks first and takes what is active. One layer alone can only be tried, for merging is the model's."""
        if not isinstance(safe_merge, bool):
            LayerViews.native["merge"](self, safe_merge)
            return
        names = self._stack.names if adapter_names is None else adapter_names
        merged = self.compose_both(names=[name for name in names if name in self.tenants])
        for what, tensor in zip(("weights", "bias"), merged):
            if safe_merge and tensor is not None and not tensor.isfinite().all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken: "
                                 f"NaNs detected in the merged {what}.")
        raise NotImplementedError("Layers are merged all together: use the model's merge_adapter().")

    def _restore_weights(self: Adapted) -> None:
        """Nothing to do: attention's own weights are where they always were."""

    @property
    def bias(self: Adapted) -> Tensor | None:
        """A learned bias where there is one: in PEFT that is the base's own."""
        for name in self.active_adapters:
            if name in self.tenants and (own := self.tensors(name).get(BIAS)) is not None:
                return own
        return self.base_layer.bias

    def get_delta_weight(self: Adapted, adapter: str) -> Tensor:
        """ΔW of one adapter in the layer's own layout."""
        tenant = self.tenants[adapter]
        W0 = self.canonical().float() if tenant.method.needs_base or not hasattr(tenant.method, "factors") else None
        law = tenant.method.inner if isinstance(tenant.method, Activated) else tenant.method       # an aLoRA's, once it is called
        delta = law.delta(self.all_tensors(adapter), tenant.config, tenant.site, self.canonical().float() if W0 is None else W0)
        return self._host.native(delta, self.pristine_weight)

    def __getattr__(self: Adapted, name: str) -> Any:
        try:
            return LayerViews.native["__getattr__"](self, name)
        except AttributeError:
            if name in (owners := self.__dict__.get("_owners", {})):
                return getattr(owners[name], name)
            keys = (name, f"{name}.{category(self.site.path)}")
            if shared := {adapter: t.shared[key] for adapter, t in self.tenants.items() for key in keys if key in t.shared}:
                return shared
            if any(name in _SHELVES.get(t.config.peft_type, ()) for t in self.tenants.values()) or not self.tenants and name in _WORDS:
                return _Empty()
            raise

    @property
    def token_adapter(self: Adapted) -> Adapted:
        """Rows of words stand beside all else that is on the layer, so the layer itself is what PEFT keeps in it."""
        if not isinstance(self, TrainableTokensWrapper) and self.tenants:
            raise AttributeError("token_adapter")
        return self                        # also when the last one has left

    @property
    def original_module(self: Adapted) -> nn.Module:
        """What was there before rows of it were trained."""
        if not isinstance(self, TrainableTokensWrapper):
            raise AttributeError("original_module")
        return self.base_layer

    @property
    def token_indices(self: Adapted) -> _PerAdapter:
        """Which rows are trained."""
        if not isinstance(self, TrainableTokensLayer):
            raise AttributeError("token_indices")
        return _PerAdapter(self, lambda tenant: list(tenant.config.token_indices))

    @property
    def trainable_tokens_original(self: Adapted) -> _PerAdapter:
        if not isinstance(self, TrainableTokensLayer):
            raise AttributeError("trainable_tokens_original")
        return _PerAdapter(self, lambda tenant: tenant.method.rows(tenant.config, tenant.site, self.canonical()))


class ErrorViews:
    """To a program an error says all that it knows."""

    def __init__(self: StudioError, *args: Any, **kwargs: Any):
        ErrorViews.native["__init__"](self, *args, **kwargs)
        if self.details:
            self.args = (f"{self.args[0]}\n{self.details}",)


class SlotViews:
    """What an adapter's factor is in PEFT, for `Slot`: a linear layer."""

    def forward(self: Slot, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self._parameters.get("bias"))


class ReplacedViews:
    """What only modules have that are replaced as a whole, for `Replaced`."""

    def forward(self: Replaced, *args: Any, **kwargs: Any) -> Any:
        return self.bare(*args, **kwargs) if "_off" in self.__dict__ else ReplacedViews.native["forward"](self, *args, **kwargs)

    def __getattr__(self: Replaced, name: str) -> Any:
        if name == SAVED.prefix and isinstance(self, SavedModule) and name not in self._modules:
            return _Empty()
        return ReplacedViews.native["__getattr__"](self, name)


def _classes(layer: Adapted) -> list[type[Adapted]]:
    """A class for each kind of adapters on the layer, in the order of their coming."""
    kinds = dict.fromkeys(str(getattr(t.config.peft_type, "value", t.config.peft_type)) for t in layer.tenants.values())
    cls = next(c for c in type(layer).__mro__ if not c.__module__.startswith("engine.compat"))
    return [layer_class(cls, kind) for kind in kinds]


def _rank(layer: Adapted, tenant: Any) -> Any:
    rank = _innermost(tenant.method, "rank")
    return rank(tenant.config, tenant.site) if callable(rank) else getattr(tenant.config, "r", None)


def _dropout(share: float) -> nn.Module:
    return nn.Dropout(share) if share else nn.Identity()


def warn_once(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the caller's caller."""
    warnings.warn(message, category, stacklevel=3)

