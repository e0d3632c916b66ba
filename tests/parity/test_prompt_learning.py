"""Prompts and adaption prompts against `peft`: names, start, outputs, loss, gradients, files both ways; tolerance 1e-5 in float32.

Where PEFT 0.21.2 fails with the installed transformers (prefixes for classifiers, generating behind any prompt) or is wrong (labels
that are not moved), `tests/engine/model/test_prompt_learning.py` shows what is right by dense arithmetic.
"""

from __future__ import annotations

import copy
import json
import warnings

import peft
import pytest
import torch
from torch import nn

import engine
from engine.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from tests.support.families import family, ids
from tests.support.tiny import make_tokenizer

N = 4
PROMPTS = {
    "prompt": ("PromptTuningConfig", {}),
    "prompt-of-words": ("PromptTuningConfig", {"prompt_tuning_init": "SAMPLE_VOCAB"}),
    "p-tuning": ("PromptEncoderConfig", {"encoder_hidden_size": 16}),
    "p-tuning-lstm": ("PromptEncoderConfig", {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1}),
    "prefix": ("PrefixTuningConfig", {}),
    "prefix-zero": ("PrefixTuningConfig", {"init_weights": "zero"}),
    "prefix-network": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 8}),
    "cartridge": ("CartridgeConfig", {"num_frozen_tokens": 2}),
    "multitask": ("MultitaskPromptTuningConfig", {"num_tasks": 3, "num_ranks": 2}),
    "cpt": ("CPTConfig", {"cpt_token_ids": [5, 6, 7, 8, 9, 10, 11, 12], "cpt_mask": [1] * 8, "cpt_tokens_type_mask": [1, 2, 3, 4, 5, 6, 7, 8],
                          "opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.7}),
}
CACHES = ("prefix", "prefix-zero", "prefix-network", "cartridge")
CAUSAL = {"Llama": "ForCausalLM", "GPT2": "LMHeadModel", "OPT": "ForCausalLM"}
ROWS = ([(base, head, "CAUSAL_LM", kind) for base, head in CAUSAL.items() for kind in PROMPTS]
        + [(base, "ForCausalLM", "CAUSAL_LM", kind) for base in ("Mistral", "Gemma3Text") for kind in ("prompt", "prefix")]
        + [(base, "ForConditionalGeneration", "SEQ_2_SEQ_LM", kind) for base in ("T5", "Bart") for kind in PROMPTS if kind != "cpt"]
        + [(base, "Model", "FEATURE_EXTRACTION", kind) for base in ("Bert", "Roberta") for kind in PROMPTS if kind not in ("cpt", "multitask")]
        + [("Bert", "ForSequenceClassification", "SEQ_CLS", kind) for kind in ("prompt", "p-tuning", "multitask")]
        + [("Roberta", "ForTokenClassification", "TOKEN_CLS", "prompt"), ("Bert", "ForQuestionAnswering", "QUESTION_ANS", "p-tuning"),
           ("GPT2", "ForSequenceClassification", "SEQ_CLS", "prompt")])
rows = pytest.mark.parametrize(("base", "head", "task", "kind"), ROWS, ids=["·".join((r[0], r[2], r[3])) for r in ROWS])


def config(package, kind: str, task: str):
    name, settings = PROMPTS[kind]
    return getattr(package, name)(task_type=task, **({} if kind == "cpt" else {"num_virtual_tokens": N}), **copy.deepcopy(settings))


def pair(base: str, head: str, task: str, kind: str) -> list[nn.Module]:
    """[ours, PEFT's]: the same prompt from the same seed on equal bases."""
    built = []
    for package in (engine, peft):
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built.append(package.get_peft_model(family(base, head), config(package, kind, task)).eval())
    return built


def call(task: str, kind: str) -> dict:
    inputs = {"input_ids": ids(), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    inputs |= {"CAUSAL_LM": {"labels": ids()}, "SEQ_2_SEQ_LM": {"labels": ids(2, 6)}, "SEQ_CLS": {"labels": torch.tensor([0, 1])}}.get(task, {})
    return inputs | ({"task_ids": torch.tensor([0, 2])} if kind == "multitask" else {})


def learns(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n.startswith("prompt_encoder") and p.requires_grad}


def tensors(output) -> dict[str, torch.Tensor]:
    return {k: v for k, v in output.items() if torch.is_tensor(v)}


@rows
def test_same_names_and_same_start(base, head, task, kind):
    ours, theirs = pair(base, head, task, kind)
    a, b = ({n: p for n, p in m.named_parameters() if n.startswith("prompt_encoder")} for m in (ours, theirs))
    assert set(a) == set(b) and set(learns(ours)) == set(learns(theirs))
    for name in a:
        assert torch.equal(a[name], b[name])
    assert torch.equal(ours.prompt_tokens["default"], theirs.prompt_tokens["default"])
    assert getattr(ours, "transformer_backbone_name", None) == getattr(theirs, "transformer_backbone_name", None)
    assert ours.get_base_model() is ours.base_model


@rows
def test_same_outputs_loss_and_gradients(base, head, task, kind):
    ours, theirs = pair(base, head, task, kind)
    inputs = call(task, kind)
    found, expected = tensors(ours(**inputs)), tensors(theirs(**inputs))
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    for out in (found, expected):
        (out["loss"] if "loss" in out else next(iter(out.values())).pow(2).sum()).backward()
    b = learns(theirs)
    for name, p in learns(ours).items():
        if b[name].grad is None:           # rows that PEFT leaves out
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, b[name].grad, atol=1e-5, rtol=1e-4)


@rows
def test_files_load_both_ways(base, head, task, kind, tmp_path):
    ours, theirs = pair(base, head, task, kind)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    mine, yours = get_peft_model_state_dict(ours), peft.get_peft_model_state_dict(theirs)
    assert set(mine) == set(yours)
    a, b = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    b["modules_to_save"] = b["modules_to_save"] and list(dict.fromkeys(b["modules_to_save"]))         # PEFT names heads twice
    assert a == b
    inputs = {k: v for k, v in call(task, kind).items() if k != "labels" or task == "SEQ_2_SEQ_LM"}
    expected = tensors(theirs(**inputs))
    in_theirs = peft.PeftModel.from_pretrained(family(base, head), tmp_path / "ours")
    in_ours = engine.PeftModel.from_pretrained(family(base, head), tmp_path / "theirs")
    assert in_ours.load_report.complete and type(in_ours).__name__ == type(in_theirs).__name__
    for model in (in_theirs, in_ours):
        found = tensors(model(**inputs))
        for name in found:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["prompt", "multitask"])
def test_a_text_to_begin_with(kind, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    built = []
    for package in (engine, peft):
        name, settings = PROMPTS[kind]
        settings = {**settings, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Say bread.", "tokenizer_name_or_path": str(tmp_path),
                    "tokenizer_kwargs": {"trust_remote_code": True}, "num_virtual_tokens": 9}
        torch.manual_seed(7)
        built.append(package.get_peft_model(family("GPT2", "LMHeadModel", vocab_size=384), getattr(package, name)(task_type="CAUSAL_LM", **settings)))
    for (name, p), (other, q) in zip(learns(built[0]).items(), learns(built[1]).items(), strict=True):
        assert name == other and torch.equal(p, q)


@pytest.mark.parametrize("init", ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"])
def test_multitask_begins_with_other_tasks(init, tmp_path):
    source, _ = pair("GPT2", "LMHeadModel", "CAUSAL_LM", "multitask")
    source.save_pretrained(tmp_path)
    built = []
    for package in (engine, peft):
        torch.manual_seed(3)
        settings = {"prompt_tuning_init": init, "prompt_tuning_init_task": 2, "num_ranks": 2, "num_virtual_tokens": N,
                    "prompt_tuning_init_state_dict_path": str(tmp_path / "adapter_model.safetensors")}
        built.append(package.get_peft_model(family("GPT2", "LMHeadModel"), package.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", **settings)))
    for (name, p), (other, q) in zip(learns(built[0]).items(), learns(built[1]).items(), strict=True):
        assert name == other and torch.equal(p, q)


def test_cpt_learns_alike_for_ten_steps():
    """With types of the input and the projection after every step."""
    models = pair("Llama", "ForCausalLM", "CAUSAL_LM", "cpt")
    types, curves = torch.tensor([[1, 2, 2, 3, 4, 4, 4, 4, 4, 4]] * 2), []
    for model in models:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=30.0)
        curve = []
        for _ in range(10):
            loss = model(input_ids=ids(), labels=ids(), input_type_mask=types.clone()).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], abs=1e-4) and curves[0][-1] != curves[0][0]
    a, b = (m.prompt_encoder["default"].delta_embedding.weight.norm(dim=1) for m in models)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_values_given_to_a_prompt_that_is_there():
    ours, theirs = pair("Llama", "ForCausalLM", "CAUSAL_LM", "prompt")
    state = {"prompt_embeddings": torch.randn(N, 32)}
    set_peft_model_state_dict(ours, state), peft.set_peft_model_state_dict(theirs, state)
    torch.testing.assert_close(ours(ids()).logits, theirs(ids()).logits, atol=1e-5, rtol=0)


def test_positions_and_token_types():
    """With keys and values the caller's positions move on, types are the caller's; token types of a prompt are 0."""
    ours, theirs = pair("GPT2", "LMHeadModel", "CAUSAL_LM", "prefix")
    positions = torch.arange(10).expand(2, -1) + 3
    torch.testing.assert_close(ours(ids(), position_ids=positions).logits, theirs(ids(), position_ids=positions).logits, atol=1e-5, rtol=0)
    ours, theirs = pair("Bert", "ForSequenceClassification", "SEQ_CLS", "prompt")
    types = torch.tensor([[0] * 5 + [1] * 5] * 2)
    torch.testing.assert_close(ours(ids(), token_type_ids=types).logits, theirs(ids(), token_type_ids=types).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["prompt", "p-tuning", "multitask"])
def test_encoder_decoders_generate_alike(kind):
    """The one place where PEFT generates rightly with this transformers: the prompt stands before the encoder's input."""
    ours, theirs = pair("T5", "ForConditionalGeneration", "SEQ_2_SEQ_LM", kind)
    if kind == "multitask":
        for model in (ours, theirs):
            model.active_peft_config.num_transformer_submodules = 1
            model.prompt_tokens["default"] = torch.arange(N)
            model.prompt_encoder["default"].prefix_task_cols = nn.Parameter(model.prompt_encoder["default"].prefix_task_cols[:, :N].clone())
    more = {k: v for k, v in call("SEQ_2_SEQ_LM", kind).items() if k != "labels"}
    answers = [model.generate(**more, max_new_tokens=6, do_sample=False) for model in (ours, theirs)]
    assert torch.equal(*answers) and answers[0].shape == (2, 7)


@pytest.mark.parametrize("kind", ["prefix", "prefix-network", "cartridge"])
@pytest.mark.parametrize(("head", "task"), [("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS"),
                                            ("ForQuestionAnswering", "QUESTION_ANS")])
def test_prefixes_of_classifiers(head, task, kind):
    """PEFT does not find the cache of these models under its new name; their heads are put on what its model without a head finds."""
    torch.manual_seed(7)
    ours = engine.get_peft_model(family("Bert", head), config(engine, kind, task)).eval()
    backbone = copy.deepcopy(family("Bert", head).bert)
    if backbone.pooler is None:
        backbone.pooler = nn.Identity()
    torch.manual_seed(7)
    theirs = peft.get_peft_model(backbone, config(peft, kind, "FEATURE_EXTRACTION")).eval()
    mask = torch.ones_like(ids())
    mask[1, 7:] = 0
    inputs = {"input_ids": ids(), "attention_mask": mask}
    features = theirs(**inputs)
    base = family("Bert", head)
    if task == "QUESTION_ANS":
        start, end = base.qa_outputs(features.last_hidden_state).unbind(-1)
        found = ours(**inputs, start_positions=torch.tensor([1, 2]), end_positions=torch.tensor([3, 4]))
        torch.testing.assert_close(found.start_logits, start, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.end_logits, end, atol=1e-5, rtol=1e-4)
        expected = (nn.functional.cross_entropy(start, torch.tensor([1, 2])) + nn.functional.cross_entropy(end, torch.tensor([3, 4]))) / 2
    else:
        logits = base.classifier(features.pooler_output if task == "SEQ_CLS" else features.last_hidden_state)
        labels = torch.tensor([0, 1]) if task == "SEQ_CLS" else ids() % 2
        found = ours(**inputs, labels=labels)
        torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-4)
        expected = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    torch.testing.assert_close(found.loss, expected, atol=1e-5, rtol=1e-4)


# --- adaption prompts -------------------------------------------------------------------------------

def adaption_pair(base: str, head: str, **settings) -> list[nn.Module]:
    built = []
    for package in (engine, peft):
        torch.manual_seed(7)
        built.append(package.get_peft_model(family(base, head), package.AdaptionPromptConfig(
            task_type="CAUSAL_LM", **{"adapter_len": 3, "adapter_layers": 2, **settings})).eval())
    return built


def open_gates(*models: nn.Module) -> None:
    with torch.no_grad():
        for model in models:
            for name, p in model.named_parameters():
                if "adaption_gate" in name:
                    p.fill_(0.7)


@pytest.mark.parametrize(("base", "head"), [("Llama", "ForCausalLM"), ("Mistral", "ForCausalLM"), ("GPT2", "LMHeadModel")])
def test_adaption_prompts_are_the_same(base, head, tmp_path):
    ours, theirs = adaption_pair(base, head)
    plain = family(base, head)(ids()).logits
    torch.testing.assert_close(ours(ids()).logits, plain, atol=1e-6, rtol=0)
    mine, yours = get_peft_model_state_dict(ours), peft.get_peft_model_state_dict(theirs)
    assert set(mine) == set(yours) and all(torch.equal(mine[k], yours[k]) for k in mine)
    open_gates(ours, theirs)
    outputs = [model(input_ids=ids(), labels=ids()) for model in (ours, theirs)]
    assert (outputs[0].logits - plain).abs().max() > 1e-2
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=0)
    for output in outputs:
        output.loss.backward()
    grads = [[p.grad for p in m.parameters() if p.requires_grad] for m in (ours, theirs)]
    for p, q in zip(*grads, strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)
    assert torch.equal(*[m.generate(input_ids=ids(), max_new_tokens=5, do_sample=False) for m in (ours, theirs)])
    ours.save_pretrained(tmp_path / "ours"), theirs.save_pretrained(tmp_path / "theirs")
    for package, folder in ((peft, "ours"), (engine, "theirs")):
        loaded = package.PeftModel.from_pretrained(family(base, head), tmp_path / folder)
        torch.testing.assert_close(loaded(ids()).logits, outputs[1].logits, atol=1e-5, rtol=0)
