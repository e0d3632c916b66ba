"""Super-tuning: which entries learn, the added LoRA, and files without the places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from engine import PeftModel, SupertuningConfig, get_peft_model
from engine.errors import BadAdapter
from tests.support.one import one


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(10, 8), lambda: nn.Conv2d(4, 8, 3, groups=2), lambda: nn.Embedding(10, 8)])
def test_the_largest_or_smallest_entries_change_and_no_others(layer, top):
    peft, adapted = one(layer(), SupertuningConfig(sparsity=0.9, select_top=top))
    W = adapted.base_layer.weight.detach().clone()
    count = int(W.numel() * (1 - 0.9))     # 7 of 80: rounded as PEFT does
    changed = peft.merge_and_unload().layer.weight != W
    edge = W.abs().flatten().sort(descending=top).values[count - 1]
    assert torch.equal(changed, W.abs() >= edge if top else W.abs() <= edge)


def test_with_a_lora_beside():
    layer = nn.Linear(10, 8)
    peft, adapted = one(layer, SupertuningConfig(sparsity=0.9, r=2, lora_dropout=0.5))
    p, x = adapted.tensors("a0"), torch.randn(4, 10, dtype=torch.float64)
    sparse = torch.zeros(80, dtype=torch.float64)
    sparse[p["supertuning_indices"].long()] = p["supertuning_values"]
    A, B, sparse = p["supertuning_lora_A.weight"], p["supertuning_lora_B.weight"], sparse.view(8, 10)
    without = F.linear(x, layer.weight + sparse, layer.bias)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(peft(x), without + 2 * x @ A.T @ B.T)                  # alpha is twice the rank
    torch.manual_seed(5)
    dropped = F.dropout(x, 0.5)            # only the LoRA's inputs are
    torch.manual_seed(5)
    torch.testing.assert_close(peft.train()(x), without + 2 * dropped @ A.T @ B.T)


def test_places_are_found_again_from_the_same_base(tmp_path):
    base = nn.Sequential(nn.Linear(10, 8))
    peft = get_peft_model(base, SupertuningConfig(sparsity=0.9, save_precomputed_indices=False, init_weights=False, target_modules=["0"]))
    peft.save_pretrained(tmp_path)
    assert list(load_file(tmp_path / "adapter_model.safetensors")) == ["base_model.model.0.supertuning_values"]
    x, expected = torch.ones(1, 10), peft.eval()(torch.ones(1, 10))
    again = PeftModel.from_pretrained(peft.unload(), tmp_path)
    assert again.load_report.complete
    torch.testing.assert_close(again(x), expected, atol=0, rtol=0)


def test_places_outside_of_the_layer_are_refused(tmp_path):
    peft = get_peft_model(nn.Sequential(nn.Linear(10, 8)), SupertuningConfig(sparsity=0.9, target_modules=["0"]))
    peft.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: t + 80 * ("indices" in k) for k, t in load_file(file).items()}, file)
    with pytest.raises(BadAdapter, match="places that a layer does not have"):
        PeftModel.from_pretrained(peft.unload(), tmp_path)


@pytest.mark.parametrize(("settings", "phrase"), [
    ({"sparsity": 1.0}, r"sparsity must be in \[0.0, 1.0\)"), ({"r": 0}, "r must be a positive integer or None"),
    ({"lora_alpha": 4}, "lora_alpha is set but r is None"), ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0.0, 1.0\)")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        SupertuningConfig(**settings)


def test_what_it_cannot_sit_on():
    with pytest.raises(ValueError, match="leaves no trainable entries"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), SupertuningConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match="linear layers only"):
        get_peft_model(nn.Sequential(nn.Conv1d(4, 4, 3)), SupertuningConfig(sparsity=0.5, r=2, lora_dropout=0.1, target_modules=["0"]))
