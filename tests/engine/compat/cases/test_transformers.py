"""transformers' own adapter functions, its auto classes, pipelines and `Trainer`, with the engine in PEFT's place: what its guides show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, pipeline
from transformers.trainer_utils import get_last_checkpoint

from tests.engine.compat.cases.small import peft
from tests.support.tiny import make_tokenizer, save_base

IDS = torch.arange(3, 13)[None]


def lora(**more) -> object:
    return peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **more})


def heard(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


@pytest.fixture
def adapter(base, tmp_path):
    """(folder of an adapter on the base, what the two say)."""
    torch.manual_seed(4)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    model.save_pretrained(tmp_path / "adapter")
    make_tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", heard(model)


def test_adapters_are_added_chosen_switched_off_and_deleted(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = heard(model)
    model.add_adapter(lora(), adapter_name="one")
    one = heard(model)
    model.add_adapter(lora(r=2), adapter_name="two")
    assert model.active_adapters() == ["two"] and not torch.allclose(heard(model), one)
    model.set_adapter("one")
    assert model.active_adapters() == ["one"] and torch.equal(heard(model), one)
    model.disable_adapters()
    assert torch.equal(heard(model), plain)
    model.enable_adapters()
    assert torch.equal(heard(model), one)
    model.set_adapter(["one", "two"])
    both = heard(model)
    assert sorted(model.active_adapters()) == ["one", "two"] and not torch.allclose(both, one)
    model.set_adapter("one")
    model.delete_adapter("two")
    assert list(model.peft_config) == ["one"] and torch.equal(heard(model), one)
    with pytest.raises(ValueError):
        model.set_adapter("two")


def test_a_saved_adapter_is_loaded_into_a_model_by_name(base, adapter):
    folder, expected = adapter
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(str(folder), adapter_name="mine")
    torch.testing.assert_close(heard(model), expected)
    state = model.get_adapter_state_dict("mine")
    assert state and all(".mine." not in key for key in state)
    again = AutoModelForCausalLM.from_pretrained(base)
    again.load_adapter(adapter_state_dict=state, peft_config=lora(), adapter_name="tensors")
    torch.testing.assert_close(heard(again), expected)


def test_a_model_with_its_adapter_is_saved_as_an_adapter_and_both_come_back_from_that_folder(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(lora())
    expected = heard(model)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists() and not (tmp_path / "saved" / "model.safetensors").exists()
    torch.testing.assert_close(heard(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "saved")), expected)
    again = AutoModelForCausalLM.from_pretrained(base)
    again.load_adapter(str(tmp_path / "saved"))
    torch.testing.assert_close(heard(again), expected)


def test_the_folder_of_an_adapter_stands_for_the_model(adapter):
    folder, expected = adapter
    torch.testing.assert_close(heard(AutoModelForCausalLM.from_pretrained(folder)), expected)
    speak = pipeline("text-generation", str(folder))
    tokens = speak.tokenizer("What do you sell?", return_tensors="pt")
    with_adapter = speak.model.generate(**tokens, max_new_tokens=5, do_sample=False)
    assert speak("What do you sell?", max_new_tokens=5, do_sample=False)[0]["generated_text"] == speak.tokenizer.decode(
        with_adapter[0], skip_special_tokens=True)
    torch.testing.assert_close(heard(speak.model), expected)


def test_the_whole_model_is_saved_when_it_no_longer_counts_as_adapted(adapter, base, tmp_path):
    """The guide on checkpoints shows this way to keep base and adapter in one folder, as they are."""
    folder, expected = adapter
    model = AutoModelForCausalLM.from_pretrained(folder)
    model._hf_peft_config_loaded = False
    model.save_pretrained(tmp_path / "whole")
    from safetensors.torch import load_file

    keys = load_file(tmp_path / "whole" / "model.safetensors").keys()
    assert any("lora_A" in key for key in keys) and any("base_layer.weight" in key for key in keys)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        ids = (torch.arange(12) * 7 + i) % 60 + 3
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("how", ["wrapped", "within"])
def test_a_trainer_teaches_keeps_checkpoints_takes_the_best_and_goes_on(how, base, tmp_path):
    """The best and going on only of a `PeftModel`: transformers 5.24 looks for a whole model's files otherwise, whoever is `peft`."""
    def prepared():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base)
        if how == "within":
            model.add_adapter(lora(init_lora_weights=True))
            return model
        return peft.get_peft_model(model, lora(init_lora_weights=True))

    def trainer(model, epochs):
        return Trainer(model=model, train_dataset=Rows(), eval_dataset=Rows(), args=TrainingArguments(
            str(tmp_path / "run"), num_train_epochs=epochs, per_device_train_batch_size=4, learning_rate=1e-2, eval_strategy="epoch",
            save_strategy="epoch", load_best_model_at_end=how == "wrapped", report_to=[], use_cpu=True, disable_tqdm=True, seed=3))

    model = prepared()
    first = trainer(model, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first.train()
    errors = [entry["eval_loss"] for entry in first.state.log_history if "eval_loss" in entry]
    assert errors[-1] < errors[0]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("lora_" not in name), name
    last = get_last_checkpoint(str(tmp_path / "run"))
    files = {path.name for path in Path(last).iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    expected = heard(model)
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), last)
    torch.testing.assert_close(heard(again), expected, atol=1e-5, rtol=1e-5)
    if how == "within":
        return
    longer = trainer(prepared(), 4)
    longer.train(resume_from_checkpoint=last)
    assert longer.state.global_step == 8 and longer.state.log_history[-2]["eval_loss"] < errors[-1]


