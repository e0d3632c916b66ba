"""A mix of kinds: order, strengths, saving, loading, and PEFT reading each of its folders."""

from __future__ import annotations

import json

import pytest
import torch

import engine
from engine import LoHaConfig, LoraConfig, OFTConfig, PeftMixedModel, get_peft_model
from engine.errors import BadAdapter, WrongBase
from tests.support.tiny import make_model

IDS = torch.arange(16)[None]


def mix() -> PeftMixedModel:
    torch.manual_seed(0)
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), "style", mixed=True)
    model.add_adapter("facts", LoHaConfig(r=2, target_modules=["v_proj", "down_proj"], init_weights=False))
    model.add_adapter("turn", OFTConfig(oft_block_size=4, target_modules=["v_proj"], init_weights=False))
    return model.eval()


def test_order_and_strengths_survive_saving(tmp_path):
    model = mix()
    model.set_adapter({"turn": 1.0, "style": 0.6, "facts": -0.4})
    expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    again = PeftMixedModel.from_pretrained(make_model(), tmp_path)
    assert again.stack.entries == [("turn", 1.0), ("style", 0.6), ("facts", -0.4)] and list(again.peft_config) == ["style", "facts", "turn"]
    torch.testing.assert_close(again(IDS).logits, expected, atol=1e-6, rtol=0)
    model.set_adapter({"style": 0.6, "facts": -0.4, "turn": 1.0})
    assert not torch.allclose(model(IDS).logits, expected, atol=1e-4)         # the order counts, and was kept


def test_merging_equals_running_in_the_mix(tmp_path):
    model = mix()
    model.set_adapter({"style": 0.6, "turn": 1.0, "facts": 1.3})
    expected = model(IDS).logits
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, expected, atol=1e-5, rtol=0)


def test_peft_loads_each_folder_of_a_mix(tmp_path):
    peft = pytest.importorskip("peft", reason="the oracle is in the test extra only")
    model = mix()
    model.save_pretrained(tmp_path)
    for name in ("style", "facts", "turn"):
        model.set_adapter(name)
        theirs = peft.PeftModel.from_pretrained(make_model(), tmp_path / name).eval()
        torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("harm", [{"format": 9}, {"adapters": ["../style"]}, {"adapters": []}, {"stack": [["nobody", 1.0]]},
                                  {"stack": [["style", float("nan")]]}, {"stack": "loud"}])
def test_a_mix_that_makes_no_sense_is_refused(harm, tmp_path):
    mix().save_pretrained(tmp_path)
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | harm))
    base = make_model()
    before = list(base.state_dict())
    with pytest.raises(BadAdapter, match="mix"):
        PeftMixedModel.from_pretrained(base, tmp_path)
    assert list(base.state_dict()) == before


def test_if_one_does_not_fit_the_model_comes_back_plain(tmp_path):
    mix().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "turn" / "adapter_config.json").read_text())
    (tmp_path / "turn" / "adapter_config.json").write_text(json.dumps(config | {"oft_block_size": 2}))
    base = make_model()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    with pytest.raises(WrongBase):
        PeftMixedModel.from_pretrained(base, tmp_path)
    assert {k: torch.equal(v, before[k]) for k, v in base.state_dict().items()} == dict.fromkeys(before, True)


def test_a_single_adapter_is_a_mix_of_one(tmp_path):
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path)
    again = PeftMixedModel.from_pretrained(make_model(), tmp_path)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="safetensors"):
        again.save_pretrained(tmp_path / "b", safe_serialization=False)
    assert engine.PeftMixedModel is PeftMixedModel
