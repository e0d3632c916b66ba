"""Short talk with a real child: in order, at once where it must be, and never without a last word."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from engine import events, specs
from studio.jobs.talk import Done, Failed, ProcessTalk
from tests.studio.jobs.conftest import FAKE_WORKER

STACK = [specs.StackEntry("a", 1.0), specs.StackEntry("b", 1.0)]


@pytest.fixture
def talk(home):
    before = set(psutil.Process().children(recursive=True))
    talk = ProcessTalk(home.root / "logs" / "talk.log", FAKE_WORKER)
    yield talk
    talk.close()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not [t for t in threading.enumerate() if t.name.endswith("-reader")]


@pytest.fixture
def listen(talk):
    """Everything said for a ticket up to its last word, or up to ``enough`` tokens."""
    heard: dict[int, list] = {}

    def wait(ticket, enough=None):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for other, word in talk.drain():
                heard.setdefault(other, []).append(word)
            words = heard.get(ticket, [])
            if words and isinstance(words[-1], Done | Failed):
                return words
            if enough is not None and len(words) >= enough:
                return words
            threading.Event().wait(0.002)
        raise AssertionError("no answer")

    return wait


def say(tokens=20, text="hello"):
    return specs.Say(messages=[{"role": "user", "content": text}], max_new_tokens=tokens)


def test_a_question_is_answered_by_its_dataclass(talk, listen, tmp_path):
    (tmp_path / "data.csv").write_text("x")
    assert listen(talk.ask(specs.DescribeData(str(tmp_path / "data.csv"))))[-1].answer.sentence == "One row."
    failed = listen(talk.ask(specs.DescribeData(str(tmp_path / "none.csv"))))[-1]
    assert failed.error.code == "bad-data" and failed.error.do


def test_a_name_that_is_no_text_is_asked_for_all_the_same(talk, listen, tmp_path):
    name = str(tmp_path / "M\udcfcller.csv")           # Latin-1 on a stick from an old computer
    assert listen(talk.ask(specs.DescribeData(name)))[-1].error.code == "bad-data"


def test_an_answer_streams_and_nothing_that_is_printed_spoils_it(talk, listen, home):
    talk.ask(specs.OpenChat("base", STACK))
    words = listen(talk.ask(say(5)))
    *tokens, answered, done = words
    assert [type(t) for t in tokens] == [events.Token] * 5 and done == Done()
    assert answered.text == "".join(t.text for t in tokens) == "[1.0, 1.0] " * 5
    assert "a library prints" in (home.root / "logs" / "talk.log").read_text()


def test_strengths_are_heard_while_an_answer_is_spoken(talk, listen):
    talk.ask(specs.OpenChat("base", STACK))
    answer = talk.ask(say(2000))
    listen(answer, enough=3)
    assert listen(talk.ask(specs.SetStrengths([0.25, 0.0])))[-1] == Done()         # while the answer goes on
    heard = listen(answer, enough=len(listen(answer, enough=1)) + 20)
    assert heard[-1].text == "[0.25, 0.0] " and heard[0].text == "[1.0, 1.0] "
    talk.stop(answer)
    answered = listen(answer)[-2]
    assert answered.stopped == "stop" and answered.tokens < 2000


def test_strengths_said_while_the_chat_is_being_opened_are_not_lost(talk, listen):
    talk.ask(specs.OpenChat("base", STACK))
    talk.ask(specs.SetStrengths([0.5, 0.75]))
    assert listen(talk.ask(say(2)))[0].text == "[0.5, 0.75] "


def test_a_stop_before_its_turn_comes_answers_without_a_word(talk, listen):
    talk.ask(specs.OpenChat("base", STACK))
    first, second = talk.ask(say(300)), talk.ask(say(300))
    listen(first, enough=1)
    talk.stop(second)
    talk.stop(first)
    assert [type(w) for w in listen(second)] == [Failed] and listen(second)[-1].error.code == "cancelled"
    talk.stop(first)                                                               # too late: no one minds


def test_without_a_chat_there_is_a_sentence(talk, listen):
    assert "No chat is open" in listen(talk.ask(say()))[-1].error.what
    assert "No chat is open" in listen(talk.ask(specs.SetStrengths([1.0])))[-1].error.what


def test_an_impossible_request_is_refused_by_the_worker(talk, listen):
    assert listen(talk.ask(specs.Say(messages=[], temperature=-1.0)))[-1].error.code == "invalid-spec"


def test_a_child_that_dies_is_told_and_replaced_and_the_chat_goes_on(talk, listen):
    talk.ask(specs.OpenChat("base", STACK))
    listen(talk.ask(specs.SetStrengths([0.125, 1.0])))
    doomed, waiting = talk.ask(say(text="die")), talk.ask(say())
    for ticket in (doomed, waiting):
        assert listen(ticket)[-1].error.code == "worker-died"
    assert listen(talk.ask(say(2)))[0].text == "[0.125, 1.0] "


def test_a_chat_that_kills_its_child_is_not_opened_again_for_other_questions(talk, listen, tmp_path):
    (tmp_path / "data.csv").write_text("x")
    assert listen(talk.ask(specs.OpenChat("too large", STACK)))[-1].error.code == "worker-died"
    assert listen(talk.ask(specs.DescribeData(str(tmp_path / "data.csv"))))[-1].answer.sentence == "One row."
    assert listen(talk.ask(say()))[-1].error.code == "worker-died"     # it is asked for the chat


def test_closing_in_the_middle_of_an_answer_leaves_nothing(talk, listen):
    talk.ask(specs.OpenChat("base", STACK))
    answer = talk.ask(say(100_000))
    listen(answer, enough=2)
    child = psutil.Process(talk._child.process.pid)
    talk.close()
    assert not child.is_running()
    assert isinstance(listen(talk.ask(say()))[-1], Failed)


def test_what_takes_long_tells_how_far_it_is_is_stopped_and_lets_others_be_answered(talk, listen, tmp_path):
    (tmp_path / "data.csv").write_text("x")
    long = talk.ask(specs.LintData(str(tmp_path / "data.csv")))
    progress = listen(long, enough=2)[-1]
    assert isinstance(progress, events.Progress) and progress.total == 30_000 and 0 < progress.done < 30_000
    assert listen(talk.ask(specs.DescribeData(str(tmp_path / "data.csv"))))[-1].answer.sentence == "One row."
    talk.stop(long)
    assert listen(long)[-1].error.code == "cancelled"
