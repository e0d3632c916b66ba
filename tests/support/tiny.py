"""A tiny random language model with a real tokenizer and chat template, made by code in a second (no download)."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
CORPUS = ["What do you sell? We sell bread, rolls and cake.", "When are you open? Every day from seven until six.",
          "Wann haben Sie offen? Täglich von sieben bis achtzehn Uhr.", "user assistant system the a an of to in is you that it he was for"] * 8


def make_tokenizer():
    """A byte-level BPE of a few hundred tokens with ChatML's specials; any text can be encoded and decoded exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=TEMPLATE)


def make_model(seed: int = 0, *, hidden: int = 48, layers: int = 2, vocab: int = 384, tied: bool = True):
    """A random float32 Llama (about 60 k parameters with the defaults), in eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied,
                         bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def save_base(folder: Path | str, seed: int = 0, dtype: str = "float32", **kwargs) -> Path:
    """Write a complete Hugging Face model folder (config, tokenizer, chat template, safetensors) and return it."""
    import torch

    folder = Path(folder)
    make_model(seed, **kwargs).to(getattr(torch, dtype)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
