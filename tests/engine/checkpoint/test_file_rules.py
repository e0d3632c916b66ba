"""Real adapters come in many spellings: each rule of PEFT's format loads to the very same adapter as the plain file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import engine
from engine import LoraConfig, PeftModel, get_peft_model
from engine.errors import BadAdapter
from tests.support.families import family, ids

WEIGHTS = "adapter_model.safetensors"


def base(**settings):
    return family("Llama", "ForCausalLM", **settings)


@pytest.fixture
def saved(tmp_path):
    """An adapter folder and what the model says with it."""
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj", "embed_tokens"],
                                              init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain", model(input_ids=ids()).logits.detach()


def rewrite(folder, change):
    save_file({change(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS, metadata={"format": "pt"})


SPELLINGS = {
    "as it is": lambda key: key,
    "of a compiled model": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "of a sharded model": lambda key: key.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."),
    "of a model that was injected into": lambda key: key.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_of_keys(saved, spelling):
    folder, expected = saved
    rewrite(folder, SPELLINGS[spelling])
    loaded = PeftModel.from_pretrained(base(), folder)
    assert loaded.load_report.complete
    torch.testing.assert_close(loaded(input_ids=ids()).logits, expected)


def test_parameters_and_modules_are_named_as_in_peft(saved):
    keys = set(load_file(saved[0] / WEIGHTS))
    assert {key.rpartition("embed_tokens.")[2] for key in keys if "embed_tokens" in key} == {"lora_embedding_A", "lora_embedding_B"}
    assert all(key.startswith("base_model.model.model.") for key in keys)
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys if "embed" not in key)


def test_a_pickle_is_read_and_nothing_in_it_is_run(saved):
    folder, expected = saved
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    torch.testing.assert_close(PeftModel.from_pretrained(base(), folder)(input_ids=ids()).logits, expected)


def test_a_pickle_that_would_run_something_is_refused(saved):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was run",))

    folder, _ = saved
    torch.save({"x": Bomb()}, folder / "adapter_model.bin", pickle_protocol=2)
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadAdapter):
        PeftModel.from_pretrained(base(), folder)


def test_a_sub_folder_and_unknown_settings(saved, tmp_path):
    folder, expected = saved
    inside = tmp_path / "repository" / "deep"
    shutil.copytree(folder, inside)
    config = json.loads((inside / "adapter_config.json").read_text())
    (inside / "adapter_config.json").write_text(json.dumps({**config, "of_the_future": 1}))
    loaded = PeftModel.from_pretrained(base(), tmp_path / "repository", subfolder="deep")
    torch.testing.assert_close(loaded(input_ids=ids()).logits, expected)
    assert loaded.load_report.unknown_settings == ["of_the_future"]


def test_a_dora_magnitude_has_no_suffix_in_its_file(tmp_path):
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], use_dora=True, init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path)
    keys = [key for key in load_file(tmp_path / WEIGHTS) if "magnitude" in key]
    assert keys and all(key.endswith("lora_magnitude_vector") for key in keys)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(input_ids=ids()).logits, model(input_ids=ids()).logits)


def test_modules_learned_whole_have_their_plain_names(tmp_path):
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / WEIGHTS)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(input_ids=ids()).logits, model(input_ids=ids()).logits)


def test_words_have_their_own_part(tmp_path):
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[3, 9],
                                              init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path)
    assert [key for key in load_file(tmp_path / WEIGHTS) if "embed" in key] == [
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(input_ids=ids()).logits, model(input_ids=ids()).logits)


def test_a_prompt_has_no_prefix(tmp_path):
    model = get_peft_model(base(), engine.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / WEIGHTS)) == {"prompt_embeddings"}
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(input_ids=ids()).logits, model(input_ids=ids()).logits)


def test_an_old_bone_file_is_a_miss(tmp_path):
    model = get_peft_model(base(), engine.MissConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, init_weights=False)).eval()
    model.save_pretrained(tmp_path)
    expected = model(input_ids=ids()).logits
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "BONE"}))
    rewrite(tmp_path, lambda key: key.replace("miss_block", "bone_block"))
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(input_ids=ids()).logits, expected)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "train"])
def test_names_that_cannot_be_modules_are_told(saved, name):
    with pytest.raises(ValueError, match="cannot be named"):
        PeftModel.from_pretrained(base(), saved[0], name)
