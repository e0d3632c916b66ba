"""Exports of chats and mailboxes with odd things in them: what is sound in them is read, quickly."""

import json

import pytest

from engine.data.shapes import load
from engine.errors import BadData
from tests.support import files


def test_conversations_that_go_in_circles_and_have_odd_parts_end(tmp_path):
    loop = {"a": {"parent": "b", "message": {"author": {"role": "user"}, "content": {"parts": [{"image": 1}, "hi"]}}},
            "b": {"parent": "a", "message": {"author": None, "content": None}}}
    (tmp_path / "c.json").write_text(json.dumps([{"mapping": loop, "current_node": "a"}]))
    with pytest.raises(BadData):
        load(tmp_path / "c.json")


def _gpt(role, parent, text):
    return {"parent": parent, "message": {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}}


CHATS = {
    "chatgpt": [{"mapping": {"a": _gpt("user", None, "Open?"), "b": _gpt("assistant", "a", "Till six.")}, "current_node": "b"} for _ in range(3)],
    "claude": [{"chat_messages": [{"sender": "human", "text": "Open?"}, {"sender": "assistant", "content": [{"type": "text", "text": "Till six."}]}]}
               for _ in range(3)],
    "telegram": {"messages": [{"type": "message", "date": f"2024-01-{day:02}T10:0{turn}:00", "from": "AB"[turn], "text": ["Yes", {"text": "!"}]}
                              for day in range(1, 5) for turn in range(2)]},
}


def _places(value, here=()):
    """Of everything within it."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*here, key)
        yield from _places(inner, (*here, key))


@pytest.mark.parametrize("kind", CHATS)
def test_one_odd_value_in_an_export_costs_no_other_conversation(tmp_path, kind):
    where = [place for place in _places(CHATS[kind]) if len(place) > 1 and place[0] in (1, "messages") and place[1] != 0]
    for place in where:
        for odd in (None, 5, "word", "2024-01-01T10:00:00Z", [], [None], ["x", 5], {}, {"text": 5}):
            chats = inside = json.loads(json.dumps(CHATS[kind]))
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = odd
            (tmp_path / "c.json").write_text(json.dumps(chats))
            assert len(load(tmp_path / "c.json").rows) >= 2, (place, odd)


def test_a_letter_with_broken_parts_is_passed_over(tmp_path):
    broken = "\nFrom x\nContent-Type: text/plain; charset=klingon\nContent-Transfer-Encoding: base64\n\n%%%\n"
    (tmp_path / "m.mbox").write_text(files.MBOX + broken, encoding="utf-8")
    assert len(load(tmp_path / "m.mbox").rows) == 2


@pytest.mark.parametrize("head", ["Message-ID: <>", "Message-ID: <a@", "In-Reply-To: <[>", "Content-Type: multipart/mixed; boundary=x",
                                  "Content-Disposition: attachment", "Content-Type: application/pdf"])
def test_a_letter_with_an_odd_head_or_no_words_is_passed_over(tmp_path, head):
    (tmp_path / "m.mbox").write_text(f"{files.MBOX}\nFrom x\n{head}\n\nHello.\n", encoding="utf-8")
    assert len(load(tmp_path / "m.mbox").rows) == 2


@pytest.mark.parametrize("body", ["--\n" * 200_000 + "> so it goes", "--- Original Message ---\n" + "\n" * 1_000_000 + "x"], ids=["dashes", "blanks"])
def test_a_letter_of_many_odd_lines_is_read_at_once(tmp_path, body):
    """In hours, were each line compared with all that follow."""
    (tmp_path / "m.mbox").write_text(f"{files.MBOX}\nFrom x\nSubject: y\n\n{body}\n", encoding="utf-8")
    assert len(load(tmp_path / "m.mbox").rows) == 2
