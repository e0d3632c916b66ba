"""Kernels of many shapes do not fill the memory, whoever computes first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.numerics.kernels import CACHES, KERNELS, few_kernels

ROOT = Path(__file__).parents[3]
CODE = """
import sys, psutil, torch
from engine.bases.load import load_model
from engine.train.precision import measure
def met(shapes):
    for n in shapes:
        torch.nn.functional.linear(torch.ones(n, 64).bfloat16(), torch.ones(64, 64).bfloat16())
    return psutil.Process().memory_info().rss
{}
before = met(range(16, 336))
print(met(range(336, 656)) - before)
"""


@pytest.mark.parametrize("first", ["measure()", "load_model(sys.argv[1])"])
def test_kernels_of_many_shapes_do_not_fill_the_memory(monkeypatch, base_folder, first):
    """In a process of its own: oneDNN asks only once. Without a bound, 320 new shapes are 200 MB more, again and again."""
    for cache in CACHES:
        monkeypatch.delenv(cache, raising=False)
    done = subprocess.run([sys.executable, "-c", CODE.format(first), str(base_folder)], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          check=True, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert int(done.stdout) < 50_000_000


def test_what_a_user_allows_stands(monkeypatch):
    monkeypatch.setenv(CACHES[0], "7")
    monkeypatch.delenv(CACHES[1], raising=False)
    few_kernels()
    assert [os.environ[cache] for cache in CACHES] == ["7", str(KERNELS)]
