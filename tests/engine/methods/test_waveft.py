"""WaveFT: wavelets that are wavelets, and its way without a dense matrix against the dense one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import WaveFTConfig, get_peft_model
from engine.methods.waveft import METHOD
from engine.numerics.wavelets import FAMILIES, analysis, low_pass, synthesis
from tests.support.one import one


@pytest.mark.parametrize("family", FAMILIES)
def test_filters_are_those_of_orthogonal_wavelets(family):
    taps = torch.tensor(low_pass(family), dtype=torch.float64)
    assert taps.sum().item() == pytest.approx(2**0.5, abs=1e-10)
    for shift in range(0, len(taps), 2):   # a filter is at right angles to itself moved by two
        assert (taps[shift:] * taps[:len(taps) - shift]).sum().item() == pytest.approx(float(shift == 0), abs=1e-10)
    order = int(family.lstrip("abcdefghijklmnopqrstuvwxyz"))
    moments = 2 * order if family.startswith("coif") else order
    detail = taps.flip(0) * (-1.0) ** torch.arange(len(taps))
    for power in range(min(moments, 4)):   # and its detail filter hears no polynomials
        assert (detail * torch.linspace(-1, 1, len(taps), dtype=torch.float64) ** power).sum().item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("family", ["db1", "db4", "sym6", "coif3"])
@pytest.mark.parametrize("length", [10, 11])
def test_analysis_is_the_transpose_of_synthesis(family, length):
    size = length + length % 2 + len(low_pass(family)) - 2
    S = synthesis(torch.eye(size, dtype=torch.float64), family, length)      # rows: what each coefficient adds
    torch.testing.assert_close(analysis(torch.eye(length, dtype=torch.float64), family, size), S.T)
    assert torch.linalg.matrix_rank(S) == length                              # every signal can be made


@pytest.mark.parametrize("settings", [{"wavelet_family": "sym4"}, {"wavelet_family": "db1"}, {"use_idwt": False}])
@pytest.mark.parametrize("sides", [(7, 10), (8, 5)], ids=str)
def test_running_is_merging_without_a_dense_matrix(settings, sides):
    peft, adapted = one(nn.Linear(*sides), WaveFTConfig(n_frequency=9, **settings))
    tenant, p, x = adapted.tenants["a0"], adapted.tensors("a0"), torch.randn(3, sides[0], dtype=torch.float64)
    delta = METHOD.delta(p, tenant.config, tenant.site)
    expected = nn.functional.linear(x, adapted.base_layer.weight + delta, adapted.base_layer.bias)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(peft(x), expected)


def test_haar_by_hand():
    """A number in the first quarter moves a square of four entries alike."""
    config = WaveFTConfig(n_frequency=1, scaling=6.0, target_modules=["0"], init_weights=False)
    peft = get_peft_model(nn.Sequential(nn.Linear(4, 6, bias=False)), config)
    tenant, p = peft.adapted["0"].tenants["default"], peft.adapted["0"].tensors("default")
    with torch.no_grad():
        p["waveft_spectrum"].fill_(2.0)
        p["waveft_indices"].fill_(1 * 4 + 1)                  # row 1, column 1 of the smooth quarter
    expected = torch.zeros(6, 4)
    expected[2:4, 2:4] = 6.0 * 2.0 / 2
    torch.testing.assert_close(METHOD.delta(p, tenant.config, tenant.site), expected)


def test_filters_first_made_for_listening_serve_training():
    base = nn.Sequential(nn.Linear(30, 20))
    peft = get_peft_model(base, WaveFTConfig(n_frequency=9, wavelet_family="sym7", target_modules=["0"]))
    with torch.inference_mode():
        peft(torch.ones(1, 30))
    peft(torch.ones(1, 30, requires_grad=True)).sum().backward()
    assert all(q.grad.isfinite().all() for q in peft.parameters() if q.requires_grad)


def test_capacity_by_size():
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 12))
    peft = get_peft_model(base, WaveFTConfig(n_frequency=10, proportional_parameters=True, target_modules=["0", "1"]))
    assert [peft.adapted[i].tensors("default")["waveft_spectrum"].numel() for i in "01"] == [5, 15]
    with pytest.raises(ValueError, match="less than or equal to the product of the input and output dimensions"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), WaveFTConfig(n_frequency=17, proportional_parameters=True, target_modules=["0"]))


def test_impossible_settings():
    for family in ("coif4", "coif5", "db11", "haar"):         # the first two are no wavelets in PEFT: an adapter would mean something else
        with pytest.raises(ValueError, match=f"Unknown wavelet name '{family}'"):
            WaveFTConfig(wavelet_family=family)
    WaveFTConfig(wavelet_family="coif4", use_idwt=False)      # where none is used, none is missed
    with pytest.raises(ValueError, match="`n_frequency` should be a positive integer"):
        WaveFTConfig(n_frequency=0)
    with pytest.raises(ValueError, match="less than or equal to the product"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), WaveFTConfig(n_frequency=17, target_modules=["0"]))
