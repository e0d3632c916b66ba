"""What columns mean, in two languages; what is left out is said."""

import json

import pytest

from engine.data.describe import describe
from engine.data.shapes import fold, load
from engine.data.split import held_out
from engine.errors import BadData
from engine.specs import DescribeData

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write(tmp_path, records, name="data.json"):
    (tmp_path / name).write_text(json.dumps(records), encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize("record, shape", [
    ({"question": "Hi", "answer": "Hello"}, "question/answer"),
    ({"FRAGE ": "Hi", "Antwort": "Hello"}, "question/answer"),
    ({"Frage": "Hi", "Loesung": "Hello"}, "question/answer"),
    ({"frage": "Hi", "LÖSUNG": "Hello"}, "question/answer"),
    ({"instruction": "Hi", "output": "Hello"}, "instruction/output"),
    ({"instruction": "Hi", "input": "", "output": "Hello"}, "instruction/input/output"),
    ({"Anweisung": "Hi", "Ausgabe": "Hello"}, "instruction/output"),
    ({"prompt": "Hi", "completion": "Hello"}, "prompt/completion"),
    ({"user": "Hi", "assistant": "Hello"}, "user/assistant"),
    ({"Kunde": "Hi", "Antwort": "Hello", "id": 3}, "user/assistant"),
    ({"messages": CHAT}, "messages"),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "conversations"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT[1], {"role": "user", "content": "unanswered"}]}, "messages"),
    ({"text": "Hi", "label": "Hello"}, "text/label"),
])
def test_every_shape_becomes_the_same_chat(tmp_path, record, shape):
    data = load(write(tmp_path, [record]))
    assert list(data.rows[0].messages) == CHAT and data.shape == shape


def test_names_are_equal_whatever_their_case_umlauts_or_spaces():
    assert fold("Lösung") == fold("LOESUNG") == fold(" lo-sung ") != fold("Losungen")


def test_context_follows_the_question_and_a_system_column_leads(tmp_path):
    data = load(write(tmp_path, [{"system": "Be brief", "instruction": "Sum up", "input": "Long text", "output": "Short"}]))
    assert [m["content"] for m in data.rows[0].messages] == ["Be brief", "Sum up\n\nLong text", "Short"]


def test_plain_text(tmp_path):
    (tmp_path / "t.txt").write_text("One.\n\nTwo.")
    data = load(tmp_path / "t.txt")
    assert data.shape == "plain text" and [r.messages[0] for r in data.rows] == [{"role": "text", "content": t} for t in ("One.", "Two.")]


def test_preferences_are_refused_with_that_reason(tmp_path):
    with pytest.raises(BadData, match="preferences"):
        load(write(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}]))


@pytest.mark.parametrize("record, found", [({"colour": "red", "size": "3"}, "“colour”, “size”"),
                                           ({"question": "x", "colour": "y"}, "partner of “question”")])
def test_wrong_columns_name_what_was_found_and_what_is_expected(tmp_path, record, found):
    with pytest.raises(BadData) as caught:
        load(write(tmp_path, [record]))
    assert found in str(caught.value) and "Frage and Antwort" in caught.value.do and caught.value.facts["columns"] == list(record)


def test_unusable_rows_are_left_out_and_counted(tmp_path):
    good = {"messages": CHAT}
    bad = [{"messages": []}, {"messages": [CHAT[0]]}, {"messages": "no"}, {"messages": [{"role": "tool", "content": "x"}, *CHAT]},
           {"messages": [{"role": "user", "content": ""}, CHAT[1]]}, {"messages": [CHAT[1], *CHAT]},
           {"messages": [*CHAT, {"role": "system", "content": "s"}, *CHAT]}]
    data = load(write(tmp_path, [good, *bad]))
    assert len(data.rows) == 1 and sum(int(note.split()[0]) for note in data.notes) == len(bad)
    with pytest.raises(BadData, match="No row"):
        load(write(tmp_path, [{"question": "", "answer": "x"}, {"question": "x", "answer": None}]))


def test_broken_characters_never_reach_a_tokenizer(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"question": "a\\ud800b\\u0000", "answer": "c\\r\\nd"}')
    question, answer = (m["content"] for m in load(tmp_path / "s.jsonl").rows[0].messages)
    question.encode()
    assert "\0" not in question and answer == "c\nd"


def test_some_held_back_questions_are_offered_to_be_pinned(tmp_path):
    path = write(tmp_path, [{"question": f"What is number {n}?" if n % 3 else f"Long {n}\nquestion", "answer": f"It is {n}."} for n in range(60)])
    data, asks = load(path), describe(DescribeData(str(path))).asks
    held = held_out(data.rows.keys, 0.1)
    assert len(asks) == 3 and set(asks) <= {data.rows[n].messages[0]["content"] for n in held} and not any("\n" in ask for ask in asks)
    other = tmp_path / "other.json"
    other.write_bytes(path.read_bytes())
    assert describe(DescribeData(str(other), head=20)).asks == []      # which are held back depends on all
    (tmp_path / "t.txt").write_text("".join(f"Paragraph {n}.\n\n" for n in range(60)))
    assert describe(DescribeData(str(tmp_path / "t.txt"))).asks == []


def test_describe_says_it_in_a_sentence(tmp_path):
    file = tmp_path / "shop.csv"
    file.write_text("Frage;Antwort\n" + "".join(f"Was kostet {i}?;{i} Euro\n" for i in range(40)) + "Was kostet 1?;1 Euro\n;x\n")
    report = describe(DescribeData(str(file)))
    assert report.sentence == "41 question and answer pairs, from the columns Frage and Antwort."
    assert report.rows == 41 and 8 <= report.held_out <= 12 and report.roles == {"Frage": "question", "Antwort": "answer"}
    assert any("more than once" in n for n in report.notes) and any("question is empty" in n for n in report.notes)
    assert type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report
