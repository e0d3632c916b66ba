"""Prompts by their laws: a prompt of words' embeddings is these words, one of their keys and values too; generating is the forward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import engine
from engine.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from engine.errors import BadAdapter, WrongBase
from tests.support.families import family, ids
from tests.support.tiny import make_model, make_tokenizer

N = 4
WORDS = torch.tensor([9, 33, 17, 50])
CAUSAL = {"Llama": "ForCausalLM", "GPT2": "LMHeadModel", "OPT": "ForCausalLM"}
KINDS = {
    "prompt": (engine.PromptTuningConfig, {}),
    "p-tuning": (engine.PromptEncoderConfig, {"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.5}),
    "prefix": (engine.PrefixTuningConfig, {}),
    "prefix-network": (engine.PrefixTuningConfig, {"prefix_projection": True}),
    "cartridge": (engine.CartridgeConfig, {}),
    "multitask": (engine.MultitaskPromptTuningConfig, {"num_tasks": 2, "num_ranks": 2}),
    "cpt": (engine.CPTConfig, {"cpt_token_ids": WORDS.tolist(), "cpt_tokens_type_mask": [1, 2, 3, 4], "opt_projection_epsilon": 9.0,
                             "opt_projection_format_epsilon": 9.0}),
}


def prompted(base: nn.Module, kind: str, task: str = "CAUSAL_LM", **settings):
    torch.manual_seed(1)
    config, own = KINDS[kind]
    sizes = {} if kind == "cpt" else {"num_virtual_tokens": N}
    return engine.get_peft_model(base, config(task_type=task, **{**sizes, **own, **settings})).eval()


def of_words(base: nn.Module, task: str):
    """A prompt that is the embeddings of `WORDS`."""
    model = prompted(base, "prompt", task)
    rows = base.get_input_embeddings()(WORDS).detach()
    halves = model.active_peft_config.num_transformer_submodules
    set_peft_model_state_dict(model, {"prompt_embeddings": rows.repeat(halves, 1)})
    return model


def after_words(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([WORDS.expand(len(x), -1), x], dim=1)


def close(a, b, atol: float = 2e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def cached_words(base: nn.Module, kind: str = "cartridge"):
    """A prompt that is the keys and values of `WORDS`."""
    model = prompted(base, kind)
    with model.disable_adapter():
        cache = model(input_ids=WORDS.unsqueeze(0), use_cache=True)
    name = "cache" if "cache" in cache else "past_key_values"
    rows = engine.prompt_embeddings_from_past_key_values(cache[name], num_virtual_tokens=N)
    assert torch.equal(engine.initialize_kv_prefix_from_past_key_values(model, past_key_values=cache[name]), rows)
    return model


# --- a prompt of words is these words ---

@pytest.mark.parametrize("base", [*CAUSAL, "Mistral", "Gemma3Text"])
@pytest.mark.parametrize("make", [of_words, cached_words], ids=["embeddings", "cache"])
def test_causal_models(base, make):
    plain = family(base, CAUSAL.get(base, "ForCausalLM"))
    model = make(copy.deepcopy(plain), *(["CAUSAL_LM"] if make is of_words else []))
    close(model(ids(), attention_mask=torch.ones_like(ids())).logits[:, -10:], plain(after_words(ids())).logits[:, N:])
    if make is of_words:                   # the first word of the input is answered by the prompt's last place
        close(model(ids(), labels=ids()).loss, plain(after_words(ids()), labels=torch.cat([torch.full((2, N), -100), ids()], dim=1)).loss)
    for settings in ({}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}):
        expected = plain.generate(after_words(ids()), max_new_tokens=6, do_sample=False, **settings)[:, N:]
        assert torch.equal(model.generate(ids(), max_new_tokens=6, do_sample=False, **settings), expected)
    short = model.generate(input_ids=ids(), max_length=14, do_sample=False)                  # counts the input, not the prompt
    assert torch.equal(short[:, 10:], plain.generate(after_words(ids()), max_new_tokens=4, do_sample=False)[:, 10 + N:])
    embeds = plain.get_input_embeddings()(ids())
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False),
                       model.generate(ids(), max_new_tokens=6, do_sample=False)[:, 10:])


@pytest.mark.parametrize("base", CAUSAL)
@pytest.mark.parametrize("make", [of_words, cached_words], ids=["embeddings", "cache"])
def test_padding_is_inert_when_generating(base, make):
    """A short text padded on the left is answered as it is alone, whether the mask is given or found by the padding."""
    model = make(family(base, CAUSAL[base], pad_token_id=0), *(["CAUSAL_LM"] if make is of_words else []))
    short = ids(1, 6)
    alone = model.generate(short, max_new_tokens=6, do_sample=False)[:, 6:]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1)
    both, mask = torch.cat([padded, ids(1, 10)]), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    for more in ({"attention_mask": mask}, {"pad_token_id": 0}):
        assert torch.equal(model.generate(both, max_new_tokens=6, do_sample=False, **more)[:1, 10:], alone)


def test_going_on_from_the_returned_cache():
    """A caller's own loop: the prompt is heard once, and masks are in the caller's own places."""
    for kind in ("prompt", "prefix"):
        model = prompted(family("Llama", "ForCausalLM"), kind)
        x, mask = ids(), torch.ones_like(ids())
        first = model(x[:, :7], attention_mask=mask[:, :7], use_cache=True)
        name = "cache" if "cache" in first else "past_key_values"
        rest = model(x[:, 7:], attention_mask=mask, use_cache=True, **{name: first[name]})
        close(rest.logits, model(x).logits[:, -3:])


def test_heads_of_an_encoder():
    """Sequence, token and question heads, with what belongs to the input's places moved behind the prompt."""
    cases = [("ForSequenceClassification", "SEQ_CLS", {"labels": torch.tensor([1, 0])}, {"labels": torch.tensor([1, 0])}),
             ("ForTokenClassification", "TOKEN_CLS", {"labels": ids() % 2},
              {"labels": torch.cat([torch.full((2, N), -100), ids() % 2], dim=1)}),
             ("ForQuestionAnswering", "QUESTION_ANS", {"start_positions": torch.tensor([1, 4]), "end_positions": torch.tensor([3, 9])},
              {"start_positions": torch.tensor([1, 4]) + N, "end_positions": torch.tensor([3, 9]) + N})]
    for base in ("Bert", "Roberta"):
        for head, task, asked, moved in cases:
            plain = family(base, head)
            model = of_words(copy.deepcopy(plain), task)
            mask = torch.ones_like(ids())
            mask[1, 8:] = 0
            found = model(ids(), attention_mask=mask, **asked)
            expected = plain(after_words(ids()), attention_mask=torch.cat([torch.ones(2, N, dtype=torch.long), mask], dim=1), **moved)
            assert set(found) == set(expected)
            for name in found:
                close(found[name], expected[name])
            found.loss.backward()


def test_positions_move_behind_the_prompt():
    plain = family("GPT2", "LMHeadModel")
    model = of_words(copy.deepcopy(plain), "CAUSAL_LM")
    there = torch.tensor([[2, 3, 4, 9, 10, 11, 12, 20, 21, 22]] * 2)
    expected = plain(after_words(ids()), position_ids=torch.cat([torch.arange(N).expand(2, -1), there + N], dim=1)).logits
    close(model(ids(), position_ids=there).logits, expected)


@pytest.mark.parametrize("base", ["T5", "Bart"])
def test_encoder_decoders(base):
    plain = family(base, "ForConditionalGeneration")
    model = of_words(copy.deepcopy(plain), "SEQ_2_SEQ_LM")
    mask = torch.ones_like(ids())
    mask[1, 7:] = 0
    longer = torch.cat([torch.ones(2, N, dtype=torch.long), mask], dim=1)
    found, expected = model(ids(), attention_mask=mask, labels=ids(2, 5)), plain(after_words(ids()), attention_mask=longer, labels=ids(2, 5))
    close(found.loss, expected.loss)
    close(found.logits, expected.logits)
    for settings in ({}, {"num_beams": 3}):
        assert torch.equal(model.generate(input_ids=ids(), attention_mask=mask, max_new_tokens=6, do_sample=False, **settings),
                           plain.generate(after_words(ids()), attention_mask=longer, max_new_tokens=6, do_sample=False, **settings))


# --- generating is the forward, for every kind ---

def greedy(model, x: torch.Tensor, steps: int, **more) -> torch.Tensor:
    for _ in range(steps):
        x = torch.cat([x, model(input_ids=x, **more).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", CAUSAL)
@torch.no_grad()
def test_generating_is_the_forward(base, kind):
    model = prompted(family(base, CAUSAL[base]), kind)
    more = {"task_ids": torch.tensor([1, 0])} if kind == "multitask" else {}
    expected = greedy(model, ids(), 6, **more)
    assert (model(ids(), **more).logits[:, -1] - model.get_base_model()(ids()).logits[:, -1]).abs().max() > 1e-3
    assert torch.equal(model.generate(input_ids=ids(), max_new_tokens=6, do_sample=False, **more), expected)
    assert torch.equal(model.generate(input_ids=ids(), max_new_tokens=6, do_sample=False, use_cache=False, **more), expected)


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("kind", ["prompt", "prefix", "cartridge", "multitask"])
@pytest.mark.parametrize("base", ["T5", "Bart"])
@torch.no_grad()
def test_generating_is_the_forward_of_encoder_decoders(base, kind, halves):
    """Also of prompts in front of the decoder, which no ``generate`` takes as embeddings."""
    model = prompted(family(base, "ForConditionalGeneration"), kind, "SEQ_2_SEQ_LM", num_transformer_submodules=halves)
    more = {"task_ids": torch.tensor([1, 0])} if kind == "multitask" else {}
    answer = torch.full((2, 1), model.get_base_model().config.decoder_start_token_id)
    for _ in range(5):
        logits = model(input_ids=ids(), decoder_input_ids=answer, **more).logits[:, -1]
        answer = torch.cat([answer, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(input_ids=ids(), max_new_tokens=5, do_sample=False, **more), answer)
    assert model.generate(input_ids=ids(), max_new_tokens=5, num_beams=2, num_return_sequences=2, do_sample=False, **more).shape[0] == 4


def test_a_prompt_for_the_decoder_too():
    """Labels and mask of the decoder grow with it; what the decoder gets may be said by labels or by ids."""
    base = family("T5", "ForConditionalGeneration")
    model = prompted(copy.deepcopy(base), "multitask", "SEQ_2_SEQ_LM")
    rows, labels = model.get_prompt(2, torch.tensor([0, 1])), ids(2, 5)
    start = base.prepare_decoder_input_ids_from_labels(labels=labels)
    words = base.get_input_embeddings()
    expected = base(inputs_embeds=torch.cat([rows[:, :N], words(ids())], dim=1), decoder_inputs_embeds=torch.cat([rows[:, N:], words(start)], dim=1),
                    labels=torch.cat([torch.full((2, N), -100), labels], dim=1))
    for more in ({}, {"decoder_input_ids": start, "decoder_attention_mask": torch.ones_like(start)}):
        found = model(input_ids=ids(), labels=labels, task_ids=torch.tensor([0, 1]), **more)
        close(found.logits, expected.logits)
        close(found.loss, expected.loss)


# --- coming, going, learning ---

def test_the_base_is_the_users_and_stays_as_it_is():
    base = family("Llama", "ForCausalLM")
    before, names = {k: v.clone() for k, v in base.state_dict().items()}, set(base.state_dict())
    model = prompted(base, "prompt")
    assert model.base_model is base and model.get_base_model() is base and model.word_embeddings is base.get_input_embeddings()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["prompt_encoder.default.embedding.weight"]
    plain = family("Llama", "ForCausalLM")(ids()).logits
    model(ids(), labels=ids()).loss.backward()
    with model.disable_adapter():
        assert torch.equal(model(ids()).logits, plain)
        assert torch.equal(model.generate(ids(), max_new_tokens=3, do_sample=False), base.generate(ids(), max_new_tokens=3, do_sample=False))
    assert (model(ids()).logits[:, N:] - plain).abs().max() > 1e-3
    assert model.unload() is base and set(base.state_dict()) == names and all(p.requires_grad for p in base.parameters())
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_a_switched_off_prompt_needs_no_task():
    model = prompted(family("Llama", "ForCausalLM"), "multitask")
    with model.disable_adapter():
        assert torch.equal(model(ids(), task_ids=torch.tensor([0, 1])).logits, family("Llama", "ForCausalLM")(ids()).logits)
    with pytest.raises(ValueError, match="task_ids cannot be None"):
        model(ids())


def test_several_prompts_one_at_a_time(tmp_path):
    model = prompted(family("GPT2", "LMHeadModel"), "prompt")
    first = model(ids()).logits
    model.add_adapter("other", engine.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert torch.equal(model(ids()).logits, first) and model.active_adapters == ["default"]
    model.set_adapter("other")
    assert model(ids()).logits.shape == (2, 10, 64)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"prompt_encoder.other.embedding.weight"}
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists() and (tmp_path / "other" / "adapter_model.safetensors").exists()
    with pytest.raises(ValueError, match="one prompt"):
        model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="merged"):
        model.merge_and_unload()
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(model(ids()).logits, first)
    model.load_adapter(tmp_path / "other", "again")
    assert set(model.prompt_tokens) == {"default", "again"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_prompt_goes_on_learning(kind, tmp_path):
    """PEFT refuses that. A network that computed the prompt is not in the file: the prompt goes on as a table."""
    model = prompted(family("Llama", "ForCausalLM"), kind)
    more = {"task_ids": torch.tensor([1, 0])} if kind == "multitask" else {}
    learn(model, more, steps=3)
    model.eval().save_pretrained(tmp_path)
    before = model(ids(), **more).logits
    still = engine.PeftModel.from_pretrained(family("Llama", "ForCausalLM"), tmp_path)
    assert still.load_report.complete and not any(p.requires_grad for p in still.parameters())
    close(still(ids(), **more).logits, before)
    again = engine.PeftModel.from_pretrained(family("Llama", "ForCausalLM"), tmp_path, is_trainable=True).eval()
    close(again(ids(), **more).logits, before)
    first, last = learn(again, more, steps=8)
    assert last < first
    frozen = {"cpt": ["embedding.weight"], "cartridge": ["frozen_embedding"]}.get(kind, [])
    assert [n.removeprefix("prompt_encoder.default.") for n, p in again.prompt_encoder.named_parameters(prefix="prompt_encoder")
            if not p.requires_grad] == frozen


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cpt"])
def test_what_is_computed_once_is_computed_again_when_it_changes(kind):
    model, told = prompted(family("Llama", "ForCausalLM"), kind), {"input_ids": torch.tensor([[3, 4, 5]])}
    if kind == "multitask":
        other = model(**told, task_ids=torch.tensor([0])).logits
        told["task_ids"] = [1]
        assert not torch.equal(model(**told).logits, other)
    first = model(**told).logits
    assert torch.equal(model(**told).logits, first)
    list(model.prompt_encoder.parameters())[-1].mul_(2)
    second = model(**told).logits
    assert not torch.equal(second, first)
    model.add_adapter("b", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("b")
    assert not torch.equal(model(**told).logits, second)
    model.set_adapter("default")
    assert torch.equal(model(**told).logits, second)
    assert model.double()(**told).logits.dtype == torch.float64


def learn(model, more: dict, steps: int) -> tuple[float, float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids(), labels=ids(), **more).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_what_is_saved_knows_no_dropout():
    model = prompted(family("Llama", "ForCausalLM"), "p-tuning").train()
    a, b = get_peft_model_state_dict(model), get_peft_model_state_dict(model)
    assert torch.equal(a["prompt_embeddings"], b["prompt_embeddings"]) and model.prompt_encoder["default"].training
    close(a["prompt_embeddings"], model.eval().get_prompt(1)[0])
    assert torch.equal(model.get_prompt_embedding_to_save("default"), a["prompt_embeddings"])


def test_half_precision_bases_keep_float_prompts(tmp_path):
    for kind in ("prompt", "prefix"):
        model = prompted(family("Llama", "ForCausalLM").to(torch.bfloat16), kind)
        assert {p.dtype for p in model.prompt_encoder.parameters()} == {torch.float32}
        assert model(ids()).logits.dtype == torch.bfloat16
        model(ids(), labels=ids()).loss.backward()
        assert model.generate(ids(), max_new_tokens=3).shape == (2, 13)


# --- CPT ---

def test_cpt_loss_by_hand():
    """Weights fall by 0.5 with every example that comes later; unanswered places count nothing; types are not changed in the call."""
    types = [1, 2, 3, 4, 5, 6, 7, 8]
    model = engine.get_peft_model(family("Llama", "ForCausalLM"), engine.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=list(range(20, 28)), cpt_tokens_type_mask=types, opt_weighted_loss_type="decay",
        opt_loss_decay_factor=0.5)).eval()
    input_types = torch.tensor([[1, 2, 3, 4, 4, 4, 4, 4, 4, 4], [2, 2, 2, 2, 2, 2, 2, 3, 4, 4]])
    kept = input_types.clone()
    output = model(input_ids=ids(), labels=ids(), input_type_mask=input_types)
    assert torch.equal(input_types, kept) and next(iter(output)) == "loss"
    whole = torch.cat([torch.arange(20, 28).expand(2, -1), ids()], dim=1)
    terms = []
    for row in range(2):
        for place in range(1, 18):
            kind = types[place] if place < 8 else int(input_types[row, place - 8]) + 8
            if kind % 4 == 0:
                weight = {4: 0.25, 8: 0.5, 12: 1.0}[kind]
                terms.append(weight * F.cross_entropy(output.logits[row, place - 1], whole[row, place]))
    close(output.loss, torch.stack(terms).mean())
    as_tuple = model(input_ids=ids(), labels=ids(), input_type_mask=input_types, return_dict=False)
    close(as_tuple[0], output.loss)


def test_cpt_without_types_has_something_to_learn():
    """PEFT adds the highest type, 1, to the input's 4, finds no output left and answers NaN."""
    model = engine.get_peft_model(family("Llama", "ForCausalLM"), engine.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[5, 6, 7])).eval()
    output = model(input_ids=ids(), labels=ids())
    close(output.loss, F.cross_entropy(output.logits[:, 2:-1].flatten(0, 1), ids().flatten()))


def test_cpt_tokens_stay_in_their_balls():
    model = prompted(family("Llama", "ForCausalLM"), "cpt", opt_projection_epsilon=0.4, opt_projection_format_epsilon=0.2)
    encoder, unit = model.prompt_encoder["default"], (32 / 2048) ** 0.5
    with torch.no_grad():
        encoder.delta_embedding.weight.normal_()
    model(ids(), labels=ids()).loss.backward()
    close(encoder.delta_embedding.weight.norm(dim=1), torch.tensor([0.2 * unit, 0.4 * unit, 0.2 * unit, 0.0]))
    assert encoder.delta_embedding.weight.grad[:3].abs().min(dim=1)[0].max() > 0 and not encoder.delta_embedding.weight.grad[3].any()


# --- cartridges ---

def test_a_cartridge_from_a_text(tmp_path):
    tokenizer, text = make_tokenizer(), "What do you sell? We sell bread, rolls and cake."
    plain = make_model()
    for template, kind in ((False, "cartridge"), (True, "prefix")):
        model = prompted(make_model(), kind)
        engine.initialize_kv_prefix_from_text(model, tokenizer, text=text, use_chat_template=template)
        read = tokenizer.apply_chat_template([{"role": "system", "content": text}], return_dict=False) if template else tokenizer(text)["input_ids"]
        begun = torch.tensor([read[:N]]).expand(2, -1)
        close(model(ids()).logits, plain(torch.cat([begun, ids()], dim=1)).logits[:, N:])
    with pytest.raises(ValueError, match="at least as long"):
        engine.initialize_kv_prefix_from_text(model, tokenizer, text="a", use_chat_template=False)
    with pytest.raises(ValueError, match="CARTRIDGE or PREFIX_TUNING"):
        engine.initialize_kv_prefix_from_past_key_values(prompted(make_model(), "prompt"), past_key_values=[])
    with pytest.raises(ValueError, match="prefix_projection"):
        engine.initialize_kv_prefix_from_text(prompted(make_model(), "prefix-network"), tokenizer, text=text)


def test_cartridges_one_after_another(tmp_path):
    rows = []
    for name in ("a", "b"):
        model = prompted(family("Llama", "ForCausalLM", seed=len(rows)), "cartridge", num_virtual_tokens=3 + len(rows))
        model.save_pretrained(tmp_path / name)
        rows.append(get_peft_model_state_dict(model)["prompt_embeddings"])
    engine.compose_cartridge_adapters([tmp_path / "a", tmp_path / "b"], output_path=tmp_path / "both")
    both = engine.PeftModel.from_pretrained(family("Llama", "ForCausalLM"), tmp_path / "both")
    assert torch.equal(both.prompt_encoder["default"].weight, torch.cat(rows)) and both.active_peft_config.num_virtual_tokens == 7
    with pytest.raises(ValueError, match="at least 2"):
        engine.compose_cartridge_adapters([tmp_path / "a"], output_path=tmp_path / "one")


def test_a_prompt_begins_with_another_s_old_file_which_runs_nothing(tmp_path):
    first = prompted(family("Llama", "ForCausalLM"), "multitask", num_tasks=1)
    first.save_pretrained(tmp_path)
    torch.save(get_peft_model_state_dict(first), tmp_path / "adapter_model.bin")
    (tmp_path / "program.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    begun = [prompted(family("Llama", "ForCausalLM"), "multitask", prompt_tuning_init="EXACT_SOURCE_TASK", num_tasks=1,
                      prompt_tuning_init_state_dict_path=str(tmp_path / f"adapter_model.{kind}")) for kind in ("safetensors", "bin")]
    for (name, one), other in zip(begun[0].prompt_encoder.named_parameters(), begun[1].prompt_encoder.parameters(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(BadAdapter, match="program.bin"):
        prompted(family("Llama", "ForCausalLM"), "multitask", prompt_tuning_init="EXACT_SOURCE_TASK",
                 prompt_tuning_init_state_dict_path=str(tmp_path / "program.bin"))


# --- what is refused ---

def test_what_is_refused():
    llama = family("Llama", "ForCausalLM")
    cases = [
        (lambda: prompted(llama, "prompt", None), "task"),
        (lambda: prompted(llama, "prompt", "POETRY"), "Invalid task type"),
        (lambda: prompted(llama, "prompt", num_virtual_tokens=None), "num_virtual_tokens"),
        (lambda: prompted(llama, "prompt", num_virtual_tokens=0), "num_virtual_tokens"),
        (lambda: prompted(nn.Linear(2, 2), "prompt"), "transformers"),
        (lambda: prompted(llama, "prompt", prompt_tuning_init="TEXT"), "tokenizer_name_or_path can't be None"),
        (lambda: prompted(llama, "prompt", prompt_tuning_init="NOISE"), "prompt_tuning_init"),
        (lambda: prompted(llama, "prompt", tokenizer_kwargs={"use_fast": True}), "tokenizer_kwargs only valid"),
        (lambda: prompted(llama, "p-tuning", encoder_reparameterization_type="RNN"), "encoder_reparameterization_type"),
        (lambda: prompted(llama, "prefix", init_weights="ones"), "init_weights"),
        (lambda: prompted(llama, "cartridge", num_frozen_tokens=5), "num_frozen_tokens"),
        (lambda: prompted(llama, "cartridge", num_frozen_tokens=-1), "must be >= 0"),
        (lambda: engine.CPTConfig(task_type="SEQ_CLS"), "only supports task_type"),
        (lambda: engine.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2], cpt_mask=[1]), "same length"),
        (lambda: prompted(llama, "multitask", prompt_tuning_init="EXACT_SOURCE_TASK"), "prompt_tuning_init_state_dict_path"),
        (lambda: prompted(llama, "prompt").add_adapter("x", engine.LoraConfig()), "different peft types"),
        (lambda: engine.get_peft_model(family("Llama", "ForCausalLM"), engine.LoraConfig()).add_adapter(
            "x", engine.PromptTuningConfig(num_virtual_tokens=2)), "different peft types"),
        (lambda: prompted(llama, "prompt")(ids(), attention_mask=torch.ones(2, 1, 10, 10)), "attention_mask"),
        (lambda: prompted(llama, "prompt")(ids(), adapter_names=["default"] * 2), "adapter_names"),
        (lambda: prompted(llama, "prompt").generate(max_new_tokens=2), "input_ids must be provided"),
        (lambda: prompted(family("Bert", "Model"), "prompt", "FEATURE_EXTRACTION").generate(ids()), "does not generate"),
    ]
    for number, (act, words) in enumerate(cases):
        with pytest.raises(ValueError, match=words):
            act()
        assert not any(name.startswith("prompt") for name, _ in llama.named_modules()), number


def test_prefixes_need_a_cache():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    base = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=64))
    with pytest.raises(ValueError, match="does not support past key values"):
        prompted(base, "prefix", "SEQ_CLS")(ids())
    base = family("Llama", "ForCausalLM")
    base.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        prompted(base, "prefix")


def test_bad_files_are_refused_whole(tmp_path):
    from safetensors.torch import load_file, save_file

    prompted(family("Llama", "ForCausalLM"), "prompt").save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    sound, base = load_file(path), family("Llama", "ForCausalLM")
    for tensors, error in (({"prompt_embeddings": torch.zeros(N, 16)}, WrongBase), ({"other": torch.zeros(1)}, BadAdapter),
                           ({"prompt_embeddings": torch.full((N, 32), float("nan"))}, BadAdapter)):
        save_file(tensors, path)
        with pytest.raises(error):
            engine.PeftModel.from_pretrained(base, tmp_path)
        assert all(p.requires_grad for p in base.parameters())
    save_file({**sound, "more": torch.zeros(1)}, path)
    assert engine.PeftModel.from_pretrained(base, tmp_path).load_report.unexpected == ["more"]


def test_an_mlp_says_what_it_leaves_out():
    with pytest.warns(UserWarning, match="encoder_num_layers` is ignored"):
        prompted(family("Llama", "ForCausalLM"), "p-tuning", encoder_reparameterization_type="MLP", encoder_num_layers=3)


# --- the examples of PEFT's documentation, at a small size ---

EXAMPLES = {
    "SEQ_CLS": ("Bert", "ForSequenceClassification", "PeftModelForSequenceClassification",
                lambda: engine.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20, prefix_projection=False), 20 * 2 * 2 * 32 + 32 * 2 + 2),
    "CAUSAL_LM": ("GPT2", "LMHeadModel", "PeftModelForCausalLM",
                  lambda: engine.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20, token_dim=32, num_layers=2), 20 * 2 * 2 * 32),
    "SEQ_2_SEQ_LM": ("T5", "ForConditionalGeneration", "PeftModelForSeq2SeqLM",
                     lambda: engine.LoraConfig(task_type="SEQ_2_SEQ_LM", r=8, target_modules=["q", "v"], lora_alpha=32, lora_dropout=0.1),
                     2 * 3 * 2 * 8 * 64),
    "TOKEN_CLS": ("Bert", "ForTokenClassification", "PeftModelForTokenClassification",
                  lambda: engine.PrefixTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=20), 20 * 2 * 2 * 32 + 32 * 2 + 2),
    "QUESTION_ANS": ("Bert", "ForQuestionAnswering", "PeftModelForQuestionAnswering",
                     lambda: engine.LoraConfig(task_type="QUESTION_ANS", r=16, target_modules=["query", "value"], lora_alpha=32, lora_dropout=0.05),
                     2 * 2 * 16 * 64 + 32 * 2 + 2),
    "FEATURE_EXTRACTION": ("Bert", "Model", "PeftModelForFeatureExtraction",
                           lambda: engine.LoraConfig(task_type="FEATURE_EXTRACTION", r=16, target_modules=["query", "value"], lora_alpha=32),
                           2 * 2 * 16 * 64),
}


@pytest.mark.parametrize("task", EXAMPLES)
def test_examples_of_the_documentation(task, tmp_path):
    base, head, name, config, learning = EXAMPLES[task]
    model = engine.get_peft_model(family(base, head), config())
    assert type(model) is getattr(engine, name) and model.get_nb_trainable_parameters()[0] == learning
    learns_and_comes_back(model, task, base, head, tmp_path)


ASKED = {"SEQ_CLS": {"labels": torch.tensor([0, 1])}, "CAUSAL_LM": {"labels": ids()}, "SEQ_2_SEQ_LM": {"labels": ids(2, 5)},
         "TOKEN_CLS": {"labels": ids() % 2}, "FEATURE_EXTRACTION": {},
         "QUESTION_ANS": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 3])}}


def learns_and_comes_back(model: nn.Module, task: str, base: str, head: str, folder, **more) -> None:
    """Every part of the adapter, the head too, learns and stands in the file."""
    asked = {"input_ids": ids(), "attention_mask": torch.ones_like(ids()), **ASKED[task], **more}
    started = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    losses, optimizer = [], torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        output = model(**asked)
        losses.append(output.loss if ASKED[task] else output.last_hidden_state[..., 0].mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, started[name])]
    model.eval().save_pretrained(folder)
    loaded = engine.PeftModel.from_pretrained(family(base, head), folder)
    assert type(loaded) is type(model) and loaded.load_report.complete
    found, expected = (m(**asked) for m in (loaded, model))
    for key in ("loss", "logits", "start_logits", "last_hidden_state"):
        if key in expected:
            close(found[key], expected[key])


WHOLE = [(kind, task, *EXAMPLES[task][:2]) for kind in KINDS for task in EXAMPLES if kind != "cpt" or task == "CAUSAL_LM"] + [
    (kind, "SEQ_CLS", base, "ForSequenceClassification") for kind in ("prompt", "prefix") for base in ("Llama", "GPT2", "Roberta")]


@pytest.mark.parametrize(("kind", "task", "base", "head"), WHOLE, ids=["·".join(row[:3]) for row in WHOLE])
def test_every_prompt_with_every_task(kind, task, base, head, tmp_path):
    model = prompted(family(base, head), kind, task, **({"encoder_dropout": 0.0} if kind == "p-tuning" else {}))
    assert type(model) is getattr(engine, EXAMPLES[task][2])
    learns_and_comes_back(model, task, base, head, tmp_path, **({"task_ids": torch.tensor([1, 0])} if kind == "multitask" else {}))
    with model.disable_adapter():
        plain = family(base, head).eval()
        asked = {"input_ids": ids(), **({"labels": ids(2, 5)} if task == "SEQ_2_SEQ_LM" else {})}
        assert torch.equal(model(**asked)[0], plain(**asked)[0])
