"""A model with adapters in its layers: everything that can be done with them, whoever asks (`PeftModel`, injection without it, a mix).

Four things are independent of one another: which adapters are *active* (the stack, in order, with strengths), which are
*trainable*, which are *merged*, and whether adapters are *enabled* at all.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.checkpoint.load import match
from engine.checkpoint.report import LoadReport
from engine.checkpoint.shared import shared_specs
from engine.errors import CannotMerge
from engine.hosts.adapted import Adapted, Tenant
from engine.hosts.quantized.adapted import AdaptedQuantized
from engine.hosts.quantized.error import RequantizationError
from engine.hosts.quantized.protocol import settle
from engine.hosts.replaced import Replaced
from engine.hosts.shelves import Shelves
from engine.hosts.stack import LiveStack, Samples
from engine.law import Method, PeftConfig, Schedule, TargetedConfig, Tensors, TensorSpec
from engine.methods.registry import law
from engine.model.abandoned import clear_abandoned
from engine.model.companions import with_companions, with_heads
from engine.model.embeddings import with_embeddings
from engine.model.inject import Given, check_name, inject, placements
from engine.model.lone import LoneTuner
from engine.model.renamed import as_named_now
from engine.model.replication import part, replicate_layers
from engine.model.targets import Held, Plan, modules, plan
from engine.model.training import TrainingHooks

BASE = Samples.BASE
AT = "_adapters_of_this_model"             # where a model that was injected into keeps its tuner; not as a sub-module, for it holds the model itself


class Tuner(TrainingHooks, Shelves):
    """Holds the user's model as ``model`` (PEFT class ``BaseTuner``: parameter names read ``base_model.model.…``).

    Args:
        model: its layers are wrapped in place, one adapter after the other, and its own parameters frozen by the first.

    Attributes:
        peft_config: adapter name → config. layers: module path → wrapped layer. stack: the live stack that all layers share.
        trained: names of the adapters that train. plans: adapter name → why each module was chosen or not.
    """

    _own = frozenset({"model"})
    prefixed = True                        # in a file, what belongs to its modules begins with `base_model.model`

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.layers: dict[str, Adapted | Replaced] = {}
        self.stack = LiveStack()
        self.trained: set[str] = set()
        self.plans: dict[str, Plan] = {}
        self.schedules: dict[str, Schedule] = {}             # of adapters that train
        self.asked: frozenset[str] = frozenset()              # arguments of a call that are meant for adapters
        self._adds_to_loss = False
        self._batch: Samples | None = None                    # whom the last batch of several adapters heard: mostly the next one's, too
        self._thawed: list[nn.Parameter] | None = None        # of the base, where it trained before the first adapter came
        self._copied: tuple[list, Callable[[], None]] | None = None     # blocks that stand several times: how, and what puts them back
        settle(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward; arguments that are meant for adapters (``task_ids``) are told to them."""
        if told := self.asked & kwargs.keys():
            with self.stack.telling(**{name: kwargs.pop(name) for name in told}):
                output = self.model(*args, **kwargs)
        else:
            output = self.model(*args, **kwargs)
        if self._adds_to_loss and getattr(output, "loss", None) is not None and (more := self.extra_loss(only_own=True)) is not None:
            output.loss = output.loss + more
        return output

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's ``generate``, in the same way."""
        with self.stack.telling(**{name: kwargs.pop(name) for name in self.asked & kwargs.keys()}):
            return self.model.generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    # --- looking ---

    @property
    def active_adapters(self) -> list[str]:
        return self.stack.names

    def tenants(self, name: str) -> dict[str, Tenant]:
        """Module path → what the adapter is there."""
        return {path: layer.tenants[name] for path, layer in self.layers.items() if name in layer.tenants}

    def known(self, names: str | Iterable[str]) -> list[str]:
        """These names, as a list. Raises `ValueError` if one is not there."""
        names = [names] if isinstance(names, str) else list(names)
        if unknown := [n for n in names if n not in self.peft_config]:
            raise ValueError(f"Adapter(s) {sorted(unknown)} not found, available adapters: {sorted(self.peft_config)}.")
        return names

    # --- coming and going ---

    def admit(self, name: str, config: TargetedConfig, *, trainable: bool, autocast: bool = True, file: dict[str, Tensor] | None = None,
              given: Given | None = None, unknown_settings: Sequence[str] = (), device: torch.device | None = None,
              heads: Sequence[str] = (), ignore_mismatched_sizes: bool = False) -> LoadReport:
        """Plan, match, inject: the one way an adapter comes in. It is not active yet. Changes nothing if it raises.

        Args:
            file: tensors of a file, by their keys there. given: tensors that are sorted already. Otherwise the adapter starts anew.
            autocast: new tensors are float32 whatever the base is; otherwise they take the base weight's dtype.
            device: where its tensors go, if not to their layers (``meta``: without values).
            heads: modules that it learns whole, where there are such, beside those in the config (which stays as it is).
            ignore_mismatched_sizes: tensors of the file with other sizes are told and start anew, instead of refusing it.
        """
        check_name(name)
        if name in self.peft_config:
            raise ValueError(f"Adapter with name {name!r} already exists.")
        with collector_at_rest(), ExitStack() as failing:
            if not self.peft_config:
                clear_abandoned(self.model, Tuner, failing)
            self._replicate(config, failing)
            method, config = law(config), with_heads(config, heads)
            held = modules(self.model)
            config, file = as_named_now(self.model, held, method, config, file)
            if isinstance(config, TargetedConfig):
                failing.callback(setattr, config, "target_modules", config.target_modules)
            planned, report = self.plan(method, config, held), LoadReport()
            config.target_modules = planned.resolved
            placed = with_companions(self.model, placements(planned.targets, method, config), config)
            if file is not None:
                placed, needless = with_embeddings(self.model, placed, file, config)
                file = {key: tensor for key, tensor in file.items() if key not in needless}
                given, report = match(file, {p.target.path: p for p in placed}, shared_specs(placed), unknown_settings,
                                      ignore_mismatched_sizes)
                report += LoadReport(needless)
            if config.base_model_name_or_path is None:
                config.base_model_name_or_path = getattr(self.model, "name_or_path", None) or None
            inject(self, name, placed, trainable=trainable, given=given, autocast=autocast, device=device)
            failing.pop_all()
        self.peft_config[name], self.plans[name] = config, planned
        self._ask(method)
        self.trained |= {name} if trainable else set()
        if self._thawed is None:
            self._freeze_base()
        return report

    def _ask(self, *laws: Method) -> None:
        """Take in what these laws want of the model's calls."""
        self.asked = self.asked.union(*(each.hears for each in laws))
        self._adds_to_loss |= any(each.adds_to_loss for each in laws)

    def plan(self, method: Method, config: PeftConfig, held: Held) -> Plan:
        """Where an adapter will sit; see `engine.model.targets.plan`."""
        if not isinstance(config, TargetedConfig):
            raise ValueError(f"Cannot combine adapters with different peft types: {config.peft_type} needs a model of its own.")
        return plan(self.model, method, config, held)

    def _replicate(self, config: PeftConfig, failing: ExitStack) -> None:
        """Let blocks stand several times if the config asks for it; taken back if ``failing`` closes. Raises `ValueError` for a second way."""
        wanted = [list(pair) for pair in getattr(config, "layer_replication", None) or ()]
        if not wanted or self._copied is not None and self._copied[0] == wanted:
            return
        if self.layers:
            raise ValueError("Layers can only be replicated by the first adapter, and in one way: load this one onto a model of its own.")
        self._copied = wanted, replicate_layers(self.model, wanted)
        failing.callback(self._put_back)

    def _put_back(self) -> None:
        if self._copied is not None:
            self._copied[1]()
        self._copied = None

    def _freeze_base(self) -> None:
        ours = {id(p) for layer in self.layers.values() for name in layer.tenants for p in layer.tensors(name).values()}
        self._thawed = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ours]
        for parameter in self._thawed:
            parameter.requires_grad_(False)

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter. The rest of the stack stays as it is; without any adapter the model is the base."""
        if name not in self.peft_config:
            raise ValueError(f"Adapter {name} does not exist.")
        if name in self.stack.merged:
            raise ValueError(f"Cannot delete adapter(s) {[name]} while they are merged. Please unmerge them first.")
        for layer in self.layers.values():
            if name in layer.tenants:
                layer.remove(name)
        self.clear(name)
        del self.peft_config[name], self.plans[name]
        self.asked, self._adds_to_loss = frozenset(), False
        self._ask(*map(law, self.peft_config.values()))
        self.schedules.pop(name, None)
        self.trained.discard(name)
        self.stack.arrange({n: s for n, s in self.stack.entries if n != name})

    def leave(self, merged: list[str] | None = None, requantize: bool = False) -> nn.Module:
        """Put plain layers back and forget all adapters: the untouched base, or with ``merged`` baked in (see `merge_adapter`)."""
        self.unmerge_adapter()
        if merged is not None:
            self._bake_in(merged, requantize)
        for path, layer in self.layers.items():
            layer.leave(self.model, path)
        for name in self.peft_config:
            self.clear(name)
        self.layers.clear(), self.peft_config.clear(), self.plans.clear(), self.trained.clear(), self.schedules.clear()
        self.stack.arrange({})
        self.stack.merged = ()
        if merged is None:
            self._put_back()
            for parameter in self._thawed or ():
                parameter.requires_grad_(True)
        elif self._copied is not None:
            part(self.model)
            self._copied = None
        self._thawed = None
        return self.model

    # --- the four sets ---

    def set_adapter(self, adapter_name: str | Iterable[str] | Mapping[str, float], inference_mode: bool = False) -> None:
        """Choose the stack: one name, several in order, or names with strengths. Merged weights are unmerged first.

        An adapter that was made for training becomes trainable while it is active and frozen when it is not, as in PEFT;
        one that was loaded for inference never becomes trainable here (`set_requires_grad` does that).
        """
        entries = {adapter_name: 1.0} if isinstance(adapter_name, str) else (
            dict(adapter_name) if isinstance(adapter_name, Mapping) else dict.fromkeys(adapter_name, 1.0))
        self.known(entries)
        self.unmerge_adapter()
        self.stack.arrange(entries)
        wanted = {name for name in entries if not inference_mode and not self.peft_config[name].inference_mode}
        self.set_requires_grad(self.trained - wanted, False)
        self.set_requires_grad(wanted - self.trained, True)

    def set_requires_grad(self, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
        """Say which adapters train; nothing else changes."""
        for name in self.known(adapter_names):
            tenants = self.tenants(name)
            for path, tenant in tenants.items():
                _set_training(self.layers[path].tensors(name), tenant.method.tensors(tenant.config, tenant.site), requires_grad)
            _set_training(self.tensors(name), shared_specs(tenants.values()), requires_grad)
            self.trained = self.trained | {name} if requires_grad else self.trained - {name}
        self.stack.changed()

    def enable_adapters(self, enabled: bool = True) -> None:
        """Switch all adapters on or off; what trains stays what it was."""
        if self.stack.enabled != enabled:
            self.stack.enabled = enabled
            self.stack.changed()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The plain base inside the block; afterwards everything, also what was merged, is as before."""
        merged, enabled = list(self.stack.merged), self.stack.enabled
        self.unmerge_adapter()
        self.enable_adapters(False)
        try:
            yield
        finally:
            self.enable_adapters(enabled)
            if merged:
                self.merge_adapter(merged)

    @contextmanager
    def sampled(self, names: Sequence[str], copies: int = 1) -> Iterator[None]:
        """Inside the block each sample of a batch is heard through its own adapter, unless all are off. Raises `ValueError`; see `PeftModel.forward`.

        Threads take turns. One that hears the stack itself must not run meanwhile.

        Args:
            copies: how many of each sample stand in the batch, one next to the other; an encoder gets one.
        """
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        if self.stack.merged:
            raise ValueError("Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first.")
        if unknown := sorted(set(names) - self.peft_config.keys() - {BASE}):
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}.")
        names = list(names) if self.stack.enabled else [BASE] * len(names)
        batch = [name for name in names for _ in range(copies)]
        with self.stack.turn:
            if self._batch is None or self._batch.names != batch:
                self._batch = Samples(batch)
            self.stack.samples = self._batch
            apart = copies > 1 and getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
            hooks = self._hearing(Samples(names)) if apart else []
            try:
                yield
            finally:
                self.stack.samples = None
                for hook in hooks:
                    hook.remove()

    def _hearing(self, samples: Samples) -> list[RemovableHandle]:
        """Let the encoder hear these while it runs."""
        encoder, others = self.model.get_encoder(), self.stack.samples
        return [encoder.register_forward_pre_hook(lambda *_: setattr(self.stack, "samples", samples)),
                encoder.register_forward_hook(lambda *_: setattr(self.stack, "samples", others), always_call=True)]

    # --- merging ---

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False, requantize: float | None = None) -> None:
        """Bake the active adapters (or those named) into the weights for speed. W0 is kept; `unmerge_adapter` is bit-exact.

        Those that are not in the stack yet enter it at strength 1. If it raises, nothing is merged.

        Args:
            requantize: write into quantized layers' own format, if that is off by no more than this share of what the adapters change
                (see `requantization_error`). By default a quantized layer is in 16 bits while something is merged into it.

        Raises:
            ValueError: ``safe_merge`` and a merged weight would hold values that are not numbers, or the error is larger than
                ``requantize`` allows. UnsupportedLayer: a layer cannot take them, or its format cannot be written.
        """
        names = self.to_merge(adapter_names, safe_merge, requantize)
        self._bake_in(names, requantize is not None)
        self.stack.merged = tuple(names)
        self.stack.arrange({**dict(self.stack.entries), **{name: self.stack.strength(name) for name in names}})

    def _bake_in(self, names: list[str], requantize: bool) -> None:
        """Into every layer, or, if one of them refuses, into none."""
        try:
            for layer in self.layers.values():
                layer.unmerge()
                _merge(layer, names, requantize)
        except BaseException:
            for layer in self.layers.values():
                layer.unmerge()
            self.stack.merged = ()
            self.stack.changed()
            raise
        _share_again(self.layers.values())

    def unmerge_adapter(self) -> None:
        """Put the untouched base weights back."""
        if self.stack.merged:
            for layer in self.layers.values():
                layer.unmerge()
            self.stack.merged = ()
            self.stack.changed()

    def requantization_error(self, adapter_names: list[str] | None = None) -> RequantizationError:
        """What would be lost if the active adapters (or those named) were written into quantized weights; changes nothing.

        Raises `UnsupportedLayer` for a format that cannot be written.
        """
        names = self.known(self.stack.names if adapter_names is None else adapter_names)
        return RequantizationError({path: layer.requantization_error(names) for path, layer in self.layers.items()
                                    if isinstance(layer, AdaptedQuantized) and layer.tenants.keys() & set(names)})

    def to_merge(self, names: list[str] | None, safe: bool, requantize: float | None = None) -> list[str]:
        """The adapters that a merge bakes in, checked; changes nothing.

        Raises:
            CannotMerge: what one of them does is more than a weight can say.
        """
        if isinstance(names, str):
            raise TypeError("adapter_names should be a list of strings")
        names = self.known(self.stack.names if names is None else names)
        for name in names:
            if law := next((t.method for t in self.tenants(name).values() if t.method.why_unmerged), None):
                raise CannotMerge(f"{law.title} does not support merging ({name}).", law.why_unmerged, "Keep it beside the model.")
        if requantize is not None and not (error := self.requantization_error(names)).total <= requantize:
            raise ValueError(f"{error.sentence()} That is more than the {requantize:.0%} that `requantize` allows.")
        for path, layer in self.layers.items() if safe else ():
            for leaf, merged in layer.to_write(names).items():
                if not torch.isfinite(merged).all():
                    what = f"NaNs detected in the merged bias of {path}" if leaf == "bias" else f"see {path}.{leaf}"
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken: {what}.")
        return names


def _merge(layer: Adapted | Replaced, names: list[str], requantize: bool) -> None:
    if requantize and isinstance(layer, AdaptedQuantized):
        layer.requantize(names)
    else:
        layer.merge(names)


def _share_again(layers: Iterable[Adapted | Replaced]) -> None:
    """Layers of one weight (an embedding and the output's) go on sharing it where a merge has made the same of it."""
    first: dict[int, Tensor] = {}
    for layer in layers:
        for pristine, merged, put in list(layer.merged_tensors()):
            known = first.setdefault(id(pristine), merged)
            if known is not merged and torch.equal(known, merged):
                put(known)


def tuner_of(model: nn.Module) -> "Tuner | LoneTuner | None":
    """What does everything with a model's adapters: of a `PeftModel`, of a model that was injected into, or None if it has none.

    What compiling, sharded or parallel training wraps round the model is looked through.
    """
    while model is not None:
        if isinstance(model, (Tuner, LoneTuner)):
            return model
        if isinstance(getattr(type(model), "tuner", None), property):
            return model.tuner
        if AT in model.__dict__:
            return model.__dict__[AT]
        model = inside(model)
    return None


def inside(model: nn.Module) -> nn.Module | None:
    """What compiling, sharded or parallel training has been wrapped round; None if ``model`` is none of these wrappers."""
    return next((model._modules[name] for name in ("_fsdp_wrapped_module", "_orig_mod", "module") if name in model._modules), None)


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Inside the block Python's collector does not run: thousands of new objects, all of which stay, would make it search the whole program.

    Afterwards they count as old at once (what freezing and thawing does), or it would search through them now.
    """
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            if not gc.get_freeze_count():  # somebody else's frozen objects stay so
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _set_training(tensors: Tensors, specs: Mapping[str, TensorSpec], trains: bool) -> None:
    for key, tensor in tensors.items():
        tensor.requires_grad_(trains and specs[key].trainable and tensor.is_floating_point())
