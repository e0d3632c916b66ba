"""What is shown as learned is what is learned, and it is exactly the answers."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data.preview import render_row
from engine.data.render import IGNORED, PLAIN_TEMPLATE, Unusable, chat_text, prepare_tokenizer, render, render_all
from engine.data.rows import Row
from engine.errors import BadData, BadModel
from engine.specs import RenderRow
from tests.support.tiny import TEMPLATE, make_tokenizer

LLAMA2 = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% elif m['role'] == 'user' %}"
          "[INST] {{ m['content'] }} [/INST] {% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}")
NO_END = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
FORGETFUL = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
             "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
FICKLE = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=30).map(str.strip).filter(bool)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def messages_of(pairs):
    return [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


@pytest.fixture(params=[TEMPLATE, PLAIN_TEMPLATE, LLAMA2, NO_END], ids=["chatml", "plain", "llama2", "no end sign"])
def tokenizer(request):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = request.param
    return prepare_tokenizer(tokenizer)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns, words)
def test_labels_spans_and_answers_agree(tokenizer, pairs, system):
    messages = messages_of(pairs)
    row = render(messages, tokenizer, system)
    assert [label for label in row.labels if label != IGNORED] == [i for i, label in zip(row.ids, row.labels) if label != IGNORED]
    shown, hidden = ("".join(text for text, learned in row.spans if learned is flag) for flag in (True, False))
    learned = tokenizer.decode([i for i in row.labels if i != IGNORED])
    assert shown == learned                                    # what is highlighted is what is trained
    assert tokenizer.decode(row.ids) == "".join(text for text, _ in row.spans)
    stripped = shown.replace(tokenizer.eos_token, "").replace("\n", "").replace(" ", "")
    assert stripped == "".join(a for _, a in pairs).replace(" ", "")   # all answers and nothing else
    assert system in hidden and all(q in hidden for q, _ in pairs)
    last = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    assert row.ids[last] == tokenizer.eos_token_id             # the end of the turn is learned


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns)
def test_the_model_is_asked_as_it_was_taught(tokenizer, pairs):
    """The tokens before the last answer are those of a real question, so training and use meet the same text."""
    glued = tokenizer.chat_template in (LLAMA2, NO_END)         # a cue that ends in a space is glued to an earlier answer when asked again
    messages = messages_of(pairs[:1] if glued else pairs)
    row = render(messages, tokenizer)
    asked = tokenizer(chat_text(tokenizer, messages[:-1], cue=True), add_special_tokens=False)["input_ids"]
    answer = max(i for i in range(1, len(row.ids)) if row.labels[i] != IGNORED and row.labels[i - 1] == IGNORED)
    assert row.ids[:answer] == asked


def test_a_template_that_rewrites_earlier_turns_learns_the_last_answer_and_says_so():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = FORGETFUL
    row = render(messages_of([("a", "bee"), ("c", "dee")]), tokenizer)
    assert row.partly and "".join(t for t, learned in row.spans if learned) == "<think></think>dee<|im_end|>"
    *_, notes = render_all([Row(tuple(messages_of([("a", "b"), ("c", "d")])), 1)], tokenizer, "", 100)
    assert "only the last answer" in notes[0]


def test_a_template_that_cannot_be_used_is_an_error_never_silence():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = FICKLE
    with pytest.raises(BadModel, match="chat template"):
        render(messages_of([("a", "b")]), tokenizer)
    tokenizer.chat_template = "always the same"
    with pytest.raises(BadModel):
        render(messages_of([("a", "b")]), tokenizer)


def test_plain_text_is_learned_whole():
    tokenizer = make_tokenizer()
    row = render([{"role": "text", "content": "bread and rolls"}], tokenizer)
    assert row.spans == [("bread and rolls<|im_end|>", True)] and row.labels == row.ids and row.learned == len(row.ids) - 1


def test_control_signs_in_the_text_are_refused():
    with pytest.raises(Unusable, match="im_end"):
        render(messages_of([("a", "b<|im_end|>")]), make_tokenizer())


def test_too_long_rows_are_left_out_never_cut():
    tokenizer = make_tokenizer()
    rows = [Row(tuple(messages_of([("a" * n, "b")])), n) for n in (1, 900, 2, 800)]
    kept, rendered, notes = render_all(rows, tokenizer, "", 100)
    assert [r.line for r in kept] == [1, 2] and all(len(r.ids) <= 100 for r in rendered)
    longest = len(render(rows[1], tokenizer).ids)
    assert notes == [f"2 examples were left out because they are longer than 100 tokens (the longest has {longest}) (first: line 900)."]
    with pytest.raises(BadData, match="No example"):
        render_all(rows[1:2], tokenizer, "", 100)


def test_a_conversation_that_the_template_refuses_is_left_out_and_the_others_are_learned():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = ("{% for m in messages %}{% if loop.index0 % 2 == (m.role == 'user') | int %}{{ raise_exception('take turns') }}"
                               "{% endif %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")
    good = Row(tuple(messages_of([("a", "b")])), 1)
    bad = Row(({"role": "user", "content": "a"}, *good.messages), 2)
    kept, _, notes = render_all([good, bad], tokenizer, "", 100)
    assert kept == [good] and notes == ["1 example was left out because the model's chat template does not accept these messages (first: line 2)."]
    with pytest.raises(BadModel, match="take turns"):
        render_all([bad], tokenizer, "", 100)


def test_the_preview_is_the_training_rendering(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"question": f"Was ist {i}?", "answer": f"Ä{i}"}) for i in range(3)))
    shown = render_row(RenderRow(base=str(tmp_path / "base"), data=str(tmp_path / "d.jsonl"), row=2, system="Kurz!", max_length=77))
    trained = render([{"role": "user", "content": "Was ist 2?"}, {"role": "assistant", "content": "Ä2"}], tokenizer, "Kurz!")
    assert shown.spans == [list(s) for s in trained.spans]
    assert (shown.tokens, shown.learned_tokens, shown.limit) == (len(trained.ids), trained.learned, 77)
    with pytest.raises(BadData, match="no example number 4"):
        render_row(RenderRow(base=str(tmp_path / "base"), data=str(tmp_path / "d.jsonl"), row=3))
