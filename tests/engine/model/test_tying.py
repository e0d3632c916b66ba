"""Layers that share a weight stay one: what is learned at the first holds at the others, running, merged, and in the file."""

from __future__ import annotations

import pytest
import torch

from engine import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.tiny import make_model

IDS = torch.arange(3, 19)[None]
CASES = {
    "words": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 7]},
    "words at both": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}},
    "embedding whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "head whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "both whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "adapters at the embedding": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "adapters at the head": {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    "adapters at both": {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "ensure_weight_tying": True}}


@pytest.fixture(params=CASES)
def model(request):
    """A model of one of the cases that has learned something."""
    return learned(LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **CASES[request.param]))


def learned(config, tied: bool = True):
    peft = get_peft_model(make_model(tied=tied), config).eval()
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    peft.stack.changed()
    return peft


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_running_is_merged_and_the_head_is_the_embedding_still(model):
    running = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), running, atol=2e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), running)
    plain = model.merge_and_unload()
    torch.testing.assert_close(logits(plain), running, atol=2e-4, rtol=1e-4)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


def test_the_file_brings_it_back(model, tmp_path):
    running = logits(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    assert again.load_report.complete, again.load_report.sentence()
    torch.testing.assert_close(logits(again), running, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(logits(again.unload()), logits(make_model()))


def test_both_ends_learn_one_thing(model):
    model.train()(IDS, labels=IDS).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.any() for p in trained)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model.eval()), logits(make_model()))


def test_different_words_at_tied_layers():
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1], "lm_head": [2]}, ensure_weight_tying=True)
    base = make_model()
    before = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(ValueError, match="different token indices"):
        get_peft_model(base, config)
    assert {name: type(module) for name, module in base.named_modules()} == before


def test_layers_that_share_nothing_are_left_alone():
    peft = learned(LoraConfig(r=2, init_lora_weights=False, target_modules=["embed_tokens"], ensure_weight_tying=True), tied=False)
    assert list(peft.adapted) == ["model.embed_tokens"]


def test_what_cannot_be_turned_round_is_refused():
    for config in (LoHaConfig(target_modules=["lm_head"]), LoraConfig(target_modules=["lm_head"], use_dora=True)):
        config.ensure_weight_tying = True
        base = make_model()
        with pytest.raises((UnsupportedLayer, ValueError), match="tied"):
            get_peft_model(base, config)
        torch.testing.assert_close(logits(base), logits(make_model()))
