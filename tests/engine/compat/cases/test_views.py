"""What programs written for PEFT look at in layers and models."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch

from tests.engine.compat.cases.small import lora, peft, small


def test_a_layer_shows_its_tensors_and_settings():
    layer = peft.get_peft_model(small(), lora()).base_model.model[0]
    assert layer.lora_A["default"].weight.shape == (2, 6) and layer.r == {"default": 2} and layer.scaling["default"] == 3
    assert isinstance(layer, peft.tuners.lora.LoraLayer) and not isinstance(layer, peft.tuners.loha.LoHaLayer)
    assert isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer) and repr(layer).startswith("lora.Linear")
    W0, x = layer.weight.clone(), torch.randn(3, 6)
    torch.testing.assert_close(layer(x), x @ (W0 + layer.get_delta_weight("default")).T + layer.bias)
    before = layer(x) - layer.base_layer(x)
    layer.set_scale("default", 0.5)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), before / 2)


def test_one_layer_can_be_switched_off():
    model, x = peft.get_peft_model(small(), lora(target_modules=["0", "1"])), torch.randn(3, 6)
    first = model.base_model.model[0]
    first.enable_adapters(False)
    assert torch.equal(first(x), first.base_layer(x)) and first.disable_adapters
    with pytest.warns(UserWarning, match="some adapter layers that are enabled"), model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())


def test_kinds_that_meet_on_a_layer_show_as_two_and_can_be_copied_and_pickled():
    model = peft.get_peft_model(small(), lora(), mixed=True)
    model.add_adapter("other", peft.LoHaConfig(r=2, target_modules=["0"], init_weights=False))
    model.set_adapter(["default", "other"])
    shown = [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    assert len(shown) == len({type(m) for m in shown}) == 2
    x = torch.randn(3, 6)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(again(x), model(x))


def test_a_learned_bias_is_the_layer_s():
    layer = peft.get_peft_model(small(), lora(bias="lora_only")).base_model.model[0]
    layer.bias.data.fill_(2.0)
    x = torch.zeros(1, 6)
    torch.testing.assert_close(layer(x), torch.full((1, 8), 2.0))


def test_deleting_the_active_one_makes_another_active_and_merging_goes_on():
    model = peft.get_peft_model(small(), lora())
    model.add_adapter("other", lora())
    model.base_model.set_adapter(["default", "other"])
    model.merge_adapter(["other"])
    model.merge_adapter(["default"])
    assert model.base_model.model[0].merged_adapters == ["other", "default"]
    model.unmerge_adapter()
    model.set_adapter("other")
    model.delete_adapter("other")
    assert model.active_adapters == ["default"]


def test_adalora_takes_ranks_away_when_it_is_told_the_step():
    model = peft.get_peft_model(small(), peft.AdaLoraConfig(init_r=4, target_r=1, total_step=4, target_modules=["0"]))
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_E["default"].fill_(1.0)
    for step in range(1, 5):
        model(torch.randn(3, 6)).square().sum().backward()
        model.base_model.update_and_allocate(step)
    assert layer.lora_E["default"].count_nonzero() == 1


def test_what_an_adapter_s_parameters_begin_with():
    from tests.support.families import family

    for config, prefix in ((lora(target_modules=["q_proj"]), "lora_"), (peft.ShadowConfig(r=4), "shadow_")):
        model = peft.get_peft_model(family("Llama", "ForCausalLM"), config)
        assert model.prefix == prefix and all(prefix in name for name, p in model.named_parameters() if p.requires_grad)


def test_words_cannot_be_learned_on_the_layer_that_the_adapter_sits_on():
    from tests.support.families import family

    with pytest.raises(TypeError, match="modules of type <class 'peft.tuners.lora.layer.Embedding'>"):
        peft.get_peft_model(family("Llama", "ForCausalLM"), lora(target_modules=["embed_tokens"], trainable_token_indices=[0, 1]))


def test_words_beside_another_adapter_are_called_as_in_peft():
    from tests.support.families import family

    model = peft.get_peft_model(family("Llama", "ForCausalLM"), lora(target_modules=["q_proj"], trainable_token_indices=[0, 1]))
    model(input_ids=torch.arange(6)[None]).logits.sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if "lora_" in name or "token_adapter.trainable_tokens" in name}
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    assert name in learned and model.get_parameter(name) is model.base_model.model.model.embed_tokens.trainable_tokens_delta["default"]
    alone = peft.get_peft_model(family("Llama", "ForCausalLM"), peft.TrainableTokensConfig(token_indices=[0]))
    assert "base_model.model.model.embed_tokens.trainable_tokens_delta.default" in dict(alone.named_parameters())


def test_a_parameter_is_called_as_in_peft():
    said = repr(peft.get_peft_model(small(), lora(target_modules=[], target_parameters=["0.weight"])).base_model.model[0])
    assert said.startswith("lora.ParamWrapper") and "parameter_name='weight'" in said


def test_the_place_of_words_stays_when_the_last_have_left():
    from tests.support.families import family

    model = peft.get_peft_model(family("Llama", "ForCausalLM"), lora(target_modules=["q_proj"], trainable_token_indices=[0, 1]))
    words = model.base_model.model.model.embed_tokens
    assert set(words.token_adapter.trainable_tokens_delta) == {"default"}
    model.delete_adapter("default")
    assert not len(words.token_adapter.trainable_tokens_delta) and not len(words.token_adapter.trainable_tokens_original)


def test_an_error_says_all_that_it_knows(tmp_path):
    peft.get_peft_model(small(), lora()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch[^$]*\(2, 6\) in the file, \(2, 5\) in the model"):
        peft.PeftModel.from_pretrained(torch.nn.Sequential(torch.nn.Linear(5, 8)), tmp_path)


def test_a_model_s_config_may_be_a_dict():
    model = torch.nn.Sequential(OrderedDict(q=torch.nn.Linear(6, 8), k=torch.nn.Linear(8, 4)))
    model.config = {"model_type": "t5"}
    assert peft.get_peft_model(model, peft.LoraConfig()).targeted_module_names == ["q"]
