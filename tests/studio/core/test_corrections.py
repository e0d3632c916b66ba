"""Answers put right are kept, whatever stands in them and in the file."""

from __future__ import annotations

import json

import pytest

from engine.data.shapes import load
from engine.errors import StudioError
from engine.store.home import Home
from studio.core.corrections import Corrections


@pytest.fixture
def kept(tmp_path) -> Corrections:
    return Corrections(Home(tmp_path), "Shop answers")


def talk(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_the_same_question_put_right_again_replaces_the_answer(kept):
    assert [kept.keep(talk(q, a)) for q, a in (("Open?", "No."), ("Far?", "Yes."), ("Open?", "Yes."))] == [1, 2, 2]
    assert [row.messages[-1]["content"] for row in load(kept.path).rows] == ["Yes.", "Yes."]


@pytest.mark.parametrize("text", ["one\u2028two", "a\u2029b", "c\x85d", "e\x1cf", "g\nh\r\ni", "Grüße 🙂"])
def test_no_sign_in_an_answer_loses_it(kept, text):
    kept.keep(talk("First?", text))
    assert kept.keep(talk("Second?", "Yes.")) == len(kept) == 2
    assert json.loads(kept.path.read_text(encoding="utf-8").split("\n")[0])["messages"] == talk("First?", text)


def test_a_line_that_was_broken_by_hand_does_not_count_but_stays(kept):
    kept.keep(talk("First?", "Yes."))
    with open(kept.path, "a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", \n')
    assert kept.keep(talk("Second?", "Yes.")) == len(kept) == 2 and '{"messages": [{"role": "user", \n' in kept.path.read_text(encoding="utf-8")


def test_a_file_that_cannot_be_read_is_not_written_over(kept):
    kept.path.parent.mkdir(parents=True)
    kept.path.write_bytes("Müller".encode("latin-1"))
    with pytest.raises(StudioError):
        kept.keep(talk("First?", "Yes."))
    assert kept.path.read_bytes() == "Müller".encode("latin-1") and len(kept) == 0
