"""A chat keeps its base warm, hears strengths at the next token and says truthfully who spoke."""

import threading

import pytest
import torch

from engine.errors import InvalidSpec, StudioError, WrongBase
from engine.events import Answered, Token
from engine.generate.session import ChatSession
from engine.specs import OpenChat, Say, StackEntry
from engine.store.library import read_adapter, read_model
from tests.support.adapters import make_adapter
from tests.support.tiny import save_base

CHAT = [{"role": "user", "content": "What do you sell?"}]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    base = save_base(root / "base")
    return root, base, make_adapter(root / "style", base, 1), make_adapter(root / "facts", base, 2)


def opened(base, *stack):
    session = ChatSession()
    session.open(OpenChat(str(base), [StackEntry(str(folder), strength) for folder, strength in stack]))
    return session


def answers(session, **options):
    events = list(session.say(Say(CHAT, **{"columns": ["base", "stack"], "max_new_tokens": 12, "temperature": 1.0, "seed": 3, **options})))
    final = [e for e in events if isinstance(e, Answered)]
    for event in final:
        assert event.text == "".join(e.text for e in events if isinstance(e, Token) and e.column == event.column)
    return {event.column: event for event in final}


def test_the_base_column_is_the_base_whatever_is_stacked(shelf):
    root, base, style, facts = shelf
    alone = answers(opened(base))
    beside = answers(opened(base, (style, 1.5), (facts, 1.0)))
    assert alone["base"].text == alone["stack"].text == beside["base"].text != beside["stack"].text
    assert beside["base"].adapters == [] and alone["stack"].adapters == []


def test_the_stamp_tells_base_adapters_and_strengths(shelf):
    root, base, style, facts = shelf
    stamp = answers(opened(base, (facts, 0.5), (style, 1.0)))["stack"]
    assert stamp.base == read_model(base).fingerprint
    assert stamp.adapters == [["facts", read_adapter(facts).fingerprint, 0.5], ["style", read_adapter(style).fingerprint, 1.0]]


def test_the_base_stays_warm_while_stacks_change(shelf):
    root, base, style, facts = shelf
    session = opened(base, (style, 1.0))
    weight = session._stack.model.get_input_embeddings().weight
    session.open(OpenChat(str(base), [StackEntry(str(facts))]))
    assert session._stack.model.get_input_embeddings().weight is weight
    assert answers(session)["stack"].text == answers(opened(base, (facts, 1.0)))["stack"].text
    other = save_base(root / "other", seed=5)
    session.open(OpenChat(str(other)))
    assert answers(session)["base"].base == read_model(other).fingerprint


def test_a_strength_is_heard_at_the_next_token_from_any_thread(shelf):
    root, base, style, _ = shelf
    session = opened(base, (style, 1.0))
    full = answers(session, columns=["stack"], max_new_tokens=30)["stack"].text
    stream, heard = session.say(Say(CHAT, ["stack"], 30, 1.0, 0.95, 3)), ""
    for event in stream:
        if isinstance(event, Token):
            if not heard:
                thread = threading.Thread(target=session.set_strengths, args=([0.0],))
                thread.start()
                thread.join()
            heard += event.text
    first = next(e.text for e in session.say(Say(CHAT, ["stack"], 30, 1.0, 0.95, 3)) if isinstance(e, Token))
    assert event.adapters[0][2] == 0.0 and heard != full and full[:1] == heard[:1] and first
    assert answers(session, columns=["stack"])["stack"].text == answers(session, columns=["base"])["base"].text


def test_a_kept_column_answers_at_its_own_strengths_whatever_is_moved(shelf):
    """As the stack would at these strengths; afterwards, and if nobody listens to the end, the stack is as it was."""
    root, base, style, facts = shelf
    session, quiet = opened(base, (style, 1.0), (facts, 1.0)), opened(base, (style, 0.3), (facts, 0.0))
    session.set_strengths([1.0, 0.9])
    kept = answers(session, columns=["a", "stack"], strengths=[0.3, 0.0])
    assert kept["a"].text == answers(quiet, columns=["stack"])["stack"].text
    assert [s for *_, s in kept["a"].adapters] == [0.3, 0.0] and [s for *_, s in kept["stack"].adapters] == [1.0, 0.9]
    said = session.say(Say(CHAT, columns=["b"], max_new_tokens=12, strengths=[0.1, 0.1]))
    next(said)
    said.close()
    assert [entry.strength for entry in session._stack.entries] == [1.0, 0.9]
    with pytest.raises(InvalidSpec, match="2 adapters, but 1"):
        list(session.say(Say(CHAT, columns=["a"], strengths=[0.1])))


def test_a_model_beside_that_cannot_be_read_changes_nothing(shelf, tmp_path):
    _, base, style, facts = shelf
    session, broken = opened(base, (style, 0.5)), save_base(tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    before = session._stack.stamp()
    with pytest.raises(StudioError):
        session.open(OpenChat(str(base), [StackEntry(str(facts))], beside=str(broken)))
    assert session._stack.stamp() == before


def test_an_exported_model_answers_beside_the_stack_as_itself(shelf):
    """With its own stamp, and loaded once; without one, nobody answers for it."""
    root, base, style, facts = shelf
    exported = save_base(root / "exported", seed=11)
    session = opened(base, (style, 1.0))
    with pytest.raises(InvalidSpec, match="No exported model"):
        list(session.say(Say(CHAT, columns=["file"])))
    alone = answers(session)["stack"].text
    session.open(OpenChat(str(base), [StackEntry(str(style))], beside=str(exported)))
    both = answers(session, columns=["stack", "file"])
    assert both["stack"].text == alone and both["file"].text == answers(opened(exported))["base"].text
    assert (both["file"].base, both["file"].adapters) == (read_model(exported).fingerprint, [])
    warm = session._beside
    session.open(OpenChat(str(base), [StackEntry(str(facts))], beside=str(exported)))
    assert session._beside is warm
    with pytest.raises(StudioError):
        session.open(OpenChat(str(base), beside=str(root / "gone")))
    assert session._beside is warm and answers(session, columns=["file"])["file"].text == both["file"].text
    session.open(OpenChat(str(base)))
    assert session._beside is None


def test_strengths_for_another_stack_are_never_used(shelf):
    root, base, style, facts = shelf
    session = opened(base, (style, 0.5))
    session.set_strengths([0.1, 0.2])
    for nonsense in ([float("nan")], ["loud"]):
        with pytest.raises(InvalidSpec):
            session.set_strengths(nonsense)
    assert answers(session)["stack"].adapters[0][2] == 0.5
    session.open(OpenChat(str(base), [StackEntry(str(style), 0.5), StackEntry(str(facts), 0.5)]))
    assert [row[2] for row in answers(session)["stack"].adapters] == [0.5, 0.5]


def test_a_wrong_base_leaves_the_open_chat_as_it_is(shelf, tmp_path):
    root, base, style, _ = shelf
    session = opened(base, (style, 1.0))
    before = answers(session)["stack"]
    stranger = make_adapter(tmp_path / "stranger", save_base(tmp_path / "elsewhere", seed=8), 1)
    for request in (OpenChat(str(base), [StackEntry(str(stranger))]), OpenChat(str(tmp_path / "elsewhere"), [StackEntry(str(style))])):
        with pytest.raises(WrongBase, match="another model"):
            session.open(request)
    after = answers(session)["stack"]
    assert (after.text, after.adapters, after.base) == (before.text, before.adapters, before.base)


def test_a_stop_ends_every_column_and_says_so(shelf):
    root, base, style, _ = shelf
    stop = threading.Event()
    session, events = opened(base, (style, 1.0)), []
    for event in session.say(Say(CHAT, ["base", "stack"], 200, 5.0, 1.0, 1), stop.is_set):
        events.append(event)
        stop.set()
    assert [(e.column, e.stopped) for e in events if isinstance(e, Answered)] == [("base", "stop"), ("stack", "stop")]
    assert session._stack.model.stack.enabled


def test_an_abandoned_answer_leaves_the_stack_switched_on(shelf):
    root, base, style, _ = shelf
    session = opened(base, (style, 1.0))
    stream = session.say(Say(CHAT, ["base"], 50, 5.0, 1.0, 1))
    next(stream)
    stream.close()
    assert session._stack.model.stack.enabled and torch.is_grad_enabled()


def test_impossible_requests_get_a_sentence(shelf):
    root, base, *_ = shelf
    with pytest.raises(StudioError, match="No model is open"):
        list(ChatSession().say(Say(CHAT)))
    session = opened(base)
    for request in (Say(CHAT, ["oracle"]), Say([]), Say(CHAT, temperature=-1.0)):
        with pytest.raises(InvalidSpec):
            list(session.say(request))
    session.close()
    with pytest.raises(StudioError, match="No model is open"):
        list(session.say(Say(CHAT)))
