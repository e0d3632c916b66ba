"""The token loop against a plain, slow reference: the whole text through the model again for every token."""

import threading

import pytest
import torch
from hypothesis import given, settings, strategies as st

from engine.errors import BadData, Diverged
from engine.generate import sampling
from engine.generate.sampling import Speech, answer, end_tokens, prompt_ids
from tests.support.tiny import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
MODEL = make_model(3)
CHAT = [{"role": "user", "content": "What do you sell?"}]


def slow_greedy(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt):]


def speak(**options):
    speech = Speech(MODEL, TOKENIZER, options.pop("prompt", prompt_ids(TOKENIZER, CHAT)), **options)
    return "".join(speech), speech


@pytest.mark.filterwarnings("error::FutureWarning")
def test_greedy_with_cache_equals_greedy_without(monkeypatch):
    monkeypatch.setattr(sampling, "end_tokens", lambda *_: set())
    monkeypatch.setattr(sampling, "CHUNK", 5)
    read = []
    hook = MODEL.model.register_forward_pre_hook(lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    _, speech = speak(max_new_tokens=20)
    hook.remove()
    whole, rest = divmod(len(speech.prompt), 5)
    assert read == [5] * whole + [rest] * bool(rest) + [1] * 19
    assert speech.ids == slow_greedy(MODEL, speech.prompt, 20)
    assert speech.reason == "length"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([0.2, 0.9, 1.0]))
def test_same_seed_same_answer_and_no_stray_randomness(seed, temperature, top_p):
    state = torch.random.get_rng_state()
    first, _ = speak(seed=seed, temperature=temperature, top_p=top_p, max_new_tokens=8)
    again, _ = speak(seed=seed, temperature=temperature, top_p=top_p, max_new_tokens=8)
    assert first == again
    assert torch.equal(state, torch.random.get_rng_state())


def test_top_p_keeps_only_the_likeliest():
    speech = Speech(MODEL, TOKENIZER, [1], temperature=1.0, top_p=0.6, seed=1)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert {speech._choose(logits) for _ in range(200)} == {0, 1}
    narrow = Speech(MODEL, TOKENIZER, [1], temperature=1.0, top_p=0.01, seed=1)
    assert {narrow._choose(logits) for _ in range(20)} == {0}


def test_ends_are_found_in_generation_config_tokenizer_and_template():
    tokenizer, model = make_tokenizer(), make_model()
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(model, tokenizer) == {7, 9, tokenizer.convert_tokens_to_ids("<|endoftext|>"), tokenizer.convert_tokens_to_ids("<|im_end|>")}
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in end_tokens(model, tokenizer)


def test_the_end_token_ends_the_answer_and_is_not_said(monkeypatch):
    prompt = prompt_ids(TOKENIZER, CHAT)
    said = slow_greedy(MODEL, prompt, 6)
    first = said.index(said[4])
    monkeypatch.setattr(sampling, "end_tokens", lambda *_: {said[4]})
    text, speech = speak(max_new_tokens=20)
    assert speech.reason == "end" and speech.ids == said[:first] and text == speech.text


def test_a_stop_is_heard_at_the_next_token():
    stop = threading.Event()
    speech = Speech(MODEL, TOKENIZER, prompt_ids(TOKENIZER, CHAT), max_new_tokens=100, temperature=5.0, seed=4, stopped=stop.is_set)
    for _ in speech:
        stop.set()
        count = len(speech.ids)
    assert speech.reason == "stop" and len(speech.ids) == count


def test_answer_leaves_a_training_model_as_it_was():
    model = make_model(1).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert answer(model, TOKENIZER, CHAT, max_new_tokens=4) == answer(model, TOKENIZER, CHAT, max_new_tokens=4)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_a_model_without_cache_is_read_anew(monkeypatch):
    class NoCache(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = MODEL, MODEL.config

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids, **_):
            out = self.inner(input_ids=input_ids)
            out.past_key_values = None
            return out

    monkeypatch.setattr(sampling, "end_tokens", lambda *_: set())
    speech = Speech(NoCache(), TOKENIZER, prompt_ids(TOKENIZER, CHAT), max_new_tokens=6)
    assert list(speech) is not None and speech.ids == slow_greedy(MODEL, speech.prompt, 6)


def test_a_prompt_too_long_gets_a_sentence():
    with pytest.raises(BadData, match="longer than the model can read"):
        speak(prompt=[5] * 512)
    _, speech = speak(prompt=[5] * 510, max_new_tokens=50)
    assert len(speech.ids) <= 2 and speech.reason in ("length", "end")


def test_numbers_that_are_none_get_a_sentence():
    broken = make_model(2)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="no longer says anything"):
        answer(broken, TOKENIZER, CHAT)


def test_the_prompt_is_what_training_shows_the_model():
    from engine.data.render import render

    for tokenizer in (make_tokenizer(), make_tokenizer()):
        rendered = render([*CHAT, {"role": "assistant", "content": "Bread."}], tokenizer)
        prompt = prompt_ids(tokenizer, CHAT)
        assert rendered.ids[:len(prompt)] == prompt and rendered.labels[len(prompt) - 1] == -100 != rendered.labels[len(prompt)]
