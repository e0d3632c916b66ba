"""Small helps round a `PeftModel`: signatures that say what the base takes, a volume knob for a while (PEFT module ``peft.helpers``)."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

from torch import nn

from engine.errors import StudioError
from engine.law import PeftConfig
from engine.model.tuner import tuner_of


def update_forward_signature(model: nn.Module) -> None:
    """Let ``inspect.signature(model.forward)`` and ``help`` show what the base's forward takes; what a call does stays the same (PEFT function).

    ``model`` is a `PeftModel`, changed in place. A second time changes nothing.
    """
    _show_as(model, "forward")


def update_generate_signature(model: nn.Module) -> None:
    """The same for ``generate``; nothing where the base cannot generate (PEFT function)."""
    if hasattr(model.get_base_model(), "generate"):
        _show_as(model, "generate")


def update_signature(model: nn.Module, method: str = "all") -> None:
    """The same for ``method``: “forward”, “generate” or “all” (PEFT function). Raises `ValueError` for another word."""
    if method not in ("forward", "generate", "all"):
        raise ValueError(f"method {method} is not supported please choose one of ['forward', 'generate', 'all']")
    if method != "generate":
        update_forward_signature(model)
    if method != "forward":
        update_generate_signature(model)


def _show_as(model: nn.Module, name: str) -> None:
    ours, theirs = getattr(type(model), name), getattr(type(model.get_base_model()), name)
    if name in model.__dict__:
        return
    shown = functools.wraps(theirs)(_same(ours))
    more = [p for p in inspect.signature(ours).parameters.values() if p.kind is p.KEYWORD_ONLY]
    signature = inspect.signature(theirs)
    known = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    shown.__signature__ = signature.replace(parameters=[*known, *(p for p in more if p.name not in signature.parameters), *rest])
    setattr(model, name, MethodType(shown, model))


def _same(function):
    def call(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return call


def check_if_peft_model(model_name_or_path: Path | str) -> bool:
    """Whether ``model_name_or_path``, a folder or a name on the Hub, is an adapter that can be used here (PEFT function of the same name)."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (StudioError, OSError, ValueError):
        return False
    return True


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Inside the block all active adapters are heard ``multiplier`` times as strongly (PEFT function of the same name, for LoRA alone).

    Args:
        model: a `PeftModel` or one that was injected into; adapters of every method that has strengths.
        multiplier: any finite number; with 0 the base is heard, with 1 nothing changes.

    Raises:
        TypeError: it is no number. ValueError: it is not finite, or the model has no adapters whose strength can be changed.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, (int, float)):
        raise TypeError(f"Argument multiplier should be of type float, got {type(multiplier)}")
    tuner = tuner_of(model)
    if tuner is None or not tuner.stack.names or hasattr(tuner, "encoders"):
        raise ValueError("scaling is only supported for models with `LoraLayer`s or other adapters that have a strength.")
    if not math.isfinite(multiplier):
        raise ValueError("An adapter can only be heard by a finite number of times as strongly.")
    before = dict(tuner.stack.entries)
    merged = list(tuner.stack.merged)
    tuner.unmerge_adapter()
    tuner.stack.arrange({name: strength * multiplier for name, strength in before.items()})
    try:
        yield
    finally:
        tuner.stack.arrange({name: strength for name, strength in before.items() if name in tuner.peft_config})
        if merged := [name for name in merged if name in tuner.peft_config]:
            tuner.merge_adapter(merged)


@contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Inside the block inputs keep their number format on the way into adapters (PEFT function of the same name).

    Here they always do: adapters are brought to the layer's format and not the other way round, so that hooks which cast layer by layer are
    not disturbed. The block, and ``active``, are for programs that ask.
    """
    yield
