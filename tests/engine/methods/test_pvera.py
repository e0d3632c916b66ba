"""PVeRA: its mean is what is heard and merged, its noise what training hears."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import PveraConfig, get_peft_model
from tests.support.one import one

X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(adapted, noise: torch.Tensor | float) -> torch.Tensor:
    """W0·x + b ∘ B(μ + ε ∘ exp ν/2)."""
    p = adapted.all_tensors("a0")
    mean, log_variance = (p["pvera_lambda_d"] * (X @ p["pvera_A"].T)).chunk(2, dim=-1)
    return adapted.base_layer(X) + p["pvera_lambda_b"] * F.linear(mean + noise * (log_variance / 2).exp(), p["pvera_B"])


def test_the_mean_is_heard_and_merged():
    peft, adapted = one(nn.Linear(6, 8), PveraConfig(r=5))
    expected = by_hand(adapted, 0.0)
    torch.testing.assert_close(peft(X), expected)
    with torch.no_grad():
        torch.testing.assert_close(peft(X), expected)
    torch.testing.assert_close(peft.merge_and_unload()(X), expected)


def test_training_draws_from_the_global_stream():
    peft, adapted = one(nn.Linear(6, 8), PveraConfig(r=5))
    torch.manual_seed(4)
    noise = torch.randn(4, 5, dtype=torch.float64)
    torch.manual_seed(4)
    torch.testing.assert_close(peft.train()(X), by_hand(adapted, noise))


def test_a_seed_of_its_own_makes_the_draws_repeatable():
    peft, adapted = one(nn.Linear(6, 8), PveraConfig(r=5, generator_seed=9))
    stream, before = torch.Generator().manual_seed(9), torch.get_rng_state()
    for _ in range(2):                     # and each draw is a new one
        torch.testing.assert_close(peft.train()(X), by_hand(adapted, torch.randn(4, 5, dtype=torch.float64, generator=stream)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("learning", [True, False])
def test_drawing_when_answering(learning):
    peft, adapted = one(nn.Linear(6, 8), PveraConfig(r=5, sample_at_inference=True))
    with torch.set_grad_enabled(learning):
        torch.manual_seed(4)
        heard = peft.eval()(X)
        torch.manual_seed(4)
        torch.testing.assert_close(heard, by_hand(adapted, torch.randn(4, 5, dtype=torch.float64)))
        merged = by_hand(adapted, 0.0)
    torch.testing.assert_close(peft.merge_and_unload()(X), merged)            # only a mean can be merged


def test_the_state_of_the_draws_is_not_stored(tmp_path):
    from safetensors.torch import load_file

    peft = get_peft_model(nn.Sequential(nn.Linear(6, 8)), PveraConfig(r=5, generator_seed=9, target_modules=["0"]))
    peft.save_pretrained(tmp_path)
    assert not [k for k in load_file(tmp_path / "adapter_model.safetensors") if "generator" in k]


def test_impossible_settings():
    with pytest.raises(ValueError, match="`r` should be a positive integer"):
        PveraConfig(r=-1)
    with pytest.raises(ValueError, match="linear layers only"):
        get_peft_model(nn.Sequential(nn.Conv1d(4, 4, 3)), PveraConfig(r=4, target_modules=["0"]))
