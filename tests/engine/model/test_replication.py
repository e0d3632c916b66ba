"""Blocks that stand several times: they run, generate, merge into a model that can be saved, and go again, in every family that has blocks."""

from __future__ import annotations

import pytest
import torch

from engine import LoraConfig, get_peft_model
from tests.engine.model.test_families import FAMILIES, base, inputs, logits


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Gemma3Text", "Mistral", "Phi", "Mixtral", "Bert"])
def test_a_deeper_model_merges_into_one_that_can_be_saved(name, tmp_path):
    torch.manual_seed(0)
    plain = base(name)
    depth, before = plain.config.num_hidden_layers, plain.config.to_dict()
    config = LoraConfig(r=2, target_modules=["query" if name == "Bert" else "q_proj"], layer_replication=[[0, depth], [1, depth]],
                        init_lora_weights=False)
    peft = get_peft_model(plain, config).eval()
    running = logits(peft)
    assert peft.config.num_hidden_layers == 2 * depth - 1
    if FAMILIES[name] == "ForCausalLM":
        written = [peft.generate(**inputs(peft), max_new_tokens=4, do_sample=False, use_cache=cached) for cached in (True, False)]
        assert torch.equal(*written)
    merged = peft.merge_and_unload()
    torch.testing.assert_close(logits(merged), running, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(type(merged).from_pretrained(tmp_path).eval()), running, atol=1e-4, rtol=1e-4)
    again = base(name)
    back = get_peft_model(again, config).unload()
    assert back.config.to_dict() == before and torch.equal(logits(back), logits(base(name)))
