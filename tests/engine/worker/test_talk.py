"""Short talk in this process: every verb has an answer."""

from __future__ import annotations

import threading

import pytest

from engine import specs
from engine.worker import talk as worker_talk
from engine.worker.talk import ANSWERS, AT_ONCE, Talk


class Heard(list):
    """A line to a parent that only listens."""

    write = list.append


def test_every_question_that_a_window_may_ask_is_answered():
    assert {*ANSWERS, "open-chat", "say", *AT_ONCE} == {*specs.TALK_KINDS, "stop"}


def test_the_methods_are_told_with_their_settings():
    line, message = Heard(), {"id": 1, "do": "describe-methods", "spec": {}}
    talk = Talk(line)
    talk.accept(message)
    talk.answer(message)
    methods = {method["peft_type"]: method for method in specs.from_dict(line[0]["done"]).methods}
    assert {"LORA", "IA3", "PREFIX_TUNING"} <= methods.keys() and "r" in {field["name"] for field in methods["LORA"]["fields"]}


class Session:
    """A chat that only notes what is wished for."""

    opened, wanted = False, None

    def open(self, request):
        self.opened, self.wanted = True, None

    def set_strengths(self, strengths):
        self.wanted = strengths


class Interrupted:
    """A lock behind which another thread says something, the first ``number`` times that it is given back once a chat is open."""

    def __init__(self, talk, number, say):
        self.talk, self.number, self.say, self.lock = talk, number, say, threading.Lock()

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()
        if self.talk._session is not None and self.talk._session.opened and self.number:
            self.number -= 1
            if not self.number:
                self.say()


@pytest.mark.parametrize("moment", [1, 2])
def test_a_strength_is_heard_at_whatever_moment_of_the_opening_it_is_said(monkeypatch, moment):
    monkeypatch.setattr(worker_talk, "SESSION", Session)
    talk, opening = Talk(Heard()), {"id": 1, "do": "open-chat", "spec": {"base": "b"}}
    talk.accept(opening)
    talk._lock = Interrupted(talk, moment, lambda: talk.at_once({"id": 2, "do": "set-strengths", "spec": {"strengths": [0.25]}}))
    talk.answer(opening)
    assert talk._session.wanted == [0.25]
