"""What a model says of itself, attribute by attribute and in every state, is what PEFT's says."""

from __future__ import annotations

import dataclasses

import peft
import pytest
import torch

import engine
from tests.support.families import family, ids

LLAMA, BERT = ("Llama", "ForCausalLM"), ("Bert", "ForSequenceClassification")
KINDS = {
    "lora": (LLAMA, "LoraConfig", {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}),
    "lora-whole": (LLAMA, "LoraConfig", {"r": 2, "target_modules": ["q_proj", "lm_head"], "modules_to_save": ["norm"]}),
    "lora-head": (BERT, "LoraConfig", {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"]}),
    "ia3": (LLAMA, "IA3Config", {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "oft": (LLAMA, "OFTConfig", {"oft_block_size": 4, "target_modules": ["q_proj"]}),
    "hra": (LLAMA, "HRAConfig", {"r": 2, "target_modules": ["v_proj"]}),
    "norms": (LLAMA, "LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "prompt": (LLAMA, "PromptTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
    "p-tuning": (LLAMA, "PromptEncoderConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "encoder_hidden_size": 8}),
    "prefix": (LLAMA, "PrefixTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
    "prompt-head": (BERT, "PromptTuningConfig", {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}),
}
PROMPTS = [kind for kind in KINDS if kind.startswith("p")]
SAYS = ("active_adapter", "active_adapters", "base_model_torch_dtype", "modules_to_save", "has_active_enabled_adapter",
        "transformer_backbone_name", "device", "dtype")
OURS = {"strengths", "module_type"}        # PEFT knows no strengths; and a copy of a layer is here called by what it is a copy of
LEARNS = {"trains", "printed", "counted", "requires_grad", "trainable_params"}      # here another matter than who is heard
pytestmark = pytest.mark.filterwarnings("ignore")


def built(package, kind: str):
    (base, head), name, settings = KINDS[kind]
    torch.manual_seed(4)
    return package.get_peft_model(family(base, head), getattr(package, name)(**settings))


def says(model, capsys, apart: set[str] = LEARNS) -> dict:
    """Everything that it can be asked, ``apart`` from this."""
    told = {name: getattr(model, name, None) for name in SAYS}
    told["modules_to_save"] = told["modules_to_save"] and set(told["modules_to_save"])
    model.print_trainable_parameters()
    told |= {"printed": capsys.readouterr().out, "counted": model.get_nb_trainable_parameters(), "config": sorted(model.peft_config),
             "trains": sorted(name for name, p in model.named_parameters() if p.requires_grad)}
    layers = () if getattr(model, "prompt_encoder", None) else [*model.get_layer_status(), model.get_model_status()]
    told |= {each.get("name", "model"): {key: value for key, value in each.items() if key not in OURS | apart}
             for each in map(dataclasses.asdict, layers)}
    return {key: value for key, value in told.items() if key not in apart}


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_of_itself_what_peft_s_says(kind, capsys):
    models = ours, theirs = built(engine, kind), built(peft, kind)

    def same(**more):
        assert says(ours, capsys, **more) == says(theirs, capsys, **more)

    same(apart=set())
    if kind != "prompt-head":              # PEFT's cannot be switched off where the base does not generate
        with ours.disable_adapter(), theirs.disable_adapter():
            same()
    for package, model in zip((engine, peft), models):
        model.add_adapter("other", getattr(package, KINDS[kind][1])(**KINDS[kind][2]))
    same()
    for model in models:
        model.set_adapter("other")
    same()
    if kind not in PROMPTS:
        for model in models:
            model.merge_adapter()
        same(apart=LEARNS | ({"merged_adapters"} if ours.modules_to_save else set()))     # PEFT never calls a copy merged
        for model in models:
            model.unmerge_adapter()
    for model in models:
        model.delete_adapter("default")
    same()


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_can_be_looked_at(kind):
    ours, theirs = built(engine, kind).eval(), built(peft, kind).eval()
    torch.testing.assert_close(ours.get_prompt_embedding_to_save("default"), theirs.get_prompt_embedding_to_save("default"))
    if kind != "prefix":                   # a cache, whose rows are those above
        torch.testing.assert_close(ours.get_prompt(batch_size=2), theirs.get_prompt(batch_size=2))
    assert torch.equal(ours.word_embeddings.weight, theirs.word_embeddings.weight)
    assert torch.equal(ours.prompt_tokens["default"], theirs.prompt_tokens["default"])
    assert ours.active_peft_config.num_virtual_tokens == theirs.active_peft_config.num_virtual_tokens
    assert type(ours.prompt_encoder["default"]).__name__ == type(theirs.prompt_encoder["default"]).__name__
    assert torch.equal(ours.get_base_model()(ids())[0], theirs.get_base_model()(ids())[0])
