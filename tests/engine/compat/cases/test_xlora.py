"""PEFT's views of X-LoRA."""

from __future__ import annotations

import pytest
import torch

from engine.compat import install_as_peft
from tests.support.families import family, ids

peft = install_as_peft()


@pytest.fixture
def model(tmp_path):
    for i in range(2):
        torch.manual_seed(i)
        peft.get_peft_model(family("Llama", "ForCausalLM"), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
                            ).save_pretrained(tmp_path / str(i))
    base = family("Llama", "ForCausalLM")
    base.config.use_cache = False
    experts = {str(i): str(tmp_path / str(i)) for i in (0, 1)}
    return peft.get_peft_model(base, peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=experts))


def test_the_classifier_s_settings_are_live(model):
    classifier, x = model.internal_xlora_classifier, ids()
    model.eval()
    with torch.no_grad():
        before = model(input_ids=x).logits
        model.set_scaling_pass_value(None)
        assert classifier.override_scaling_pass_value == classifier.config.scaling_pass_value == 0.5
        classifier.config.top_k_lora = 1
        after = model(input_ids=x).logits
    assert not torch.equal(before, after) and model.base_model.lora_model.model is model.get_base_model()
    layer = next(m for m in model.modules() if isinstance(m, peft.tuners.xlora.layer.XLoraLayer))
    strengths = peft.tuners.xlora.layer.XLoraLayer.get_maybe_topk_scalings(layer, model.internal_xlora_scalings)
    assert torch.equal((strengths != 0).sum(-1), torch.ones(x.shape, dtype=torch.long))


def test_a_saved_one_comes_back_over_its_own_base(model, tmp_path):
    x, base = ids(), model.get_base_model()
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=x).logits
        model.save_pretrained(tmp_path / "x")
        del model
        again = peft.PeftModel.from_pretrained(base, tmp_path / "x")
        torch.testing.assert_close(again(input_ids=x).logits, expected)
        assert len(base._forward_hooks) == 1
