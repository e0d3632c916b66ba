"""The number format follows what was measured, and everything is put back afterwards."""

import platform

import psutil
import pytest
import torch

from engine.train import precision as precise
from engine.train.precision import Precision, choose, exact_computing, kept_memory, measure


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
