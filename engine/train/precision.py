"""Which number format is fast *and* right here: measured in a quarter of a second, never assumed.

On one CPU bfloat16 is twice as fast as float32, on another five times slower; "medium" float32 is exact on one and rounds to bfloat16
on another. float16 is never computed with on a CPU (it is some 15 times slower).
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import psutil
import torch

from engine.hosts.turned import ways_back
from engine.numerics.kernels import few_kernels

SIZE, REPEATS = (512, 768, 768), 6
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST = -1, -3, 32 << 20      # mallopt(3); bytes from which glibc maps a piece by itself, at most
IDLE = 4                                   # one part in so many of the free memory may hold copies of weights (`engine.hosts.turned`)
EXACT, CLOSE, WORTH = 1e-5, 2e-2, 1.3      # relative error allowed in "medium" float32, in bfloat16; gain for which bfloat16 is taken


@dataclass(frozen=True)
class Precision:
    """``dtype``: "float32" or "bfloat16"; ``matmul``: torch's float32 matmul precision; ``sentence`` says why."""

    dtype: str
    matmul: str
    sentence: str

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def choose(wanted: str, device: str = "cpu") -> Precision:
    """Decide for "auto", "float32" or "bfloat16" on this machine."""
    if device != "cpu":
        fits = wanted == "bfloat16" or wanted == "auto" and device == "cuda" and torch.cuda.is_bf16_supported()
        return Precision("bfloat16" if fits else "float32", "high", f"Computing on {device}.")
    seconds, errors = measure()
    matmul = "medium" if errors["medium"] <= EXACT and seconds["medium"] < seconds["highest"] else "highest"
    gain = seconds[matmul] / seconds["bfloat16"]
    if wanted == "auto":
        dtype = "bfloat16" if gain >= WORTH and errors["bfloat16"] <= CLOSE else "float32"
        return Precision(dtype, matmul, f"Computing in {dtype}: here bfloat16 is {gain:.1f} times as fast as float32.")
    return Precision(wanted, matmul, f"Computing in {wanted}, as chosen.")


def measure() -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds (best of a few) and relative error of one matrix product, for "highest", "medium" and "bfloat16".

    On one thread and in its own CPU time, so that other programs on the machine hardly disturb it.
    """
    few_kernels()
    generator = torch.Generator().manual_seed(0)
    rows, inner, columns = SIZE
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(columns, inner, generator=generator)
    exact = a.double() @ b.double().T
    seconds, errors = {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(REPEATS):           # in turn, so that a slow moment hits all three
            for name in ("highest", "medium", "bfloat16"):
                dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
                with matmul_precision("highest" if dtype == torch.bfloat16 else name):
                    x, w = a.to(dtype), b.to(dtype)
                    start = time.thread_time()
                    product = torch.nn.functional.linear(x, w)
                    spent = time.thread_time() - start
                seconds[name] = min(seconds.get(name, spent), max(spent, 1e-9))
                errors.setdefault(name, float((product.double() - exact).norm() / exact.norm()))
    finally:
        torch.set_num_threads(threads)
    return seconds, errors


@contextlib.contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    """torch's float32 matmul precision for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def exact_computing(precision: Precision, device: str = "cpu") -> Iterator[None]:
    """Everything under which a run repeats bit by bit: deterministic kernels and the run's matmul precision; put back afterwards.

    Memory that one step frees is there for the next, too (`kept_memory`), and weights may be laid out for the way back (`ways_back`).
    """
    few_kernels()
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False   # costs time and changes no result
    try:
        with matmul_precision(precision.matmul), kept_memory(), ways_back(psutil.virtual_memory().available // IDLE):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """What is freed goes back to the system only at the end, where glibc allocates: to be given every page anew costs a twentieth of a step."""
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, TypeError, AttributeError):               # another system's allocator
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
    try:
        yield
    finally:
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)                 # to where glibc's own adjustment comes
        trim(0)
