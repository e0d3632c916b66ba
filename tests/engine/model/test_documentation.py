"""The examples of PEFT's documentation page "Models" with the import changed, on tiny models. (Those of the task classes that learn and
are saved stand in `test_prompt_learning.py`.)"""

import pytest
import torch
from torch import nn

import engine
from engine import (LoHaConfig, LoraConfig, PeftMixedModel, PeftModel, PeftModelForCausalLM, PeftModelForFeatureExtraction,
                    PeftModelForQuestionAnswering, PeftModelForSeq2SeqLM, PeftModelForSequenceClassification, PeftModelForTokenClassification,
                    get_peft_config, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model, prepare_model_for_kbit_training,
                    set_peft_model_state_dict)
from tests.support.families import family, ids

PREFIX = {"peft_type": "PREFIX_TUNING", "inference_mode": False, "num_virtual_tokens": 5, "token_dim": 32, "num_transformer_submodules": 1,
          "num_attention_heads": 4, "num_layers": 2, "encoder_hidden_size": 32, "prefix_projection": False}
LORA = {"peft_type": "LORA", "inference_mode": False, "r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "fan_in_fan_out": False, "bias": "none"}
TASKS = {
    "SEQ_CLS": (PeftModelForSequenceClassification, "Bert", "ForSequenceClassification", PREFIX),
    "TOKEN_CLS": (PeftModelForTokenClassification, "Bert", "ForTokenClassification", PREFIX),
    "CAUSAL_LM": (PeftModelForCausalLM, "GPT2", "LMHeadModel", PREFIX),
    "SEQ_2_SEQ_LM": (PeftModelForSeq2SeqLM, "T5", "ForConditionalGeneration", {**LORA, "target_modules": ["q", "v"]}),
    "QUESTION_ANS": (PeftModelForQuestionAnswering, "Bert", "ForQuestionAnswering", {**LORA, "target_modules": ["query", "value"]}),
    "FEATURE_EXTRACTION": (PeftModelForFeatureExtraction, "Bert", "Model", {**LORA, "target_modules": ["query", "value"]}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_its_task_from_plain_data(task, capsys):
    cls, base, head, settings = TASKS[task]
    config = get_peft_config({**settings, "task_type": task})
    model = cls(family(base, head), config)
    model.print_trainable_parameters()
    trainable, total = model.get_nb_trainable_parameters()
    assert 0 < trainable < total
    assert capsys.readouterr().out == f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}\n"
    more = {"decoder_input_ids": ids(2, 4)} if task == "SEQ_2_SEQ_LM" else {}
    assert next(iter(model(input_ids=ids(), **more).values())) is not None
    assert type(get_peft_model(family(base, head), config)) is cls


def test_a_mixed_model(tmp_path):
    model = get_peft_model(family("Llama", "ForCausalLM"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), "lora", mixed=True)
    assert isinstance(model, PeftMixedModel)
    model.add_adapter("loha", LoHaConfig(target_modules=["q_proj", "v_proj"], init_weights=False))
    model.set_adapter(["lora", "loha"])
    both = model(input_ids=ids()).logits
    model.set_adapter("lora")
    assert not torch.allclose(model(input_ids=ids()).logits, both)
    model.set_adapter({"loha": 1.0, "lora": 1.0})
    torch.testing.assert_close(model(input_ids=ids()).logits, both)


class DummyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 10)
        self.linear = nn.Linear(10, 10)
        self.lm_head = nn.Linear(10, 10)

    def forward(self, input_ids):
        return self.lm_head(self.linear(self.embedding(input_ids)))


def test_injection_and_state_dicts():
    config = LoraConfig(lora_alpha=16, lora_dropout=0.1, r=4, bias="none", target_modules=["linear"])
    model = inject_adapter_in_model(config, DummyModel())
    dummy = torch.LongTensor([[0, 1, 2, 3, 4, 5, 6, 7]])
    before = model(dummy)
    state = get_peft_model_state_dict(model)
    assert set(state) == {"linear.lora_A.weight", "linear.lora_B.weight"}
    report = set_peft_model_state_dict(model, {key: torch.ones_like(tensor) for key, tensor in state.items()})
    assert report.complete and not torch.allclose(model(dummy), before)
    assert type(model) is DummyModel


def test_a_whole_model_prepared_with_its_adapter_loaded_twice(tmp_path):
    base = prepare_model_for_kbit_training(family("Llama", "ForCausalLM").to(torch.bfloat16))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(family("Llama", "ForCausalLM").to(torch.bfloat16).float(), tmp_path, "first")
    again.load_adapter(tmp_path, "second")
    again.set_adapter("second")
    torch.testing.assert_close(again(input_ids=ids()).logits, model.eval()(input_ids=ids()).logits)
    with again.disable_adapter():
        plain = again(input_ids=ids()).logits
    torch.testing.assert_close(again.unload()(input_ids=ids()).logits, plain)
    assert engine.get_model_status(model).trainable_params == model.get_nb_trainable_parameters()[0]
