"""Laws of adapters whose effect depends on the input: sliders, the untouched base, files, and a merge that is refused before anything changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import engine
from engine import LoraConfig, PeftModel, get_peft_model
from engine.errors import CannotMerge
from tests.support.one import One

CONFIGS = {
    "poly": lambda: engine.PolyConfig(target_modules=["layer"], r=2, n_tasks=2, init_weights=False),
    "lily": lambda: engine.LilyConfig(target_modules=["layer"], r=2, init_weights=False),
    "alora": lambda: LoraConfig(target_modules=["layer"], r=2, alora_invocation_tokens=[3], init_lora_weights=False),
    "arrow": lambda: LoraConfig(target_modules=["layer"], r=2, arrow_config=engine.ArrowConfig(top_k=1)),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)


def rig(kind: str):
    """(a model whose adapter "routed" is of this kind, beside two LoRAs; what a call is given)."""
    torch.manual_seed(0)
    model = get_peft_model(One(nn.Linear(12, 8)).double(), CONFIGS[kind](), "routed", autocast_adapter_dtype=False)
    for name in ("a", "b"):
        model.add_adapter(name, LoraConfig(target_modules=["layer"], r=2, init_lora_weights=False), autocast_adapter_dtype=False)
    given = {"task_ids": torch.tensor([1, 0])} if kind == "poly" else {}
    model.stack.extras = {"alora_offsets": [3, 2]} if kind == "alora" else {}
    return model.eval(), {"x": torch.randn(2, 4, 12).double(), **given}


@kinds
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_sliders_add_and_zero_is_exactly_the_base(kind, grad):
    model, call = rig(kind)
    with torch.set_grad_enabled(grad):
        with model.disable_adapter():
            base = model(call["x"])
        alone = {}
        for name in ("routed", "a"):
            model.set_adapter(name)
            alone[name] = model(**call) - base
            assert alone[name].abs().max() > 1e-3
        model.set_adapter({"a": -0.5, "routed": 1.7})
        torch.testing.assert_close(model(**call), base + 1.7 * alone["routed"] - 0.5 * alone["a"])
        model.set_adapter({"routed": 0.0})
        assert torch.equal(model(call["x"]), base)


@kinds
def test_a_merge_is_refused_before_anything_changed(kind):
    model, call = rig(kind)
    weight, tenants = model.adapted["layer"].base_layer.weight, set(model.adapted["layer"].tenants)
    model.set_adapter(["a", "routed"])
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(CannotMerge, match="does not support merging"):
            merge()
    assert model.adapted["layer"].base_layer.weight is weight and set(model.adapted["layer"].tenants) == tenants
    assert model.stack.merged == () and model.stack.names == ["a", "routed"]
    before = model(**call)
    model.merge_adapter(["a"])             # the others may be merged; it goes on above them
    torch.testing.assert_close(model(**call), before)


MAPS = {"ia3": lambda: engine.IA3Config(target_modules=["layer"], feedforward_modules=[], init_ia3_weights=False),
        "boft": lambda: engine.BOFTConfig(target_modules=["layer"], boft_block_size=4, init_weights=False)}


@kinds
@pytest.mark.parametrize("kind_of_map", MAPS)
def test_below_a_map_it_is_turned_with_the_rest(kind, kind_of_map):
    model, call = rig(kind)
    model.add_adapter("map", MAPS[kind_of_map](), autocast_adapter_dtype=False)
    layer, tenant = model.adapted["layer"], model.tenants("map")["layer"]
    arguments = ({k: t.detach() for k, t in layer.tensors("map").items()}, tenant.config, tenant.site)
    model.set_adapter("routed")
    seen = tenant.method.turn_in(*arguments, call["x"]) if tenant.method.acts_in(*arguments[1:]) else call["x"]
    below = model(**{**call, "x": seen})
    bias = 0 if tenant.method.turns_bias(*arguments[1:]) else layer.base_layer.bias
    model.set_adapter(["routed", "map"])
    torch.testing.assert_close(model(**call), tenant.method.turn_out(*arguments, below - bias) + bias)


@kinds
def test_it_comes_back_from_its_file_and_the_base_from_it(kind, tmp_path):
    model, call = rig(kind)
    before = copy.deepcopy(model.get_base_model())
    model.save_pretrained(tmp_path, selected_adapters=["routed"])
    plain = model.unload()
    again = PeftModel.from_pretrained(plain, tmp_path / "routed", autocast_adapter_dtype=False)
    assert again.load_report.complete
    assert all(torch.equal(a, b) for a, b in zip(again.adapted["layer"].tensors("default").values(), before.layer.tensors("routed").values()))
    assert again.unload() is plain and set(plain.state_dict()) == {"layer.weight", "layer.bias"}
