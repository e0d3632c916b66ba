"""The best low-rank form from thin factors is that of dense float64 arithmetic, however the factors depend on one another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.mix.spectrum import thin, thin_each

COLUMNS, OUT, R = 40, 30, 6


def best(A: torch.Tensor, B: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B·A, its nearest matrix of this rank) in float64."""
    whole = B.double() @ A.double()
    U, S, Vh = torch.linalg.svd(whole, full_matrices=False)
    return whole, U[:, :rank] * S[:rank] @ Vh[:rank]


def made(A: torch.Tensor, B: torch.Tensor, rank: int) -> torch.Tensor:
    A, B = thin(A, B, rank).cut(rank)
    assert A.dtype is B.dtype is torch.float32 and A.shape == (rank, COLUMNS) and B.shape == (OUT, rank)
    return B.double() @ A.double()


def two(seed: int, apart: float, size: float, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacked factors of two adapters whose A's are ``apart`` from one another; the first one's are ``size`` times as large and B's as small."""
    generator = torch.Generator().manual_seed(seed)
    A, more = (torch.randn(R, COLUMNS, generator=generator) for _ in range(2))
    B, other = (torch.randn(OUT, R, generator=generator) for _ in range(2))
    return torch.cat([size * A, A + apart * more]), torch.cat([B / size, weight * other], 1)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), apart=st.sampled_from([0.0, 1e-7, 1e-5, 1e-3, 0.1, 1.0]), size=st.sampled_from([1e-6, 1e-3, 1.0, 1e4]),
       weight=st.floats(-2, 2))
def test_adapters_that_are_nearly_one_another_are_summed_as_exactly_as_others(seed, apart, size, weight):
    A, B = two(seed, apart, size, weight)
    for rank in (R, 2 * R):                # half is the true rank of adapters that are one another's copies
        whole, wanted = best(A, B, rank)
        got = made(A, B, rank)
        assert (got - whole).norm() <= (wanted - whole).norm() + 1e-6 * whole.norm()           # as near as can be …
        if rank == 2 * R or apart < 1e-4:
            assert (got - wanted).abs().max() <= 1e-6 * whole.abs().max()                       # … and the same where only one is that near


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3])
def test_what_two_adapters_leave_of_one_another_is_found_as_far_as_their_numbers_say(apart):
    A, B = two(0, apart, 1.0, 1.0)
    B = torch.cat([B[:, :R], -B[:, :R] + apart * B[:, R:]], 1)
    whole, _ = best(A, B, R)
    terms = (A.norm(dim=1) * B.norm(dim=0)).sum()             # of which float32 cannot say more than some ten millionths
    assert (made(A, B, 2 * R) - whole).norm() <= 3e-7 * terms


def test_singular_values_fall_and_what_is_lost_is_what_is_left_out():
    A, B = two(3, 1.0, 1.0, 1.0)
    found = thin(A, B, 4)
    S = torch.linalg.svdvals(B.double() @ A.double())
    torch.testing.assert_close(found.S.double(), S[:4], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.lost[2], S[2:].square().sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.Vh @ found.Vh.T, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.US.norm(dim=0), found.S)


def test_many_at_once_are_each_alone():
    """Of several ranks and dtypes, with a row of zeros, with nothing in B, and as wide as the layer."""
    generator = torch.Generator().manual_seed(1)
    pairs = [(torch.randn(r, COLUMNS, generator=generator), torch.randn(OUT, r, generator=generator)) for r in (3, 5, 3, 29, 30, 34)]
    pairs.append((pairs[0][0].double(), pairs[0][1].double()))
    pairs.append((pairs[2][0] * torch.tensor([1.0, 0.0, 1.0])[:, None], pairs[2][1]))
    pairs.append((pairs[1][0], torch.zeros(OUT, 5)))
    for (A, B), found in zip(pairs, thin_each(pairs), strict=True):
        torch.testing.assert_close(found.US @ found.Vh, B @ A, atol=1e-4, rtol=0)
        assert found.US.dtype == A.dtype and found.beyond == 0
    for (A, B), found in zip(pairs, thin_each(pairs, 2), strict=True):
        inner, outer = found.cut(2)
        torch.testing.assert_close((outer @ inner).double(), best(A, B, 2)[1], atol=1e-4, rtol=0)


def test_what_is_no_number_is_not_made_one():
    A, B = two(0, 1.0, 1.0, 1.0)
    A[2, 3] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError):
        thin(A, B)
