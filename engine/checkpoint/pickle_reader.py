"""Reads the tensors of an old ``adapter_model.bin`` (a zip with a pickle in it) without running anything.

The pickle is a small program; here only the few words of it that describe tensors are known, each of which makes a plain description.
Every other word ends the reading. Nothing of torch, and nothing that the file names, is ever called.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import BadAdapter

LARGEST = 64 << 20                         # bytes of the describing pickle; a real one has some kilobytes
_STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "DoubleStorage": torch.float64,
             "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
             "ByteStorage": torch.uint8, "BoolStorage": torch.bool}


@dataclass(frozen=True)
class _Described:
    """A tensor as the pickle describes it."""

    file: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _describe(storage: tuple[str, torch.dtype], offset: int, shape: tuple, stride: tuple, *_: Any) -> _Described:
    return _Described(storage[0], storage[1], int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


def _parameter(data: _Described, *_: Any) -> _Described:
    return data


class _Reader(pickle.Unpickler):
    """Knows the words of a state dict and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise pickle.UnpicklingError("it describes something that is no tensor")
        return str(pid[2]), pid[1]


def read_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of ``adapter_model.bin`` by their keys, in private memory.

    Raises:
        BadAdapter: damaged, of the format before 2020, or it holds anything but named tensors (a program, perhaps).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(n for n in archive.namelist() if n.endswith("data.pkl")).removesuffix("data.pkl")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise pickle.UnpicklingError("it is packed, so that nobody knows how much memory it takes")
            if archive.getinfo(f"{root}data.pkl").file_size > LARGEST:
                raise pickle.UnpicklingError("its description is far too long")
            described = _Reader(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
            if not isinstance(described, dict) or not all(isinstance(k, str) and isinstance(d, _Described) for k, d in described.items()):
                raise pickle.UnpicklingError("it holds other things than named tensors")
            held: dict[tuple[str, torch.dtype], Tensor] = {}
            return {key: _tensor(archive, root, d, held) for key, d in described.items()}
    except BadAdapter:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, StopIteration, KeyError, ValueError, TypeError, IndexError, AttributeError, EOFError,
            RuntimeError, OSError, OverflowError) as problem:
        raise BadAdapter(f"The file {path.name} of the adapter cannot be used.", "It is damaged, or holds more than an adapter's numbers.",
                         "Get the adapter in safetensors format.", details=repr(problem), path=str(path)) from problem


def _tensor(archive: zipfile.ZipFile, root: str, d: _Described, held: dict[tuple[str, torch.dtype], Tensor]) -> Tensor:
    """``held``: what was read already, for several may be parts of one."""
    size = archive.getinfo(f"{root}data/{d.file}").file_size // d.dtype.itemsize
    reach = d.offset + sum((n - 1) * s for n, s in zip(d.shape, d.stride, strict=True)) + 1
    if d.offset < 0 or min((*d.shape, *d.stride, 0)) < 0 or (0 not in d.shape and max(reach, math.prod(d.shape)) > size):
        raise ValueError("a tensor reaches beyond its data")
    if (d.file, d.dtype) not in held:
        data = bytearray(archive.read(f"{root}data/{d.file}"))
        held[d.file, d.dtype] = torch.frombuffer(data, dtype=d.dtype) if data else torch.empty(0, dtype=d.dtype)
    return held[d.file, d.dtype].as_strided(d.shape, d.stride, d.offset).clone()
