"""The header of a safetensors file: names, dtypes, shapes and places of all tensors, without reading one.

Format (safetensors 1): 8 bytes little-endian header length N, N bytes of JSON, then the data. Everything is checked
before it is believed: a hostile header can neither allocate memory nor point outside its file.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.errors import BadAdapter

MAX_HEADER = 100_000_000                   # bytes; the format's own limit
ITEM_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16,
             "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "C64": 64}


class TensorEntry(NamedTuple):
    """One tensor: dtype as the format names it (``"BF16"``), shape, and its byte range within the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """All tensors of one file by name, in the order in which they lie there; ``data_start`` is the file offset of the data part."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int
    digest: str                            # SHA-256 of the raw header

    @property
    def numel(self) -> int:
        return sum(t.numel for t in self.tensors.values())


def read_header(path: Path | str, error: type = BadAdapter) -> Header:
    """Read and check a safetensors header. Raises ``error`` (a `StudioError` class) with a sentence if it is not sound."""
    path = Path(path)

    def bad(why: str) -> Exception:
        return error(f"The file {path.name} is damaged.", why, "Get or make the file again.", path=str(path))

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise bad("It is shorter than the smallest possible file of its kind." if size else "It is empty.")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER or length > size - 8:
                if prefix[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):     # which an honest length may begin with, too
                    raise error(f"The file {path.name} is not a safetensors file.", "It is a pickle, which could run a program when opened.",
                                "Ask for the file in safetensors format.", path=str(path))
                raise bad("Its table of contents claims to be longer than the file.")
            raw = file.read(length)
        table = json.loads(raw)
    except OSError as problem:
        raise error(f"The file {path.name} cannot be opened.", str(problem.strerror or problem), "Check that it is there.",
                    path=str(path)) from problem
    except (ValueError, RecursionError) as problem:      # also a number of more digits than Python reads
        raise bad("Its table of contents cannot be read.") from problem
    if not isinstance(table, dict):
        raise bad("Its table of contents cannot be read.")
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise bad("Its notes cannot be read.")
    tensors: dict[str, TensorEntry] = {}
    for name, entry in table.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            numbers = *shape, start, end
            sound = dtype in ITEM_BITS and {*map(type, numbers)} == {int} and min(numbers) >= 0
        except (TypeError, KeyError, ValueError) as problem:
            raise bad(f"The entry “{name[:80]}” cannot be read.") from problem
        if not sound or (end - start) * 8 != math.prod(shape) * ITEM_BITS[dtype]:
            raise bad(f"The entry “{name[:80]}” contradicts itself.")
        if 8 + length + end > size:
            raise bad("It ends before its last value: it was cut off while being copied or downloaded.")
        tensors[name] = TensorEntry(dtype, shape, start, end)
    position, tensors = 0, dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
    for name, entry in tensors.items():
        if entry.start != position:
            raise bad(f"The entry “{name[:80]}” overlaps another or leaves a gap.")
        position = entry.end
    return Header(path, tensors, metadata, 8 + length, hashlib.sha256(raw).hexdigest())
