"""The base's embeddings that travel with an adapter: written where they are asked for, heard where it is loaded, the base untouched."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tests.support.tiny import make_model, save_base

IDS = torch.arange(3, 19)[None]
EMBEDDING, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **more})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def changed(**settings):
    """A base whose words have moved since it was published."""
    model = make_model(**settings)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(torch.randn_like(model.get_input_embeddings().weight) * 0.1)
    return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("settings", [{}, {"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["lm_head"]},
                                      {"target_modules": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [3, 5]},
                                      {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
                                      {"target_modules": ["lm_head"], "ensure_weight_tying": True}], ids=str)
def test_saved_embeddings_are_heard_with_the_adapter(settings, tied, tmp_path):
    model = get_peft_model(changed(tied=tied), lora(**settings)).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    again = PeftModel.from_pretrained(make_model(tied=tied), tmp_path).eval()
    assert again.load_report.complete, again.load_report.sentence()
    torch.testing.assert_close(logits(again), logits(model), atol=2e-4, rtol=1e-4)
    with again.disable_adapter():
        torch.testing.assert_close(logits(again), logits(make_model(tied=tied)))
    expected = logits(again)
    again.merge_adapter()
    torch.testing.assert_close(logits(again), expected, atol=2e-4, rtol=1e-4)
    again.unmerge_adapter()
    again.save_pretrained(tmp_path / "twice")
    third = PeftModel.from_pretrained(make_model(tied=tied), tmp_path / "twice").eval()
    torch.testing.assert_close(logits(third), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(logits(third.merge_and_unload()), expected, atol=2e-4, rtol=1e-4)
    plain = again.unload()
    torch.testing.assert_close(logits(plain), logits(make_model(tied=tied)))


def test_the_names_in_the_file_are_peft_s(tmp_path):
    get_peft_model(make_model(tied=False), lora(target_modules=["embed_tokens"])).save_pretrained(tmp_path, save_embedding_layers=True)
    assert {f"{EMBEDDING}.base_layer.weight", f"{HEAD}.weight"} <= load_file(tmp_path / "adapter_model.safetensors").keys()
    get_peft_model(make_model(), lora()).save_pretrained(tmp_path, save_embedding_layers=True)
    found = {key for key in load_file(tmp_path / "adapter_model.safetensors") if "lora" not in key}
    assert found == {f"{EMBEDDING}.weight"}                    # tied: once


def test_automatically_only_where_the_vocabulary_has_grown(tmp_path):
    base = save_base(tmp_path / "base")
    for words, saved in ((384, False), (400, True)):
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(words)
        peft = get_peft_model(model, lora()).eval()
        peft.save_pretrained(tmp_path / str(words))
        found = load_file(tmp_path / str(words) / "adapter_model.safetensors")
        assert any("embed_tokens" in key for key in found) == saved
    again = AutoModelForCausalLM.from_pretrained(base)
    again.resize_token_embeddings(400)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(again, tmp_path / "400").eval()), logits(peft))
    get_peft_model(make_model(vocab=400), lora()).save_pretrained(tmp_path / "unknown")     # nobody says what the base was
    assert not any("embed_tokens" in key for key in load_file(tmp_path / "unknown" / "adapter_model.safetensors"))


def test_what_is_learned_whole_is_not_saved_twice(tmp_path):
    model = get_peft_model(changed(tied=False), lora(modules_to_save=["lm_head"])).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    again = PeftModel.from_pretrained(make_model(tied=False), tmp_path).eval()
    assert again.load_report.complete
    torch.testing.assert_close(logits(again), logits(model))


def test_the_same_embeddings_cost_nothing_in_the_model(tmp_path):
    model = get_peft_model(make_model(), lora())
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    again = PeftModel.from_pretrained(make_model(), tmp_path)
    assert sorted(again.adapted) == sorted(model.adapted) and again.load_report.complete


def test_beside_a_prompt(tmp_path):
    model = get_peft_model(changed(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).eval()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == {"prompt_embeddings"}
