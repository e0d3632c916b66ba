"""The plan of an injection: which layers, why not the others, and clear words when nothing fits."""

import copy

import pytest
import torch
from torch import nn

from engine import LoraConfig, NoMatchingPeftModuleError, PeftModel, get_peft_model
from engine.errors import UnsupportedLayer
from engine.methods.registry import method
from engine.model.targets import plan
from tests.support.tiny import make_model


def paths(**settings):
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **settings)
    return [t.path for t in plan(make_model(), method("LORA"), config).targets]


def test_all_linear_leaves_out_the_head_and_is_spelled_out_by_leaf_names():
    result = plan(make_model(tied=False), method("LORA"), LoraConfig(target_modules="all-linear"))
    assert len(result.targets) == 14
    assert "lm_head" not in result.resolved and "q_proj" in result.resolved
    assert result.reasons["lm_head"] == "the output head"
    assert result.reasons["model.norm"] == "not a linear layer"


@pytest.mark.parametrize(("settings", "expected"), [
    ({"target_modules": ["q_proj"]}, ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
    ({"target_modules": ["layers.1.self_attn.q_proj"]}, ["model.layers.1.self_attn.q_proj"]),
    ({"target_modules": r".*\.1\..*_proj", "exclude_modules": r".*mlp.*"}, [f"model.layers.1.self_attn.{x}_proj" for x in "qkvo"]),
    ({"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["o_proj"], "layers_to_transform": 0}, ["model.layers.0.self_attn.q_proj"]),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, ["model.layers.1.self_attn.q_proj"]),
])
def test_rules(settings, expected):
    assert paths(**settings) == expected


def test_a_name_that_matches_nothing_is_reported_with_the_nearest():
    result = plan(make_model(), method("LORA"), LoraConfig(target_modules=["q_proj", "down_porj"]))
    assert result.unmatched == {"down_porj": ["down_proj", "o_proj"]}


def test_nothing_matches():
    with pytest.raises(NoMatchingPeftModuleError, match="Did you mean o_proj, q_proj") as caught:
        paths(target_modules=["q_prj"])
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("settings", [{"target_modules": ["self_attn"]}, {"target_modules": ["norm"]}, {"target_modules": ["nope"]}])
def test_a_failed_injection_changes_nothing(settings):
    model = make_model()
    names, grads = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(UnsupportedLayer):
        get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    assert list(model.state_dict()) == names
    assert [p.requires_grad for p in model.parameters()] == grads


def test_a_second_adapter_that_fails_leaves_the_first_as_it_was():
    peft = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = {n: t.clone() for n, t in peft.state_dict().items()}
    with pytest.raises(UnsupportedLayer):
        peft.add_adapter("b", LoraConfig(r=2, target_modules=["q_proj", "norm"]))
    assert list(peft.peft_config) == ["default"]
    assert all(torch.equal(t, before[n]) for n, t in peft.state_dict().items()) and len(before) == len(peft.state_dict())


def test_targets_that_something_else_takes_away_are_told_so():
    for more in ({"exclude_modules": ["q_proj"]}, {"modules_to_save": ["q_proj"]}):
        with pytest.raises(NoMatchingPeftModuleError, match=r"combination .* take model.layers.0.self_attn.q_proj"):
            get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], **more))
    with pytest.raises(NoMatchingPeftModuleError, match="not found in the base"):
        get_peft_model(make_model(), LoraConfig(target_modules=["nope"], exclude_modules=["q_proj"]))


@pytest.mark.parametrize("name", ["", "a.b", "keys", "train", "default"])
def test_impossible_adapter_names(name):
    peft = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="named|exists"):
        peft.add_adapter(name, LoraConfig(r=2, target_modules=["q_proj"]))


@pytest.mark.parametrize("settings", [{"megatron_config": {"a": 1}}, {"init_lora_weights": "nonsense"}, {"r": 0}, {"layers_pattern": "layers"},
                                      {"target_modules": "q.*", "layers_to_transform": 1}])
def test_impossible_settings_are_refused_not_ignored(settings):
    with pytest.raises(ValueError):
        LoraConfig(**settings)


def test_a_rank_that_does_not_fit_a_grouped_convolution_is_refused_with_the_reason():
    with pytest.raises(UnsupportedLayer, match="rank is divisible by groups"):
        get_peft_model(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), LoraConfig(r=3, target_modules=["0"]))


def test_the_head_tied_to_the_embedding_is_untied_by_a_merge(tmp_path):
    from transformers import AutoModelForCausalLM

    model = make_model(tied=True)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    ids = torch.arange(8)[None]
    running = peft(ids).logits
    merged = peft.merge_and_unload()
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, running, atol=1e-5, rtol=0)


def test_a_copy_of_the_model_has_its_own_stack():
    peft = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    ids = torch.arange(8)[None]
    before = peft(ids).logits
    twin = copy.deepcopy(peft)
    twin.stack.set_strength("default", 0.0)
    assert torch.equal(peft(ids).logits, before)
    assert not torch.equal(twin(ids).logits, before)
    assert isinstance(twin, PeftModel)
