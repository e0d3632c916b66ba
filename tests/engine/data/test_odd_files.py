"""Workbooks, letters and chats as people really leave them: the examples are found, and what is left out is said."""

import datetime
import json

import docx as word
import pytest
from openpyxl import Workbook

from engine.data.describe import describe
from engine.data.shapes import load
from engine.errors import BadData
from engine.specs import DescribeData
from tests.support import files

PAIRS = [(f"Was kostet Artikel {n}?", f"Er kostet {n},50 Euro.") for n in range(1, 5)]
CHATS = [[("user", question), ("assistant", answer)] for question, answer in PAIRS]


def chats_of(path, **roles):
    return [[(m["role"], m["content"]) for m in row.messages] for row in load(path, **roles).rows]


def book(path, **sheets):
    made = Workbook()
    made.remove(made.active)
    for title, rows in sheets.items():
        sheet = made.create_sheet(title)
        for row in rows:
            sheet.append(row)
    made.save(path)
    return path


@pytest.mark.parametrize("first", [[["Bitte lesen"], ["Diese Mappe enthält Fragen."], ["Stand: März"]], [["Ware", "Preis"], ["Brot", 3.5]]])
def test_the_sheet_with_the_examples_need_not_be_the_first(tmp_path, first):
    path = book(tmp_path / "a.xlsx", Deckblatt=first, Daten=[["ID", "Frage", "Antwort"], *([n, *pair] for n, pair in enumerate(PAIRS))])
    assert chats_of(path) == CHATS and "“Deckblatt” was left out" in load(path).notes[0]


def test_sheets_with_the_same_columns_in_another_order_or_with_one_more_belong_together(tmp_path):
    path = book(tmp_path / "a.xlsx", A=[["Frage", "Antwort"], PAIRS[0]], B=[["Antwort", "Frage"], PAIRS[1][::-1]],
                C=[["Frage", "Antwort", "Notiz"], [*PAIRS[2], "x"], [*PAIRS[3], "y"]])
    assert chats_of(path) == CHATS and not load(path).notes


def test_merged_cells_above_the_header_and_beside_the_rows(tmp_path):
    made = Workbook()
    sheet = made.active
    sheet["B2"], sheet["B4"], sheet["D4"] = "Häufige Fragen 2024", "Kunde", "Wir"
    for cells in ("B2:E2", "B4:C4", "D4:E4", "B6:B9"):
        sheet.merge_cells(cells)
    for column, name in zip("BCDE", ("Thema", "Frage", "Antwort", "Bearbeiter")):
        sheet[f"{column}5"] = name
    sheet["B6"], sheet["H7"] = "Preise", "daneben notiert"
    for n, (question, answer) in enumerate(PAIRS, 6):
        sheet[f"C{n}"], sheet[f"D{n}"], sheet[f"E{n}"] = question, answer, "Müller"
    made.save(tmp_path / "a.xlsx")
    assert chats_of(tmp_path / "a.xlsx") == CHATS


def test_two_columns_of_one_name_are_told_apart(tmp_path):
    path = book(tmp_path / "a.xlsx", A=[["Notiz", "Frage", "Antwort", "Notiz"], *(["x", *pair, "y"] for pair in PAIRS)])
    assert chats_of(path) == CHATS and load(path).columns == ["Notiz", "Frage", "Antwort", "Notiz 2"]


def test_formulas_that_failed_or_were_never_counted_teach_nothing(tmp_path):
    path = book(tmp_path / "a.xlsx", A=[["Frage", "Antwort"], ["Wann?", datetime.time(7, 30)], ["Wie?", "#N/A"], ["Wo?", '="Am "&"Hafen"']])
    assert chats_of(path) == [[("user", "Wann?"), ("assistant", "07:30")]]
    assert "Formulas in it have no results" in load(path).notes[0] and "2 rows were left out" in load(path).notes[1]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("separator", "\t;")
def test_a_table_that_is_called_a_text_is_a_table(tmp_path, encoding, separator):
    (tmp_path / "a.txt").write_bytes("\r\n".join(map(separator.join, [("Frage", "Antwort"), *PAIRS])).encode(encoding))
    assert chats_of(tmp_path / "a.txt") == CHATS


@pytest.mark.parametrize("indent, end", [(None, "\n"), (1, "")])
def test_objects_that_are_called_a_text_are_objects(tmp_path, indent, end):
    records = [{"question": question, "answer": answer} for question, answer in PAIRS]
    (tmp_path / "a.txt").write_text(end.join(map(json.dumps, records)) if end else json.dumps(records, indent=indent))
    assert chats_of(tmp_path / "a.txt") == CHATS
    (tmp_path / "b.txt").write_text("{Regie} Licht aus.\n\n[Anna] Wo bist du?\n")
    assert load(tmp_path / "b.txt").shape == "plain text"


def test_commas_in_texts_separate_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("".join(f"{question};{answer}\n" for question, answer in PAIRS), encoding="utf-8")
    assert chats_of(tmp_path / "a.csv") == CHATS
    (tmp_path / "b.csv").write_text("Text\n" + "".join(f"{answer}\n" for _, answer in PAIRS), encoding="utf-8")
    assert [chat[0] for chat in chats_of(tmp_path / "b.csv")] == [("text", answer) for _, answer in PAIRS]


@pytest.mark.parametrize("bold, number", [(True, ""), (False, ""), (False, "{}. ")])
def test_word_questions_that_are_no_headings(tmp_path, bold, number):
    document = word.Document()
    document.add_paragraph("Unsere Fragen")
    for n, (question, answer) in enumerate(PAIRS, 1):
        document.add_paragraph().add_run(number.format(n) + question).bold = bold
        document.add_paragraph(answer)
    document.save(tmp_path / "a.docx")
    assert chats_of(tmp_path / "a.docx") == CHATS


@pytest.mark.parametrize("name, text", [
    ("a.txt", "\n\n".join(f"{question}\n{answer}" for question, answer in PAIRS)), ("b.txt", "\n\n".join(part for pair in PAIRS for part in pair)),
    ("c.txt", "Unsere Fragen\n\n" + "\n\n".join(f"{n}) {question}\n{answer}" for n, (question, answer) in enumerate(PAIRS))),
    ("d.md", "\n\n".join(f"**{question}**\n\n{answer}" for question, answer in PAIRS)),
    ("e.md", "| Frage | Antwort |\n|:---|---:|\n" + "\n".join(f"| {question} | {answer} |" for question, answer in PAIRS)),
    ("f.txt", "\n".join(f"You said:\n{question}\nChatGPT said:\n{answer}" for question, answer in PAIRS)),
    ("g.txt", "\n".join(f"Du hast gesagt:\n{question}\nChatGPT hat gesagt:\n{answer}" for question, answer in PAIRS))])
def test_written_questions_and_what_stands_below_them(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert chats_of(tmp_path / name) == CHATS


def test_a_story_with_some_questions_is_a_story_and_a_text_without_blank_lines_is_cut(tmp_path):
    story = [f"Es war Abend {n}." if n % 4 else "Wer war da?" for n in range(1, 21)]
    (tmp_path / "a.txt").write_text("\n\n".join(story))
    assert load(tmp_path / "a.txt").shape == "plain text" and len(load(tmp_path / "a.txt").rows) == 20
    lines = [f"Zeile {n} eines langen Textes." for n in range(300)]
    (tmp_path / "b.txt").write_text("\n".join(lines))
    texts = [chat[0][1] for chat in chats_of(tmp_path / "b.txt")]
    assert len(texts) == 5 and "\n".join(texts).split("\n") == lines and load(tmp_path / "b.txt").rows[2].messages[0]["content"] == texts[2]


def test_mail_tables_and_what_only_tells_about_the_files(tmp_path):
    (tmp_path / "a.csv").write_text("Subject,Body,Reply\nBread,Do you have bread?,Yes.\n")
    (tmp_path / "README.md").write_text("# Data set\n\nSome words.\n")
    assert chats_of(tmp_path) == [[("user", "Do you have bread?"), ("assistant", "Yes.")]]
    assert load(tmp_path).notes == ["README.md was passed over: it tells about the other files."]
    (tmp_path / "a.csv").rename(tmp_path / "a.png")
    assert load(tmp_path).shape == "plain text"


def test_word_tables_without_names_and_where_they_stand(tmp_path):
    document = word.Document()
    document.add_paragraph("Davor.")
    table = document.add_table(0, 2)
    for pair in PAIRS:
        for cell, text in zip(table.add_row().cells, pair):
            cell.text = text
    document.add_paragraph("Danach.")
    document.save(tmp_path / "a.docx")
    assert chats_of(tmp_path / "a.docx") == CHATS and "around the tables" in load(tmp_path / "a.docx").notes[0]
    for row in table.rows:
        row.cells[0].text = "Ware"
    table.rows[0].cells[0].merge(table.rows[0].cells[1])
    document.save(tmp_path / "b.docx")
    (text,) = (chat[0][1] for chat in chats_of(tmp_path / "b.docx"))
    assert text.startswith("Davor.\n\nWare") and text.endswith("Ware | Er kostet 4,50 Euro.\n\nDanach.") and text.count("Er kostet 1,50") == 1


GROUP = """\
12.03.24, 09:58 - Anna hat die Gruppe „Backstube: Team“ erstellt.
12.03.24, 10:00 - Anna: Wer kommt morgen?
12.03.24, 10:01 - +49 170 1234567: Ich
12.03.24, 10:02 - Ben: IMG-20240312-WA0001.jpg (Datei angehängt)
so sieht es aus
12.03.24, 10:03 - Chefin: Treffpunkt: 5:00 Uhr <Diese Nachricht wurde bearbeitet.>
13.03.24, 10:00 - Ben: \u200eIMG-20240312-WA0002.jpg (Datei angehängt)
13.03.24, 10:01 - Ben: Wo ist der Schlüssel?
13.03.24, 10:02 - Chefin: Unter der Matte
13.03.24, 10:03 - Chefin: Verpasster Sprachanruf
"""
IPHONE = """\
[12.03.24, 09:58:01] Bäckerei: \u200eNachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.
[12.03.24, 10:00:12] ~\u202fAnna: Wer kommt morgen?
[12.03.24, 10:01:12] \u202a+49 170 1234567\u202c: Ich
\u200e[12.03.24, 10:02:40] Ben: \u200eBild weggelassen
[12.03.24, 10:02:41] Ben: so sieht es aus
[12.03.24, 10:03:00] Chefin: Treffpunkt: 5:00 Uhr \u200e<Diese Nachricht wurde bearbeitet.>
\u200e[12.03.24, 10:03:10] Chefin: Rechnung_Maerz_2024_final.pdf • \u200e2 Seiten \u200eDokument weggelassen
\u200e[12.03.24, 10:03:11] Chefin: \u200e<Anhang: 00000012-PHOTO-2024-03-12.jpg>
[13.03.24, 10:01:00] Ben: Wo ist der Schlüssel?
[13.03.24, 10:02:00] Chefin: Unter der Matte
[13.03.24, 10:03:00] Chefin: \u200eVerpasster Sprachanruf
"""


@pytest.mark.parametrize("export", [GROUP, IPHONE])
def test_what_the_chat_program_says_itself_is_nobodys_words(tmp_path, export):
    (tmp_path / "chat.txt").write_text(export, encoding="utf-8")
    assert chats_of(tmp_path / "chat.txt") == [[("user", "Wer kommt morgen?\nIch\nso sieht es aus"), ("assistant", "Treffpunkt: 5:00 Uhr")],
                                               [("user", "Wo ist der Schlüssel?"), ("assistant", "Unter der Matte")]]
    assert set(load(tmp_path / "chat.txt").columns) == {"Anna", "+49 170 1234567", "Ben", "Chefin"}


@pytest.mark.parametrize("clock", ["{} AM", "{}\u202fAM", "{} a. m.", "{}\u202fa.\u00a0m.", "{}"])
def test_clocks_of_other_countries(tmp_path, clock):
    lines = [f"{day}/3/24, {clock.format(f'10:0{n}')} - {who}: {what}\n" for day in (13, 14)
             for n, (who, what) in enumerate((("Ana", "¿hay pan?"), ("Pan", "Sí.")))]
    (tmp_path / "chat.txt").write_text("".join(lines), encoding="utf-8")
    assert chats_of(tmp_path / "chat.txt") == [[("user", "¿hay pan?"), ("assistant", "Sí.")]] * 2


def jsonl(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_what_the_model_is_told_may_stand_in_a_column_of_its_own(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = jsonl(tmp_path / "a.jsonl", {"system": "Be brief", "conversations": turns}, {"system": "", "conversations": turns},
                 {"system": "Be brief", "conversations": [{"from": "system", "value": "Be long"}, *turns]})
    hello = [("user", "Hi"), ("assistant", "Hello")]
    assert chats_of(path) == [[("system", "Be brief"), *hello], hello, [("system", "Be long"), *hello]]
    assert load(path).roles == {"conversations": "messages", "system": "system"}
    assert chats_of(path, roles={"conversations": "messages"}) == [hello, hello, [("system", "Be long"), *hello]]


def test_prompts_and_completions_as_messages(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"prompt": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
                                        "completion": [{"role": "assistant", "content": "Hello"}]})
    assert chats_of(path) == [[("system", "Be brief"), ("user", "Hi"), ("assistant", "Hello")]]


@pytest.mark.parametrize("odd, why", [({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "a tool is called"),
                                      ({"from": "function_call", "value": "{}"}, "a tool is called"),
                                      ({"role": "tool", "content": "3"}, "a tool is called"),
                                      ({"role": "assistant", "content": "No", "weight": 0}, "not to learn")])
def test_rows_that_cannot_be_learned_as_they_are_meant_are_left_out_with_that_reason(tmp_path, odd, why):
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 1}]
    path = jsonl(tmp_path / "a.jsonl", {"messages": good}, {"messages": [*good, odd, *good]})
    assert len(load(path).rows) == 1 and why in load(path).notes[0]


def test_of_several_files_one_that_is_broken_is_passed_over_with_the_reason_however_far_below(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"{n}?,{n}\n" for n in range(600)) + "a,b,c\n")
    (tmp_path / "b.csv").write_text("question,answer\nWhy?,So.\n,empty\n")
    (tmp_path / "c.csv").write_text("question,answer\nWhen?,Now.\n,empty\n")
    data = load(tmp_path)
    assert [chat[0][1] for chat in chats_of(tmp_path)] == ["Why?", "When?"] and "2 files" in data.sentence
    assert data.notes == ["b.csv, c.csv: 1 row was left out because the question is empty (first: line 3).",
                          "a.csv was passed over: Line 602 of a.csv cannot be read. "
                          "It has 3 cells, but the first line names 2 columns: “c” belongs to none."]
    (tmp_path / "b.csv").unlink()
    (tmp_path / "c.csv").unlink()
    with pytest.raises(BadData, match="Line 602"):
        load(tmp_path)


def test_beside_a_table_people_still_ask_and_answer(tmp_path):
    (tmp_path / "chat.txt").write_text(GROUP, encoding="utf-8")
    (tmp_path / "b.csv").write_text("question,answer\nWhy?,So.\n")
    report = describe(DescribeData(str(tmp_path)))
    assert report.choices["Chefin"] == ["user", "assistant", "ignore"] and "context" in report.choices["answer"]
    assert all(role in report.choices[column] for column, role in report.roles.items()) and report.columns == list(report.choices)


def test_a_cell_too_many_is_refused_only_where_a_separator_may_have_cut_a_text(tmp_path):
    files.xlsx(tmp_path / "a.xlsx", [("Wann?", "Um acht.", "", "", "Rand")])
    assert chats_of(tmp_path / "a.xlsx") == [[("user", "Wann?"), ("assistant", "Um acht.")]]
    (tmp_path / "a.csv").write_text("question,answer\nWhen?,At eight, or nine\n")
    with pytest.raises(BadData, match="3 cells"):
        load(tmp_path / "a.csv")
