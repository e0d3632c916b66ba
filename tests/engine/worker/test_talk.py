"""Short talk in this process: every verb has an answer."""

from __future__ import annotations

from engine import specs
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
