"""Small models made from their configurations, laid out as a Hub cache, so that PEFT's own tests run without a network.

They have the architecture of the Hub models that the tests name and random weights. Tests that need the trained numbers of a
Hub model fail for PEFT as well and are left out of the comparison by that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMIT = "0" * 40                          # every repository's one revision

_OPT = dict(hidden_size=16, ffn_dim=4, num_hidden_layers=5, num_attention_heads=4, vocab_size=50265, max_position_embeddings=100,
            word_embed_proj_dim=16)
_GPT2 = dict(n_embd=32, n_layer=5, n_head=4, vocab_size=1000, n_positions=512, bos_token_id=98, eos_token_id=98, pad_token_id=98)
_LLAMA = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=32000)
_QWEN = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000)
_BERT = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=5, num_attention_heads=4, vocab_size=1124, max_position_embeddings=512)
_DEBERTA = dict(_BERT, relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False)
_GEMMA = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
              vocab_size=1000, sliding_window=16)
_SEEN_HEAD = {"num_labels": 2}

PIT, TRL, HFI = "peft-internal-testing", "trl-internal-testing", "hf-internal-testing"
# repository → (class of the model, its settings)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{PIT}/tiny-random-OPTForCausalLM": ("OPTForCausalLM", _OPT),
    f"{PIT}/tiny-random-OPTForCausalLM-extended-vocab": ("OPTForCausalLM", _OPT),
    f"{PIT}/opt-125m": ("OPTForCausalLM", dict(_OPT, hidden_size=32, word_embed_proj_dim=32, max_position_embeddings=256)),
    "facebook/opt-125m": ("OPTForCausalLM", dict(_OPT, hidden_size=32, word_embed_proj_dim=32, max_position_embeddings=256)),
    f"{PIT}/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", _GPT2),
    f"{HFI}/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    f"{PIT}/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", dict(_GPT2, rotary_dim=4)),
    f"{TRL}/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _LLAMA),
    f"{HFI}/tiny-random-MistralForCausalLM": ("MistralForCausalLM", dict(_LLAMA, num_key_value_heads=2, hidden_size=32)),
    f"{PIT}/tiny-dummy-qwen2": ("Qwen2ForCausalLM", _QWEN),
    f"{TRL}/tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", dict(_QWEN, head_dim=8)),
    f"{HFI}/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", _GEMMA),
    f"{TRL}/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", dict(_LLAMA, pad_token_id=0, **_SEEN_HEAD)),
    f"{PIT}/tiny-random-BertModel": ("BertModel", _BERT),
    f"{PIT}/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", dict(_BERT, **_SEEN_HEAD)),
    "bert-base-uncased": ("BertModel", _BERT),
    f"{PIT}/tiny-random-RobertaModel": ("RobertaModel", _BERT),
    f"{PIT}/tiny-random-RobertaForSequenceClassification": ("RobertaForSequenceClassification", dict(_BERT, **_SEEN_HEAD)),
    f"{PIT}/tiny-random-DebertaModel": ("DebertaModel", _DEBERTA),
    f"{PIT}/tiny-random-DebertaV2Model": ("DebertaV2Model", _DEBERTA),
    f"{PIT}/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", dict(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=4,
        decoder_ffn_dim=4, vocab_size=50265, max_position_embeddings=100)),
    f"{PIT}/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", dict(
        d_model=32, d_kv=8, d_ff=37, num_layers=5, num_heads=4, vocab_size=1103, decoder_start_token_id=0)),
    f"{PIT}/tiny-random-t5": ("T5ForConditionalGeneration", dict(
        d_model=32, d_kv=8, d_ff=37, num_layers=5, num_heads=4, vocab_size=1103, decoder_start_token_id=0)),
}
# repository of a LoRA → (its task, the class that loads its base, the base)
ADAPTERS: dict[str, tuple[str, str, str]] = {
    f"{PIT}/tiny-opt-lora-revision": ("CAUSAL_LM", "AutoModelForCausalLM", f"{PIT}/tiny-random-OPTForCausalLM"),
    f"{PIT}/opt-125m-dummy-lora": ("CAUSAL_LM", "AutoModelForCausalLM", f"{PIT}/opt-125m"),
    f"{PIT}/gpt2-lora-random": ("CAUSAL_LM", "AutoModelForCausalLM", "gpt2"),
    f"{PIT}/tiny-OPTForCausalLM-lora": ("CAUSAL_LM", "AutoModelForCausalLM", f"{PIT}/tiny-random-OPTForCausalLM"),
    f"{PIT}/tiny_T5ForSeq2SeqLM-lora": ("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", f"{PIT}/tiny-random-t5"),
    f"{PIT}/tiny_OPTForSequenceClassification-lora": ("SEQ_CLS", "AutoModelForSequenceClassification", f"{PIT}/tiny-random-OPTForCausalLM"),
    f"{PIT}/tiny_GPT2ForTokenClassification-lora": ("TOKEN_CLS", "AutoModelForTokenClassification", f"{PIT}/tiny-random-GPT2LMHeadModel"),
    f"{PIT}/tiny_OPTForQuestionAnswering-lora": ("QUESTION_ANS", "AutoModelForQuestionAnswering", f"{PIT}/tiny-random-OPTForCausalLM"),
    f"{PIT}/tiny_OPTForFeatureExtraction-lora": ("FEATURE_EXTRACTION", "AutoModel", f"{PIT}/tiny-random-OPTForCausalLM"),
}


def build(home: Path) -> None:
    """Make every stand-in that is not there yet under ``home`` (a value for ``HF_HOME``)."""
    for repo, (model, settings) in MODELS.items():
        _once(home, repo, lambda folder, model=model, settings=settings: _model(folder, model, settings))
    for repo, (task, loader, base) in ADAPTERS.items():
        place = home / "hub" / f"models--{base.replace('/', '--')}" / "snapshots" / COMMIT
        _once(home, repo, lambda folder, task=task, loader=loader, base=base, place=place: _lora(folder, task, loader, base, place),
              revision="test" if repo.endswith("-revision") else "main")


def _once(home: Path, repo: str, make: Callable[[Path], None], revision: str = "main") -> None:
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    if (place / "refs" / revision).exists():
        return
    shutil.rmtree(place, ignore_errors=True)
    snapshot.mkdir(parents=True)
    make(snapshot)
    (place / "refs").mkdir()
    (place / "refs" / revision).write_text(COMMIT)            # last: a half-made one is made anew


def _model(folder: Path, model: str, settings: dict[str, Any]) -> None:
    import torch
    import transformers

    cls = getattr(transformers, model)
    torch.manual_seed(0)
    cls(cls.config_class(**settings)).eval().save_pretrained(folder)
    _tokenizer(settings["vocab_size"]).save_pretrained(folder)


def _tokenizer(size: int) -> Any:
    """A tokenizer of single bytes (so many of them as the model has embeddings for)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:size - len(special)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(special + letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _lora(folder: Path, task: str, loader: str, base: str, place: Path) -> None:
    """A saved LoRA of the stand-in that lies at ``place``, by PEFT itself."""
    import peft
    import transformers

    model = peft.get_peft_model(getattr(transformers, loader).from_pretrained(place), peft.LoraConfig(task_type=task))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
