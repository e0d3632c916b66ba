"""An adapter that is named twice counts twice; what one has learned beside its low-rank matrices is combined with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import IA3Config, LoraConfig, get_peft_model


@pytest.mark.parametrize("config, how", [(LoraConfig(r=4, target_modules=["0"]), {"combination_type": "cat"}),
                                         (LoraConfig(r=4, target_modules=["0"]), {"combination_type": "svd"}),
                                         (IA3Config(target_modules=["0"], feedforward_modules=[]), {})], ids=["cat", "svd", "ia3"])
def test_half_and_half_of_an_adapter_is_that_adapter(config, how):
    model, x = get_peft_model(nn.Sequential(nn.Linear(16, 24)), config, "a").eval(), torch.randn(3, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".a" in name:
                parameter.normal_()
    model.add_weighted_adapter(["a", "a"], [0.5, 0.5], "both", **how)
    model.set_adapter("a")
    once = model(x)
    model.set_adapter("both")
    torch.testing.assert_close(model(x), once, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", [{"combination_type": "cat"}, {"combination_type": "svd"}, {"combination_type": "linear"},
                                 {"combination_type": "ties", "density": 1.0}], ids=lambda how: how["combination_type"])
def test_words_that_were_learned_beside_are_combined_too(how):
    model = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 24))
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["1"], trainable_token_indices={"0": [7, 1]}), "a").eval()
    model.add_adapter("b", LoraConfig(r=4, target_modules=["1"], trainable_token_indices={"0": [3, -3]}))        # 3 is new, -3 is 7 again
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".a", ".b")):
                parameter.normal_()
    embedding = model.get_base_model()[0]
    W0, rows = embedding.base_layer.weight, {name: embedding.trainable_tokens_delta[name] for name in "ab"}
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "both", **how)
    model.set_adapter("both")
    a, b = rows["a"] - W0[[7, 1]], rows["b"] - W0[[3, 7]]
    seven = 0.5 * a[0] + 2 * b[1]
    if how["combination_type"] == "ties":  # only those count of which the sign is that of the sum, and on average
        signs = torch.where(a[0] + b[1] >= 0, 1, -1)
        kept = torch.stack([a[0].sign() == signs, b[1].sign() == signs])
        seven = (torch.stack([0.5 * a[0], 2 * b[1]]) * kept).sum(0) / kept.sum(0).clamp(min=1)
    expected = W0.clone()
    expected[[1, 3, 7]] += torch.stack([0.5 * a[1], 2 * b[0], seven])
    torch.testing.assert_close(embedding(torch.arange(10)), expected)
    assert model.peft_config["both"].trainable_token_indices == {"0": [1, 3, 7]}


@pytest.mark.parametrize("how", [{"combination_type": "cat"}, {"combination_type": "magnitude_prune", "density": 1.0}], ids=["cat", "pruned"])
def test_modules_that_were_learned_whole_are_combined_too(how):
    """``W0 + Σ weight · (W' − W0)``, where one adapter has a copy and where two have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 8), nn.BatchNorm1d(8))
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["0"], modules_to_save=["1", "2"]), "a").eval()
    model.add_adapter("b", LoraConfig(r=4, target_modules=["0"], modules_to_save=["1"]))
    first, second, third = model.get_base_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    third.modules_to_save["a"].num_batches_tracked += 5
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "both", **how)
    W0, copies = second.original_module, second.modules_to_save
    for key in ("weight", "bias"):
        base, a, b, both = (getattr(m, key) for m in (W0, copies["a"], copies["b"], copies["both"]))
        torch.testing.assert_close(both, base + 0.5 * (a - base) + 2 * (b - base))
    norm = third.modules_to_save["both"]
    torch.testing.assert_close(norm.weight, 0.5 + 0.5 * third.modules_to_save["a"].weight)
    assert norm.num_batches_tracked == 5 and "b" not in third.modules_to_save
    model.set_adapter("both")
    assert not torch.allclose(model(torch.randn(3, 16)), model.unload()(torch.randn(3, 16)))


def test_adapters_that_one_word_calls_are_combined_into_one_that_it_calls():
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(6, 8)), torch.randn(1, 5, 6)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"], alora_invocation_tokens=[3], init_lora_weights=False), "a").eval()
    model.add_adapter("b", LoraConfig(r=2, target_modules=["0"], alora_invocation_tokens=[3], init_lora_weights=False))
    model.add_adapter("c", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "both", combination_type="cat")
    assert model.peft_config["both"].alora_invocation_tokens == [3]
    heard, layer = {}, model.adapted["0"]
    for name in ("a", "b", "both"):
        model.set_adapter(name)
        with model.stack.telling(alora_offsets=[2]):
            heard[name] = model.base_model(x) - layer.base_layer(x)
    torch.testing.assert_close(heard["both"], 0.5 * heard["a"] + 2 * heard["b"])
    assert not heard["both"][:, :3].any() and heard["both"][:, 3:].all()
    with pytest.raises(ValueError, match="called by other words"):
        model.add_weighted_adapter(["a", "c"], [0.5, 2.0], "wrong")


def test_learned_biases_are_not_taken_for_modules():
    model = get_peft_model(nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24)), LoraConfig(r=4, target_modules=["0"], bias="all"), "a")
    with pytest.raises(ValueError, match="bias"):
        model.add_weighted_adapter(["a"], [0.5], "half", combination_type="cat")
    assert list(model.peft_config) == ["a"]
