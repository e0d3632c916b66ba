"""Combining factors, where tensors are large."""

from __future__ import annotations

import pytest
import torch

from engine.law import Factors
from engine.mix.combine import Recipe, _quantile, combine


@pytest.mark.parametrize("share", [0, 0.3, 0.75, 1])
def test_a_quantile_is_torch_s(share):
    values = torch.randn(1001)
    torch.testing.assert_close(_quantile(values, share), values.quantile(share))


def test_factors_of_any_size_can_be_cut_off():
    A, B = torch.randn(4, 64), torch.randn(1 << 21, 4)         # torch's quantile takes no more than 1 << 24 values
    found, = combine([[(1.0, Factors(A, B, 1.0))]], Recipe("svd", 4, clamp=0.9))
    assert abs((found.B.abs() == found.B.abs().max()).float().mean() - 0.2) < 1e-3


def test_a_share_beyond_all_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Recipe("svd", 4, clamp=1.5)
