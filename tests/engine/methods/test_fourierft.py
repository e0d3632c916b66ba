"""FourierFT: its way without a dense matrix against the transform written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from engine import FourierFTConfig, get_peft_model
from engine.law import random_places
from tests.support.one import one


@pytest.mark.parametrize("layer", [lambda: nn.Linear(7, 10), lambda: nn.Linear(8, 5)])
def test_running_is_the_sum_of_waves(layer):
    layer = layer()
    out, columns = layer.weight.shape
    peft, adapted = one(layer, FourierFTConfig(n_frequency=9, scaling=30))
    p, x = adapted.tensors("a0"), torch.randn(3, columns, dtype=torch.float64)
    m, n = torch.arange(out).double()[:, None], torch.arange(columns).double()
    delta = 30 / (out * columns) * sum(c * torch.cos(2 * math.pi * (place // columns * m / out + place % columns * n / columns))
                                       for c, place in zip(p["fourierft_spectrum"], p["fourierft_indices"].tolist(), strict=True))
    expected = nn.functional.linear(x, layer.weight + delta, layer.bias)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_half_precision_is_transformed_in_single():
    peft = get_peft_model(nn.Sequential(nn.Linear(7, 10)).bfloat16(), FourierFTConfig(n_frequency=9, target_modules=["0"]))
    x = torch.randn(3, 7).bfloat16()
    heard = peft.eval()(x)
    assert heard.dtype == torch.bfloat16
    torch.testing.assert_close(heard, peft.merge_and_unload()(x), atol=0.05, rtol=0.05)


def test_places_are_found_from_the_seed_without_touching_the_stream():
    before = torch.get_rng_state()
    places = random_places(1000, 30, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert places.unique().numel() == 30 and torch.equal(places, torch.randperm(1000, generator=torch.Generator().manual_seed(5))[:30])
    assert places.untyped_storage().nbytes() == 30 * 8        # and the other 970 are not kept


def test_a_layer_of_its_own_capacity():
    config = FourierFTConfig(n_frequency=9, n_frequency_pattern={"1": 4}, target_modules=["0", "1"])
    peft = get_peft_model(nn.Sequential(nn.Linear(7, 10), nn.Linear(10, 3)), config)
    assert [peft.adapted[i].tensors("default")["fourierft_spectrum"].numel() for i in "01"] == [9, 4]


def test_impossible_settings():
    for settings in ({"n_frequency": 0}, {"n_frequency_pattern": {"q": -1}}):
        with pytest.raises(ValueError, match="` should be a positive integer"):
            FourierFTConfig(**settings)
    with pytest.raises(ValueError, match="`random_loc_seed` must be a number"):
        FourierFTConfig(random_loc_seed=None)
    with pytest.raises(ValueError, match="less than or equal to the product of the input and output dimensions"):
        get_peft_model(nn.Sequential(nn.Linear(7, 10)), FourierFTConfig(n_frequency=71, target_modules=["0"]))
