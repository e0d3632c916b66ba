"""SHiRA: which entries change, and that places out of a file are looked at before they are used."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine import PeftModel, ShiraConfig, get_peft_model
from engine.errors import BadAdapter
from tests.support.one import one


@pytest.mark.parametrize("layer", [lambda: nn.Linear(10, 8), lambda: nn.Conv2d(4, 8, 3, groups=2)])
def test_as_many_entries_as_a_lora_would_learn_and_no_others(layer):
    peft, adapted = one(layer(), ShiraConfig(r=2))
    W, site, p = adapted.base_layer.weight.clone().flatten(1), adapted.site, adapted.tensors("a0")
    changed = peft.merge_and_unload().layer.weight.flatten(1) - W
    rows, columns = p["shira_indices"].long()
    assert changed.count_nonzero() == 2 * (site.out + site.columns) == p["shira_weight"].numel()
    torch.testing.assert_close(changed[rows, columns], p["shira_weight"])


def test_without_a_seed_the_places_are_the_same_every_time():
    def places(seed):
        peft = get_peft_model(nn.Sequential(nn.Linear(10, 8)), ShiraConfig(r=2, random_seed=seed, target_modules=["0"]))
        return peft.adapted["0"].tensors("default")["shira_indices"]

    assert torch.equal(places(None), places(None)) and not torch.equal(places(None), places(1))


@pytest.mark.parametrize("place", [[8, 0], [0, 10], [-1, 0]])
def test_places_outside_of_the_layer_are_refused(place, tmp_path):
    peft = get_peft_model(nn.Sequential(nn.Linear(10, 8)), ShiraConfig(r=2, target_modules=["0"]))
    peft.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.0.shira_indices"][:, 3] = torch.tensor(place, dtype=torch.int32)
    save_file(tensors, file)
    base = peft.unload()
    with pytest.raises(BadAdapter, match="places that a layer does not have"):
        PeftModel.from_pretrained(base, tmp_path)
    assert type(base[0]) is nn.Linear


def test_a_file_may_come_from_another_choice_of_places(tmp_path):
    peft = get_peft_model(nn.Sequential(nn.Linear(10, 8)), ShiraConfig(r=2, target_modules=["0"], init_weights=False))
    p = peft.adapted["0"].tensors("default")
    p["shira_indices"].copy_(p["shira_indices"].flip(1))
    peft.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"random"', '"largest"'))
    x, expected = torch.ones(1, 10), peft.eval()(torch.ones(1, 10))
    torch.testing.assert_close(PeftModel.from_pretrained(peft.unload(), tmp_path)(x), expected)


def largest(layer, r):
    """The r · (out + in) largest entries."""
    number = r * sum(layer.weight.shape)
    return layer.weight.abs() >= layer.weight.abs().flatten().topk(number).values[-1]


def test_the_places_may_be_chosen_by_a_function_that_sees_the_weight(tmp_path):
    model = nn.Sequential(nn.Linear(10, 8))
    config = ShiraConfig(r=2, mask_type="custom", target_modules=["0"], init_weights=False)
    config.mask_fn = largest
    peft = get_peft_model(model, config)
    rows, columns = peft.adapted["0"].tensors("default")["shira_indices"].long()
    W, marked = model[0].weight, torch.zeros(8, 10, dtype=torch.bool)
    marked[rows, columns] = True
    assert W[marked].abs().min() > W[~marked].abs().max()
    peft.save_pretrained(tmp_path)
    x = torch.ones(1, 10)
    expected = peft.eval()(x)
    torch.testing.assert_close(PeftModel.from_pretrained(peft.unload(), tmp_path)(x), expected)
    config.mask_fn = lambda layer, r: layer.weight > 100
    with pytest.raises(ValueError, match="marks 0 places"):
        get_peft_model(nn.Sequential(nn.Linear(10, 8)), config)


def test_impossible_settings():
    with pytest.raises(ValueError, match="`r` should be a positive integer"):
        ShiraConfig(r=0)
    with pytest.raises(ValueError, match="is not known"):
        get_peft_model(nn.Sequential(nn.Linear(10, 8)), ShiraConfig(r=2, mask_type="largest", target_modules=["0"]))
    with pytest.raises(ValueError, match="results in more shira params than the total number of params in the base layer"):
        get_peft_model(nn.Sequential(nn.Linear(10, 8)), ShiraConfig(r=5, target_modules=["0"]))
