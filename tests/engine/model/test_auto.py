"""Base and adapter from the adapter alone."""

from __future__ import annotations

import json

import pytest
import torch

import engine
from engine import AutoPeftModel, AutoPeftModelForCausalLM, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from engine.errors import BadAdapter
from tests.support.families import family, ids
from tests.support.tiny import make_tokenizer, save_base

HEADS = {"CAUSAL_LM": ("Llama", "ForCausalLM", "ForCausalLM"), "SEQ_2_SEQ_LM": ("T5", "ForConditionalGeneration", "ForSeq2SeqLM"),
         "SEQ_CLS": ("Bert", "ForSequenceClassification", "ForSequenceClassification"),
         "TOKEN_CLS": ("Bert", "ForTokenClassification", "ForTokenClassification"),
         "QUESTION_ANS": ("Bert", "ForQuestionAnswering", "ForQuestionAnswering"), "FEATURE_EXTRACTION": ("Bert", "Model", "ForFeatureExtraction")}
TARGETS = {"Llama": ["q_proj"], "T5": ["q"], "Bert": ["query"]}


@pytest.fixture
def lora(tmp_path, base_folder):
    """A LoRA of the base folder."""
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder),
                           LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def rewrite(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("task", HEADS)
def test_each_task_has_its_class(task, tmp_path):
    name, head, ours = HEADS[task]
    base = family(name, head)
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=TARGETS[name], init_lora_weights=False, task_type=task)).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = getattr(engine, f"AutoPeftModel{ours}").from_pretrained(tmp_path / "adapter").eval()
    assert type(again) is getattr(engine, f"PeftModel{ours}") and again.load_report.complete
    given = {"input_ids": ids(), **({"decoder_input_ids": ids(2, 3)} if task == "SEQ_2_SEQ_LM" else {})}
    with torch.no_grad():
        for now, then in zip(again(**given).to_tuple(), model(**given).to_tuple()):
            if isinstance(now, torch.Tensor):
                torch.testing.assert_close(now, then)
    other = next(name for name in HEADS if name != task)
    with pytest.raises(ValueError, match="Expected target PEFT class"):
        getattr(engine, f"AutoPeftModel{HEADS[other][2]}").from_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="specific class"):
        AutoPeftModel.from_pretrained(tmp_path / "adapter")


def test_arguments_go_where_they_belong(lora):
    model = AutoPeftModelForCausalLM.from_pretrained(lora, "mine", True, dtype=torch.bfloat16, low_cpu_mem_usage=True)
    assert model.active_adapters == ["mine"] and model.get_base_model().dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_a_larger_tokenizer_enlarges_the_vocabulary(lora):
    tokenizer = make_tokenizer()
    assert AutoPeftModelForCausalLM.from_pretrained(lora).get_input_embeddings().num_embeddings == 384
    tokenizer.add_tokens([f"<bread{i}>" for i in range(384 - len(tokenizer) + 5)])
    tokenizer.save_pretrained(lora)
    assert AutoPeftModelForCausalLM.from_pretrained(lora).get_input_embeddings().num_embeddings == 389


def test_without_a_task_the_config_names_the_class(lora):
    rewrite(lora, task_type=None, auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"})
    model = AutoPeftModel.from_pretrained(lora)
    assert type(model) is PeftModel and type(model.get_base_model()).__name__ == "LlamaForCausalLM"


def test_an_adapter_without_a_task_says_which_class_its_base_has(base_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].auto_mapping is None
    again = AutoPeftModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids()).logits, model.eval()(input_ids=ids()).logits)


@pytest.mark.parametrize("mapping, words", [(None, "Cannot infer"), ({"parent_library": "os", "base_model_class": "system"}, "import allowlist"),
                                            ({"parent_library": "transformers_evil", "base_model_class": "A"}, "import allowlist"),
                                            ({"parent_library": 3, "base_model_class": "A"}, "Cannot infer")])
def test_no_class_is_imported_that_was_not_allowed(mapping, words, lora):
    rewrite(lora, task_type=None, auto_mapping=mapping)
    with pytest.raises(ValueError, match=words):
        AutoPeftModel.from_pretrained(lora)
    if words == "import allowlist":        # nor is it overlooked where the class is known
        with pytest.raises(ValueError, match=words):
            AutoPeftModelForCausalLM.from_pretrained(lora)


def test_what_is_missing_is_said(lora, tmp_path):
    with pytest.raises(BadAdapter, match="adapter_config.json"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "nowhere")
    rewrite(lora, base_model_name_or_path=None)
    with pytest.raises(BadAdapter, match="which model"):
        AutoPeftModelForCausalLM.from_pretrained(lora)
    with pytest.raises(OSError, match="from_pretrained"):
        AutoPeftModel()


def test_a_prompt_too(tmp_path):
    from transformers import AutoModelForCausalLM

    base = save_base(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    model.save_pretrained(tmp_path / "prompt")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "prompt").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids()).logits, model(input_ids=ids()).logits)
