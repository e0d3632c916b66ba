"""Reading a file into new memory in a system's large pages (2 MB on Linux).

In small ones, four fifths of the time goes into the first touch of each. Large ones that the system has ready take a third of that; where it has
to make room for them first, as on a virtual machine that has never used the memory, five times as long: after one such none is asked for again.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from functools import cache
from typing import BinaryIO

from torch import Tensor

LARGE = 2 << 20                            # bytes
READY = 2e-3                               # seconds of the processor within which a page that is ready is filled from a file
_ready = True                              # whether the system had one whenever it was asked


def read_into(file: BinaryIO, whole: Tensor) -> int:
    """Fill ``whole`` (uint8, one axis, of memory of its own) from the file; the number of bytes that there were."""
    global _ready
    room, start = whole.numpy(), -whole.data_ptr() % LARGE                          # where its first large page begins
    if (ask := _asker()) is None:
        return file.readinto(room)
    found = file.readinto(room[:start])
    for at in range(start, len(room), LARGE):
        if _ready and at + LARGE <= len(room):
            ask(whole.data_ptr() + at, LARGE)
        began = time.thread_time()
        found += file.readinto(room[at:at + LARGE])
        _ready = _ready and time.thread_time() - began < READY
    return found


@cache
def _asker() -> Callable[[int, int], object] | None:
    """What asks for large pages from an address on, for so many bytes; a system that has none may refuse. None: it cannot be asked."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return lambda address, size: madvise(address, size, mmap.MADV_HUGEPAGE)
