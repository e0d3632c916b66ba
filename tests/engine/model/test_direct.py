"""Adapters in a model that stays the user's own, and what its status says."""

from __future__ import annotations

import pytest
import torch

from engine import (LoHaConfig, LoraConfig, OFTConfig, PrefixTuningConfig, TinyLoraConfig, UniLoraConfig, VBLoRAConfig, VeraConfig,
                    cast_adapter_dtype, delete_adapter, get_layer_status, get_model_status, get_peft_model, get_peft_model_state_dict,
                    inject_adapter_in_model, set_adapter, set_peft_model_state_dict, set_requires_grad)
from tests.support.tiny import make_model

IDS = torch.arange(3, 19)[None]


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **more})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_the_model_keeps_its_class_and_computes_what_a_peft_model_does():
    model, wrapped = make_model(), get_peft_model(make_model(), lora()).eval()
    assert inject_adapter_in_model(lora(), model) is model and type(model) is type(make_model())
    state = get_peft_model_state_dict(wrapped)
    assert set_peft_model_state_dict(model, state).complete
    torch.testing.assert_close(logits(model), logits(wrapped))
    assert get_peft_model_state_dict(model).keys() == {key.removeprefix("base_model.model.") for key in state}
    assert all("lora" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [LoHaConfig(target_modules=["q_proj"]), OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"])],
                         ids=["loha", "oft"])
def test_a_second_one_of_another_kind_and_back(config):
    model = inject_adapter_in_model(lora(), make_model())
    first = logits(model)
    inject_adapter_in_model(config, model, "second")
    set_adapter(model, ["default", "second"])
    torch.testing.assert_close(logits(model), first, atol=1e-5, rtol=1e-5)     # the second starts as nothing
    assert delete_adapter(model, "second") == ["default"] and delete_adapter(model, "second") == ["default"]
    torch.testing.assert_close(logits(model), first)
    assert delete_adapter(model, "default") is None
    torch.testing.assert_close(logits(model), logits(make_model()))


def test_keys_of_a_state_dict_say_where_it_sits():
    state = get_peft_model_state_dict(get_peft_model(make_model(), lora(target_modules=["v_proj"])))
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        model = inject_adapter_in_model(lora(), make_model(), state_dict=state, low_cpu_mem_usage=True)
    assert set_peft_model_state_dict(model, state).complete and not any(p.is_meta for p in model.parameters())
    assert {status.name for status in get_layer_status(model)} == {f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)}


def test_what_all_layers_share_is_no_layer(recwarn):
    config = VeraConfig(r=2, target_modules=["q_proj"])
    state = get_peft_model_state_dict(inject_adapter_in_model(config, make_model()))
    model = inject_adapter_in_model(VeraConfig(r=2, target_modules=["q_proj"]), make_model(), state_dict=state, low_cpu_mem_usage=True)
    assert not recwarn.list
    empty = get_peft_model_state_dict(model)
    assert empty.keys() == state.keys() and all(t.is_meta and t.shape == state[k].shape for k, t in empty.items())


@pytest.mark.parametrize("config", [UniLoraConfig, VBLoRAConfig, TinyLoraConfig, VeraConfig])
def test_what_all_layers_share_learns_with_the_model(config):
    """PEFT injects none of these."""
    own = {"vector_length": 8} if config is VBLoRAConfig else {}
    model = inject_adapter_in_model(config(target_modules=["q_proj"], **own), make_model())
    wrapped = get_peft_model(make_model(), config(target_modules=["q_proj"], **own))
    learned = [p for p in model.parameters() if p.requires_grad]
    assert len(learned) == sum(p.requires_grad for p in wrapped.parameters())
    before, optimizer = model(IDS).logits, torch.optim.AdamW(learned, lr=0.1)
    for _ in range(2):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in learned) and not torch.equal(model(IDS).logits, before)
    set_peft_model_state_dict(wrapped, get_peft_model_state_dict(model))
    torch.testing.assert_close(wrapped.eval()(IDS).logits, model.eval()(IDS).logits)
    delete_adapter(model, "default")
    assert torch.equal(model(IDS).logits, make_model()(IDS).logits) and not [p for p in model.parameters() if p.requires_grad]


def test_what_all_layers_share_is_no_layer_of_a_sequence():
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), torch.randn(2, 4)
    base = model(x)
    inject_adapter_in_model(UniLoraConfig(target_modules=["0", "1"], init_weights=False), model)
    learned, = (p for p in model.parameters() if p.requires_grad)
    model(x).sum().backward()
    assert learned.grad is not None and len(model) == 2
    delete_adapter(model, "default")
    assert torch.equal(model(x), base)


def test_what_cannot_be_injected_changes_nothing():
    model = make_model()
    for config, more, words in ((PrefixTuningConfig(num_virtual_tokens=2), {}, "prompt learning"), (lora(), {"state_dict": {"a": IDS}}, "No key"),
                                (lora(target_parameters=["q_proj.weight"]), {"state_dict": {"a": IDS}}, "target_parameters"),
                                (lora(target_modules=["nothing"]), {}, "nothing")):
        with pytest.raises(ValueError, match=words):
            inject_adapter_in_model(config, model, **more)
    assert not hasattr(model, "peft_config") and model.state_dict().keys() == make_model().state_dict().keys()
    for function in (set_adapter, set_requires_grad, delete_adapter, cast_adapter_dtype):
        with pytest.raises(ValueError, match="no adapters"):
            function(model, "default")


def test_which_train_and_in_which_format():
    model = inject_adapter_in_model(lora(), make_model())
    set_requires_grad(model, "default", False)
    assert not any(p.requires_grad for p in model.parameters())
    model.to(torch.bfloat16)
    cast_adapter_dtype(model, "default", autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    cast_adapter_dtype(model, "default")
    assert {p.dtype for name, p in model.named_parameters() if "lora" in name} == {torch.float32}
    with pytest.raises(ValueError, match="nobody"):
        set_adapter(model, "nobody")


# --- status ---

def test_status_of_layers_and_of_the_model():
    model = get_peft_model(make_model(), lora())
    model.add_adapter("other", lora(target_modules=["q_proj", "v_proj"]))
    layers, whole = model.get_layer_status(), model.get_model_status()
    assert {s.name for s in layers} == {f"model.model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qv"}
    assert all(s.module_type == "lora.Linear" and s.enabled and s.active_adapters == ["default"] and not s.merged_adapters for s in layers)
    assert whole.num_adapter_layers == 4 and whole.available_adapters == ["default", "other"]
    assert whole.peft_types == {"default": "LORA", "other": "LORA"}
    assert whole.requires_grad == {"default": True, "other": False} and whole.devices == {"default": ["cpu"], "other": ["cpu"]}
    assert (whole.trainable_params, whole.total_params) == model.get_nb_trainable_parameters() and whole.adapter_model_type == "LoraModel"
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


def test_status_of_prompts_and_of_bare_models():
    prompt = get_peft_model(make_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    status, = get_layer_status(prompt)
    assert status.name == "prompt_encoder" and status.requires_grad == {"default": True}
    with pytest.raises(ValueError, match="No adapter layers"):
        get_model_status(make_model())
    assert get_model_status(inject_adapter_in_model(lora(), make_model())).base_model_type == "LlamaForCausalLM"
