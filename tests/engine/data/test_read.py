"""Files as people have them: encodings, separators, and every way of being wrong, each with a way out."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import table as tables
from engine.data.read import read
from engine.data.readers import tables as table_readers
from engine.errors import BadData



def records(path) -> list[dict]:
    return [record for _, record in read(path)]


RECORDS = [{"Frage": "Wann geöffnet?", "Antwort": "Täglich; außer „Montag“"}, {"Frage": "Größe, bitte", "Antwort": "Straße\nzwei"}]


def csv_text(delimiter: str) -> str:
    rows = [list(RECORDS[0]), *(list(r.values()) for r in RECORDS)]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_any_encoding_and_separator_gives_the_same_records(tmp_path, encoding, delimiter):
    file = tmp_path / "data.csv"
    file.write_bytes(csv_text(delimiter).encode(encoding))
    assert records(file) == RECORDS


@pytest.mark.parametrize("name, text", [
    ("a.json", json.dumps(RECORDS)), ("b.jsonl", "\n".join(map(json.dumps, RECORDS))), ("c.json", json.dumps({"data": RECORDS})),
    ("d.json", "\n".join(map(json.dumps, RECORDS))), ("e.jsonl", json.dumps(RECORDS, indent=1)),
])
def test_json_in_all_its_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert records(tmp_path / name) == RECORDS


cells = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=6))
def test_what_was_written_is_read(tmp_path, rows):
    text = "q,a\n" + "".join(",".join('"' + c.strip().replace('"', '""') + '"' for c in row) + "\n" for row in rows)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert [tuple(r.values()) for r in records(tmp_path / "t.csv")] == [tuple(c.strip() for c in row) for row in rows]


def test_paragraphs_of_plain_text_know_their_lines(tmp_path):
    (tmp_path / "t.txt").write_text("one\ntwo\n\n\nthree\n")
    assert [(line, record["text"]) for line, record in read(tmp_path / "t.txt")] == [(1, "one\ntwo"), (5, "three")]


WRONG = {
    "missing.csv": (None, "does not exist"),
    "empty.csv": (b"", "is empty"),
    "blank.txt": (b"  \n\n ", "is empty"),
    "header.csv": (b"question,answer\n", "no examples"),
    "excel.csv": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00", "office or zip file"),
    "text.pdf": (b"%PDF-1.4 abc", "damaged"),
    "noise.txt": (bytes(range(256)) * 4, "not a text file"),
    "half.txt": (b"\xff\xfea\x00b\x00c", "damaged"),
    "quote.csv": (b'question,answer\n"never closed,b\nc,d\n', "quotation mark"),
    "wide.csv": (b"question,answer\na,b,c\n", "3 cells"),
    "broken.json": (b'[{"a": 1},\n{"b": ]', "Line 2"),
    "broken.jsonl": (b'{"a": "b"}\n{"a": \n', "Line 2"),
    "numbers.json": (b"[1, 2]", "single value"),
    "string.json": (b'"hello"', "no list"),
    "deep.json": (b"[" * 200_000, "Line 1"),
    "data.docx": (b"abc", "damaged"),
    "data.xls": (b"abc", "save it as xlsx"),
    "noending": (b"abc", "no ending"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_file_is_one_sentence_with_a_way_out(tmp_path, name):
    content, says = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadData) as caught:
        records(tmp_path / name)
    assert says in str(caught.value) and caught.value.do and "Traceback" not in str(caught.value)


def test_a_folder_and_a_huge_cell_are_refused(tmp_path, monkeypatch):
    with pytest.raises(BadData, match="is a folder"):
        read(tmp_path)
    for module in (tables, table_readers):
        monkeypatch.setattr(module, "MAX_CELL", 1000)
    (tmp_path / "big.jsonl").write_text(json.dumps({"question": "x" * 1001, "answer": "y"}))
    (tmp_path / "big.csv").write_text("question,answer\n" + "x" * 1200 + ",y\n")
    for name in ("big.jsonl", "big.csv"):
        with pytest.raises(BadData, match="1,0"):
            records(tmp_path / name)


def test_old_and_eastern_encodings_are_guessed(tmp_path):
    for encoding, text in (("cp1252", "Können Sie mir „morgen“ die Größe für 5 € nennen? Schöne Grüße aus Köln"),
                           ("cp1251", "Привет, как дела? " * 9),
                           ("cp1252", "Où êtes-vous situés ? Nous sommes fermés à Noël, ça va être très drôle")):
        (tmp_path / "t.txt").write_bytes(text.encode(encoding))
        assert records(tmp_path / "t.txt") == [{"text": text.strip()}]


def test_title_lines_above_a_header_and_tables_without_one(tmp_path):
    (tmp_path / "t.csv").write_text("Export vom 3. Mai;;\n;;\nNr;Frage;Antwort\n1;Wo?;Hier.\n2;Wann?;Um drei.\n", encoding="utf-8")
    assert [r["Antwort"] for r in records(tmp_path / "t.csv")] == ["Hier.", "Um drei."]
    (tmp_path / "n.csv").write_text("Where are you?,At the harbour.\nWho is there?,Nobody but me.\n")
    assert records(tmp_path / "n.csv")[0] == {"Column 1": "Where are you?", "Column 2": "At the harbour."}


@pytest.mark.parametrize("name, text", [
    ("t.csv", "".join(f'q{n},"a\n{n}"\r\n' for n in range(300))), ("u.csv", "".join(f'q{n};"ä\n{n}"\n' for n in range(300))),
    ("t.jsonl", "\n".join(json.dumps({"question": f"ü{n}", "answer": "b"}, ensure_ascii=False) for n in range(300))),
    ("t.txt", "\n\n".join(f"Absatz {n}\nzweite Zeile" for n in range(300))),
    ("t.json", json.dumps([{"question": f"ü{n}", "answer": n * 0.5} for n in range(300)])),
])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_a_walk_can_begin_at_every_mark(tmp_path, name, text, encoding):
    header = {"t.csv": "question,answer\n", "u.csv": "Frage;Antwort\n"}.get(name, "")
    (tmp_path / name).write_bytes((header + text).encode(encoding))
    table = read(tmp_path / name)
    whole = list(table.walk(table.start))
    assert len(whole) == 300
    for n in (0, 1, 77, 299):
        assert [(line, record) for _, line, record in table.walk(whole[n][0])] == [(line, record) for _, line, record in whole[n:]]


def test_a_json_list_is_read_over_the_edges_of_its_blocks(tmp_path, monkeypatch):
    from engine.data.readers import text

    monkeypatch.setattr(text, "_BLOCK", 7)
    items = [{"question": "a" * n, "answer": [n, {"x": None}, "]"]} for n in range(30)]
    (tmp_path / "t.json").write_text(json.dumps(items, indent=1))
    assert records(tmp_path / "t.json") == items
    (tmp_path / "t.json").write_text(json.dumps(items)[:-40])
    with pytest.raises(BadData, match="no valid JSON"):
        records(tmp_path / "t.json")
