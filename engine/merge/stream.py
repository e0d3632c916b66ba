"""Bake a stack into its base, tensor by tensor, from file to file: memory does not grow with the model.

Tensors that no adapter touches are copied byte by byte. Every layer that the stack changes must be met on the way, or
nothing is written: a merge never silently returns the base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from engine.bases.load import load_model
from engine.errors import BadAdapter, Cancelled, DiskFull
from engine.events import Note, Progress
from engine.hosts.replaced import Replaced
from engine.merge.blocks import merged_blocks
from engine.merge.plan import INDEX, Item, MergePlan, Shard
from engine.merge.shards import TORCH, ShardWriter
from engine.mix.stack import StackOnBase
from engine.store.atomic import write_json

COPY = 8 << 20                             # bytes copied between two looks at the cancel request
MARGIN = 64 << 20                          # bytes kept free beside the estimate
COMPANIONS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
              "chat_template.*", "additional_chat_templates/*.jinja", "preprocessor_config.json", "processor_config.json",
              "LICENSE*", "NOTICE*", "USE_POLICY*")
STAGE = "Baking in"


def merge_into(folder: Path, plan: MergePlan, dtype: str = "same", asked_to_stop: Callable[[], bool] = lambda: False) -> Iterator[Progress | Note]:
    """Write the complete merged model into the empty ``folder``; yields how far it is. ``dtype`` is the one the plan was made with.

    Raises:
        Cancelled: ``asked_to_stop`` became true. BadAdapter: the mix yields values that are no numbers in this format.
        DiskFull: there is not enough room, told before anything is written.
    """
    check_room(folder, plan)
    if plan.missed:
        yield Note(f"The names in the files of {plan.base.name} differ from those in the model, so it is merged in memory.")
        yield from _merge_in_memory(folder, plan, dtype, asked_to_stop)
    else:
        yield from _merge_streaming(folder, plan, asked_to_stop)
        write_json(folder / "config.json", plan.config)
    copy_companions(plan.base.path, folder)


def check_room(folder: Path, plan: MergePlan) -> None:
    """Raise `DiskFull` unless the result fits with a margin."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    needed, free = plan.bytes + MARGIN + plan.bytes // 100, shutil.disk_usage(place).free
    if free < needed:
        raise DiskFull("There is not enough room for the finished model.", f"It needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free.",
                       "Free some space, or choose a folder on another disk.", needed=needed, free=free)


def copy_companions(base: Path, folder: Path) -> None:
    """Tokenizer (also ``tokenizer.model``, which transformers no longer writes), chat template, generation settings, licence."""
    for pattern in COMPANIONS:
        for file in sorted(base.glob(pattern)):
            target = folder / file.relative_to(base)
            if file.is_file() and not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


# --- streaming ---------------------------------------------------------------------------------

def _merge_streaming(folder: Path, plan: MergePlan, asked_to_stop: Callable[[], bool]) -> Iterator[Progress]:
    done = 0
    for shard in plan.shards:
        path = shard.header.path
        with ShardWriter(folder / path.name, shard.entries, shard.header.metadata or {"format": "pt"}) as writer, \
                open(path, "rb") as raw, safe_open(path, "pt") as tensors:
            for item in shard.items:
                writer.begin(item.name)
                dtype = TORCH.get(shard.entries[item.name].dtype)
                if item.layer is None and item.entry.dtype == shard.entries[item.name].dtype:
                    for piece in _bytes_of(raw, shard, item):
                        writer.bytes(piece)
                        _heed(asked_to_stop)
                else:
                    for block in _blocks(item, tensors.get_tensor(item.source), plan.stack, dtype):
                        writer.block(_sound(block, item.name))
                        _heed(asked_to_stop)
                _heed(asked_to_stop)
                done += shard.entries[item.name].end - shard.entries[item.name].start
                yield Progress(STAGE, done, plan.bytes, "bytes")
    if (plan.base.path / INDEX).exists():
        write_json(folder / INDEX, {"metadata": {"total_size": plan.bytes},
                                    "weight_map": {item.name: shard.header.path.name for shard in plan.shards for item in shard.items}})


def _heed(asked_to_stop: Callable[[], bool]) -> None:
    if asked_to_stop():
        raise Cancelled()


def _bytes_of(raw, shard: Shard, item: Item) -> Iterator[bytes]:
    raw.seek(shard.header.data_start + item.entry.start)
    left = item.entry.end - item.entry.start
    while left:
        piece = raw.read(min(COPY, left))
        if not piece:
            raise OSError(f"{shard.header.path.name} became shorter while it was read")
        left -= len(piece)
        yield piece


def _blocks(item: Item, W0: Tensor, stack: StackOnBase, dtype: torch.dtype) -> Iterator[Tensor]:
    if item.layer is None:
        yield from (part.to(dtype) for part in W0.reshape(-1).split(1 << 20))
    elif isinstance(item.layer, Replaced):
        yield item.layer.compose_leaf(item.leaf, W0).to(dtype)
    elif item.leaf == "bias":
        exact = torch.promote_types(W0.dtype, torch.float32)
        yield item.layer.compose_bias(W0.to(exact)).to(dtype)
    else:
        yield from merged_blocks(item.layer, stack.model.stack, W0, dtype)


def _sound(block: Tensor, name: str) -> Tensor:
    if not torch.isfinite(block.sum(dtype=torch.float32)):     # one quick pass; a single inf or nan makes the sum one
        raise BadAdapter("The finished model would hold values that are not numbers.",
                         f"They arise in {name}: an adapter is broken, a strength is far too high, or the number format is too small.",
                         "Lower the strengths, choose another number format, or take the broken adapter out.", tensor=name)
    return block


# --- in memory ---------------------------------------------------------------------------------

def _merge_in_memory(folder: Path, plan: MergePlan, dtype: str, asked_to_stop: Callable[[], bool]) -> Iterator[Progress]:
    """Load, merge and save the whole model: for architectures whose files are arranged otherwise than the model."""
    yield Progress(STAGE, 0, plan.bytes, "bytes")
    live = StackOnBase(load_model(plan.base.path, dtype="same" if dtype == "same" else "float32"), plan.base)
    live.arrange(plan.stack.entries)
    _heed(asked_to_stop)
    merged = live.model.merge_and_unload()
    merged = merged if dtype == "same" else merged.to(getattr(torch, dtype))
    for name, parameter in merged.named_parameters():
        _sound(parameter, name)            # in the format in which it is saved
    _heed(asked_to_stop)
    merged.save_pretrained(folder)
    yield Progress(STAGE, plan.bytes, plan.bytes, "bytes")
