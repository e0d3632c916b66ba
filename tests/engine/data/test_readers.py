"""Office files, chats and mail, as people have them, to the examples that they mean."""

import json

import pytest

from engine.data.describe import describe
from engine.data.read import read
from engine.data.shapes import load, understand
from engine.errors import BadData
from engine.specs import DescribeData
from tests.support import files


def chats_of(path, **roles):
    return [[(m["role"], m["content"]) for m in row.messages] for row in load(path, **roles).rows]


PAIRS = [[("user", question), ("assistant", answer)] for question, answer in files.PAIRS]


def test_a_workbook_with_a_title_an_odd_header_and_another_sheet(tmp_path):
    data = load(files.xlsx(tmp_path / "a.xlsx", header=("Nr.", "Kundenfrage (neu)", "Antwort*")))
    assert chats_of(tmp_path / "a.xlsx") == PAIRS and data.roles == {"Kundenfrage (neu)": "question", "Antwort*": "answer"}
    assert data.sentence == "3 question and answer pairs, from the columns Kundenfrage (neu) and Antwort*." and "Preise" in data.notes[0]


def test_cells_are_what_a_person_reads(tmp_path):
    import datetime

    path = files.xlsx(tmp_path / "a.xlsx", [("Wie viele?", 12.0), ("Seit wann?", datetime.datetime(1897, 5, 1)), (None, "x"), ("Ja?", True)])
    assert [row[1][1] for row in chats_of(path)] == ["12", "1897-05-01", "True"]


@pytest.mark.parametrize("how", ["headings", "table", "labels"])
def test_word_questions_with_answers(tmp_path, how):
    assert chats_of(files.docx(tmp_path / "a.docx", how)) == PAIRS


def test_word_without_questions_is_text_by_its_headings(tmp_path):
    data = load(files.docx(tmp_path / "a.docx", "prose"))
    assert [row.messages[0]["content"].split("\n")[0] for row in data.rows] == ["Die Bäckerei", "Das Brot"] and data.shape == "plain text"


def test_markdown_by_questions_and_by_sections(tmp_path):
    sections = "\n\n".join(f"## {q}\n\n{a}" for q, a in files.PAIRS)
    (tmp_path / "faq.md").write_text(f"# FAQ\n\n{sections}\n```\n# no heading\n```\n", encoding="utf-8")
    assert [row[0] for row in chats_of(tmp_path / "faq.md")] == [pair[0] for pair in PAIRS]
    assert "# no heading" in chats_of(tmp_path / "faq.md")[-1][1][1]
    (tmp_path / "text.md").write_text("# One\n\nFirst.\n\n# Two\n\nSecond.\n")
    assert [row[0][1] for row in chats_of(tmp_path / "text.md")] == ["One\n\nFirst.", "Two\n\nSecond."]


def test_marked_questions_in_plain_text(tmp_path):
    (tmp_path / "t.txt").write_text("Q: Where?\nA: Here,\nby the sea.\n\nQ: When?\nA: Now.\n\nQ: Why?\n\nA: Because.\n")
    assert chats_of(tmp_path / "t.txt") == [[("user", q), ("assistant", a)] for q, a in
                                            (("Where?", "Here,\nby the sea."), ("When?", "Now."), ("Why?", "Because."))]


def test_a_pdf_is_its_plain_text(tmp_path):
    path = files.pdf(tmp_path / "a.pdf", ["The lighthouse stands on a rock in the sea and has done so for two hun-", "dred years.", "",
                                          "Nobody lives there."])
    (row,) = chats_of(path)
    assert "two hundred years." in row[0][1] and "Nobody" in row[0][1]
    files.pdf(path, ["Question: Where is it?", "Answer: On a rock.", "Question: Who lives there?", "Answer: Nobody."])
    assert chats_of(path) == [[("user", "Where is it?"), ("assistant", "On a rock.")], [("user", "Who lives there?"), ("assistant", "Nobody.")]]


def test_parquet_with_messages_begins_anywhere(tmp_path):
    records = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}], "score": n / 2} for n in range(700)]
    path = files.parquet(tmp_path / "a.parquet", records)
    rows = load(path).rows
    assert [rows[n].messages[1]["content"] for n in (0, 99, 100, 455, 699)] == ["a0", "a99", "a100", "a455", "a699"] and len(rows) == 700


def test_whatsapp_knows_who_answers_and_where_a_conversation_ends(tmp_path):
    (tmp_path / "chat.txt").write_text(files.WHATSAPP_ANDROID, encoding="utf-8")
    assert chats_of(tmp_path / "chat.txt") == [
        [("user", "Guten Morgen!\nWann öffnen Sie?"), ("assistant", "Um sieben Uhr,\njeden Tag.")],
        [("user", "Was kostet ein Brot?"), ("assistant", "Ein Brot kostet 3,50 Euro.")]]
    report = describe(DescribeData(str(tmp_path / "chat.txt")))
    assert report.sentence == "2 conversations, in which Bäckerei answers." and report.roles["Bäckerei"] == "assistant"
    assert report.choices == dict.fromkeys(report.columns, ["user", "assistant", "ignore"]) and any("nobody answers" in note for note in report.notes)
    with pytest.raises(BadData, match="nobody answers"):
        load(tmp_path / "chat.txt", {"Bäckerei": "user", "Kundin Müller": "assistant"})


@pytest.mark.parametrize("text, first", [(files.WHATSAPP_IPHONE, [("user", "When do you open?")]), (files.TELEGRAM_COPIED,
                                                                                                    [("user", "When do you open?")])])
def test_other_text_exports(tmp_path, text, first):
    (tmp_path / "chat.txt").write_text(text, encoding="utf-8")
    chats = chats_of(tmp_path / "chat.txt", roles={"Bakery": "assistant", "Ann": "user"})
    assert chats[0][:1] == first and all("omitted" not in text for chat in chats for _, text in chat)


def test_a_text_that_mentions_times_is_no_chat(tmp_path):
    (tmp_path / "t.txt").write_text("12.03.24, 10:00 - we met.\n\nIt was a fine day, and nobody said: hello.\n\nThen we left.\n")
    assert read(tmp_path / "t.txt").kind == "txt"


def test_chatgpt_follows_the_branch_that_was_kept(tmp_path):
    path = files.chatgpt(tmp_path / "conversations.json")
    assert chats_of(path) == [[("user", "Wann öffnen Sie?"), ("assistant", "Um sieben."), ("user", "Danke!"), ("assistant", "Gern.")]]
    assert load(path).sentence == "1 conversation, in which assistant answers."


def test_telegram_and_claude_json(tmp_path):
    roles = {"Bakery": "assistant", "Ann": "user"}
    chats = chats_of(files.telegram(tmp_path / "result.json"), roles=roles)
    assert chats == [[("user", "When do you open?"), ("assistant", "At seven.")], [("user", "And on Sunday?"), ("assistant", "We are closed.")]]
    claude = [{"uuid": "1", "chat_messages": [{"sender": "human", "text": "Hi"}, {"sender": "assistant", "text": "", "content":
                                                                                  [{"type": "text", "text": "Hello"}]}]}]
    (tmp_path / "claude.json").write_text(json.dumps(claude))
    assert chats_of(tmp_path / "claude.json") == [[("user", "Hi"), ("assistant", "Hello")]]


def test_a_mailbox_pairs_replies_with_what_they_answer(tmp_path):
    (tmp_path / "mail.mbox").write_text(files.MBOX, encoding="utf-8")
    assert chats_of(tmp_path / "mail.mbox") == [
        [("user", "Hello,\nwhen do you open?"), ("assistant", "We open at seven.\nFrom Monday on at six.")],
        [("user", "Was kostet ein Brötchen?"), ("assistant", "Ein Brötchen kostet 50 Cent.")]]
    data = load(tmp_path / "mail.mbox")
    assert data.sentence == "2 letters with their replies." and "1 row was left out because the question is empty" in data.notes[0]


def test_letters_in_a_folder_belong_together(tmp_path):
    (tmp_path / "a.eml").write_bytes(files.EML.encode("latin-1"))
    assert chats_of(tmp_path) == [[("user", "Liefern Sie auch?"), ("assistant", "Ja, am Mittwoch. Schöne Grüße")]]
    assert chats_of(tmp_path / "a.eml") == chats_of(tmp_path)


def test_a_folder_of_mixed_files(tmp_path):
    files.xlsx(tmp_path / "a.xlsx")
    files.docx(tmp_path / "b.docx", "prose")
    (tmp_path / "c.csv").write_text("question;réponse\nOù ?;Ici.\n", encoding="utf-8")
    (tmp_path / "d.csv").write_text("colour,size\nred,3\n")
    (tmp_path / "e.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden").write_text("x")
    data = load(tmp_path)
    assert len(data.rows) == 6 and data.shape == "mixed"
    assert data.sentence == "6 examples from 3 files: 4 question and answer pairs, 2 passages of text."
    assert any("d.csv" in note for note in data.notes) and any("e.png" in note for note in data.notes)
    assert [data.rows[n].messages[0]["content"] for n in (3, 5)] == ["Die Bäckerei\n\nUnsere Bäckerei steht seit 1897 am Hafen.", "Où ?"]


@pytest.mark.parametrize("header", ["Frage;Antwort", "question;réponse", "pregunta;respuesta", "1. Frage;Antwort (final)",
                                    "Kundenfrage;Unsere Antwort",
                                    "user_question;gold_answer", "Eingabe;Ausgabe", "consigne;sortie", "QUESTION ;ANSWER "])
def test_column_names_of_several_languages(tmp_path, header):
    (tmp_path / "t.csv").write_text(f"{header}\nEins zwei?;Drei vier.\n", encoding="utf-8")
    assert chats_of(tmp_path / "t.csv") == [[("user", "Eins zwei?"), ("assistant", "Drei vier.")]]


def test_unknown_names_are_told_from_what_stands_in_them_or_by_the_person(tmp_path):
    (tmp_path / "t.csv").write_text("id;foo;bar\n" + "".join(f"{n};This is text {n}.;Is this text {n} of many?\n" for n in range(9)))
    report = describe(DescribeData(str(tmp_path / "t.csv")))
    assert report.roles == {"bar": "question", "foo": "answer"} and report.guessed and any("guessed" in note for note in report.notes)
    report = describe(DescribeData(str(tmp_path / "t.csv"), roles={"foo": "question", "bar": "answer", "id": "context"}))
    assert report.examples[0][0]["content"] == "This is text 0.\n\n0" and not report.guessed
    with pytest.raises(BadData, match="No column is an answer") as caught:
        describe(DescribeData(str(tmp_path / "t.csv"), roles={"foo": "question"}))
    assert caught.value.facts["columns"] == ["id", "foo", "bar"] and caught.value.facts["samples"][0][1] == "This is text 0."


def test_understanding_reads_only_the_head(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 300 + "broken")
    assert understand(read(tmp_path / "t.jsonl")).shape == "question/answer"
    with pytest.raises(BadData, match="Line 301"):
        load(tmp_path / "t.jsonl")
