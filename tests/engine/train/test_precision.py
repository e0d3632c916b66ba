"""The number format follows what was measured, and everything is put back afterwards."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from engine.train import precision as precise
from engine.train.precision import CACHES, Precision, choose, exact_computing, kept_memory, measure

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seconds, errors, dtype, matmul", [
    ((4, 2, 1), (2e-7, 4e-7, 3e-3), "bfloat16", "medium"),      # a processor with fast bfloat16
    ((4, 2, 10), (2e-7, 4e-7, 3e-3), "float32", "medium"),      # one without
    ((4, 2, 1.9), (2e-7, 4e-7, 3e-3), "float32", "medium"),     # not worth the rounding
    ((4, 1, 1), (2e-7, 3e-3, 3e-3), "bfloat16", "highest"),     # "medium" rounds there: not taken for exact
    ((4, 2, 1), (2e-7, 4e-7, 0.5), "float32", "medium"),        # fast and wrong
    ((2, 4, 3), (2e-7, 4e-7, 3e-3), "float32", "highest"),
])
def test_the_choice_follows_the_measurement(monkeypatch, seconds, errors, dtype, matmul):
    names = ("highest", "medium", "bfloat16")
    monkeypatch.setattr(precise, "measure", lambda: (dict(zip(names, seconds)), dict(zip(names, errors))))
    chosen = choose("auto")
    assert (chosen.dtype, chosen.matmul) == (dtype, matmul)
    assert choose("float32").dtype == "float32" and choose("bfloat16").dtype == "bfloat16"


def test_the_measurement_is_real_and_leaves_no_trace():
    threads, matmul, state = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_rng_state()
    seconds, errors = measure()
    assert all(value > 0 for value in seconds.values()) and errors["highest"] < 1e-5 and 1e-4 < errors["bfloat16"] < 2e-2
    assert (threads, matmul) == (torch.get_num_threads(), torch.get_float32_matmul_precision()) and torch.equal(state, torch.get_rng_state())


def test_exact_computing_is_put_back_after_an_error():
    with pytest.raises(RuntimeError, match="on purpose"), exact_computing(Precision("float32", "medium", "")):
        assert torch.are_deterministic_algorithms_enabled() and torch.get_float32_matmul_precision() == "medium"
        raise RuntimeError("on purpose")
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_float32_matmul_precision() == "highest"


def test_kernels_of_many_shapes_do_not_fill_the_memory(monkeypatch):
    """In a process of its own: oneDNN asks only once. Without a bound, 320 new shapes are 200 MB more, again and again."""
    code = """
import psutil, torch
from engine.train.precision import measure
def met(shapes):
    for n in shapes:
        torch.nn.functional.linear(torch.ones(n, 64).bfloat16(), torch.ones(64, 64).bfloat16())
    return psutil.Process().memory_info().rss
measure()
before = met(range(16, 336))
print(met(range(336, 656)) - before)
"""
    for cache in CACHES:
        monkeypatch.delenv(cache, raising=False)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert int(done.stdout) < 50_000_000


def test_what_a_user_allows_stands(monkeypatch):
    monkeypatch.setenv(CACHES[0], "7")
    monkeypatch.delenv(CACHES[1], raising=False)
    measure()
    assert [os.environ[cache] for cache in CACHES] == ["7", str(precise.KERNELS)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_a_step_frees_is_there_for_the_next_and_is_given_back_at_the_end():
    import resource                        # not on Windows

    def faults():
        """How many pages the system has to give for 24 MB, which are then free again."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(6, 1_000_000).add_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with kept_memory():
        first = [torch.ones(1_000_000) for _ in range(24)]    # more than any trimming would leave
        del first
        assert faults() < 1000
        held = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss < held - 48_000_000
