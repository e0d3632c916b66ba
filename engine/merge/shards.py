"""Writing safetensors as a stream: the header first, then one tensor after another, never two in memory.

Format (safetensors 1): 8 bytes little-endian header length, JSON header padded with spaces to a multiple of 8, the data in
the order of the header's offsets.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from engine.store.headers import ITEM_BITS, TensorEntry

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}      # what can be cast or merged
SAFE = {dtype: name for name, dtype in TORCH.items()}
NAMES = SAFE | {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


def plan_entries(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, TensorEntry]:
    """Places in a new file for (name, dtype, shape), one behind the other in the given order."""
    entries, position = {}, 0
    for name, dtype, shape in tensors:
        size = ITEM_BITS[dtype]
        for length in shape:
            size *= length
        entries[name] = TensorEntry(dtype, tuple(shape), position, position + size // 8)
        position += size // 8
    return entries


class ShardWriter:
    """One new safetensors file. Use as a context manager; tensors come in the order of ``entries``.

    Raises `ValueError` when it is left before every byte that the header promises was written: a file that looks whole is whole.
    """

    def __init__(self, path: Path, entries: dict[str, TensorEntry], metadata: dict[str, str]):
        table: dict = {"__metadata__": metadata} if metadata else {}
        table |= {name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.start, e.end]} for name, e in entries.items()}
        header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        self._entries, self._position, self._path = entries, 0, path
        self._file: BinaryIO = open(path, "xb", buffering=0)
        self._write(struct.pack("<Q", len(header)) + header)
        self._position = 0

    def begin(self, name: str) -> None:
        """Say which tensor comes now."""
        if self._entries[name].start != self._position:
            raise ValueError(f"{name} is not due at byte {self._position} of {self._path.name}")

    def block(self, tensor: Tensor) -> None:
        """Write the next elements of the present tensor, row-major, in its dtype."""
        self._write(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))

    def bytes(self, data: memoryview | bytes) -> None:
        """Write the next bytes of the present tensor as they are."""
        self._write(data)

    def _write(self, data: memoryview | bytes) -> None:
        view = memoryview(data)
        while view:                        # an unbuffered file may take less than it is given
            taken = self._file.write(view)
            self._position += taken
            view = view[taken:]

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        self._file.close()
        whole = max((e.end for e in self._entries.values()), default=0)
        if kind is None and self._position != whole:
            raise ValueError(f"{self._path.name} got {self._position} of {whole} bytes")
