"""Uni-LoRA: which number goes where, that the map keeps lengths, and files with and without the places."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine import PeftModel, UniLoraConfig, get_peft_model
from engine.errors import BadAdapter
from engine.methods.unilora import METHOD, assignment


def two(**settings):
    base = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5))
    return get_peft_model(base, UniLoraConfig(**{"r": 3, "theta_d_length": 7, "target_modules": ["0", "1"], **settings}))


def test_each_number_is_used_equally_often_and_the_map_keeps_lengths():
    peft = two()
    entries, used = [], []
    for layer in peft.adapted.values():
        tenant, p = layer.tenants["default"], layer.all_tensors("default")
        f = METHOD.factors(p, tenant.config, tenant.site)
        entries += [f.A.flatten(), f.B.flatten()]
        used += [p["unilora_indices_A"].flatten(), p["unilora_indices_B"].flatten()]
    counts = torch.cat(used).bincount(minlength=7)
    assert counts.sum() == 3 * (6 + 4 + 4 + 5) and counts.max() - counts.min() == 1
    torch.testing.assert_close(torch.cat(entries).norm(), peft.shared_tensors("default")["unilora_theta_d"].norm())


def test_fewer_places_than_numbers():
    places, scales = assignment(3, 10, 0)
    assert places.unique().numel() == 3 and (scales == 1).all()


def test_only_the_vector_is_stored_unless_asked(tmp_path):
    for save, names in ((False, {"unilora_theta_d"}), (True, {
            "unilora_theta_d", *(f"unilora_{w}_{f}" for w in ("indices", "scales") for f in "AB")})):
        peft = two(save_indices=save)
        peft.save_pretrained(tmp_path / str(save))
        assert {k.rpartition(".")[2] for k in load_file(tmp_path / str(save) / "adapter_model.safetensors")} == names
        x, expected = torch.ones(1, 6), peft.eval()(torch.ones(1, 6))
        again = PeftModel.from_pretrained(peft.unload(), tmp_path / str(save))
        assert again.load_report.complete
        torch.testing.assert_close(again(x), expected, atol=0, rtol=0)


def test_stored_places_are_believed_and_looked_at(tmp_path):
    peft = two(save_indices=True)
    places = peft.adapted["0"].tensors("default")["unilora_indices_A"]
    places.copy_(places.flip(0))
    peft.save_pretrained(tmp_path / "other")
    x, expected = torch.ones(1, 6), peft.eval()(torch.ones(1, 6))
    places[0, 0] = 7
    peft.save_pretrained(tmp_path / "wrong")
    base = peft.unload()
    torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path / "other")(x), expected)
    with pytest.raises(BadAdapter, match="places that a layer does not have"):
        PeftModel.from_pretrained(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5)), tmp_path / "wrong")


@pytest.mark.parametrize(("settings", "phrase"), [
    ({"r": 0}, "`r` should be a positive integer"), ({"theta_d_length": 0}, "`theta_d_length` should be a positive integer"),
    ({"unilora_dropout": 1.5}, "between 0.0 and 1.0"), ({"init_theta_d_bound": 0}, "should be a positive float")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        UniLoraConfig(**settings)
