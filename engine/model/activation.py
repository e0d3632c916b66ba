"""Activated LoRA in a pass: finding where in the input an aLoRA is called, and telling the layers (see `engine.methods.alora`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from engine.methods.alora import calculate_alora_offsets

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel

Offsets = Sequence[int | None]


@contextmanager
def activated(model: "PeftModel", input_ids: Tensor | None, names: Sequence[str] | None, offsets: Offsets | None = None,
              copies: int = 1, writes: bool = False) -> Iterator[None]:
    """Inside the block the model's aLoRAs are heard from their invocation on; without any of them nothing is done.

    Args:
        input_ids: ``(batch, seq)``, where the invocation is looked for. names: the adapter of each sample, if each has its own.
        offsets: given instead, one a sample. copies: sequences that ``generate`` makes of each sample. writes: a text that grows inside the
            block, which a model without a cache reads again and again.

    Raises:
        ValueError: several aLoRAs with different invocations are active at once.
    """
    heard = [name for name in (names or model.active_adapters) if getattr(model.peft_config.get(name), "alora_invocation_tokens", None)]
    if not heard:
        yield
        return
    if offsets is None:
        if names is None and len({tuple(model.peft_config[name].alora_invocation_tokens) for name in heard}) > 1:
            raise ValueError(f"The adapters {', '.join(heard)} are called by different tokens: activate one of them at a time.")
        if input_ids is None:
            warnings.warn("Cannot calculate aLoRA offsets when only inputs_embeds are provided. Disabling aLoRA for this pass.", stacklevel=4)
        else:
            offsets = calculate_alora_offsets(model.peft_config, heard[0], input_ids.reshape(-1, input_ids.shape[-1]), names)
    names = [name for name in names or () for _ in range(copies)]
    offsets = None if offsets is None else [n for n in offsets for _ in range(copies)]
    told = {model.stack: offsets}
    for name in set(names) & set(heard) if offsets is not None else ():
        told[model.stack.solo(name)] = [n for n, own in zip(offsets, names, strict=True) if own == name]
    before = {stack: stack.extras for stack in told}
    try:
        for stack, counts in told.items():
            length = input_ids.shape[-1] if writes and input_ids is not None else None
            stack.extras = {**stack.extras, "alora_offsets": counts, "alora_length": length}
        yield
    finally:
        for stack, extras in before.items():
            stack.extras = extras
