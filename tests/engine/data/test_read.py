"""Files as people have them: encodings, separators, and every way of being wrong, each with a way out."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import read as reading
from engine.data.read import read
from engine.errors import BadData

RECORDS = [{"Frage": "Wann geöffnet?", "Antwort": "Täglich; außer „Montag“"}, {"Frage": "Größe, bitte", "Antwort": "Straße\nzwei"}]


def csv_text(delimiter: str) -> str:
    rows = [list(RECORDS[0]), *(list(r.values()) for r in RECORDS)]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_any_encoding_and_separator_gives_the_same_records(tmp_path, encoding, delimiter):
    file = tmp_path / "data.csv"
    file.write_bytes(csv_text(delimiter).encode(encoding))
    assert read(file).records == RECORDS


@pytest.mark.parametrize("name, text", [
    ("a.json", json.dumps(RECORDS)), ("b.jsonl", "\n".join(map(json.dumps, RECORDS))), ("c.json", json.dumps({"data": RECORDS})),
    ("d.json", "\n".join(map(json.dumps, RECORDS))), ("e.jsonl", json.dumps(RECORDS, indent=1)),
])
def test_json_in_all_its_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read(tmp_path / name).records == RECORDS


cells = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=6))
def test_what_was_written_is_read(tmp_path, rows):
    text = "q,a\n" + "".join(",".join('"' + c.strip().replace('"', '""') + '"' for c in row) + "\n" for row in rows)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert [tuple(r.values()) for r in read(tmp_path / "t.csv").records] == [tuple(c.strip() for c in row) for row in rows]


def test_paragraphs_of_plain_text_know_their_lines(tmp_path):
    (tmp_path / "t.txt").write_text("one\ntwo\n\n\nthree\n")
    table = read(tmp_path / "t.txt")
    assert [r["text"] for r in table.records] == ["one\ntwo", "three"] and table.lines == [1, 5]


WRONG = {
    "missing.csv": (None, "does not exist"),
    "empty.csv": (b"", "is empty"),
    "blank.txt": (b"  \n\n ", "is empty"),
    "header.csv": (b"question,answer\n", "no examples"),
    "excel.csv": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00", "office or zip file"),
    "text.pdf": (b"%PDF-1.4 abc", "PDF"),
    "noise.txt": (bytes(range(256)) * 4, "not a text file"),
    "half.txt": (b"\xff\xfea\x00b\x00c", "damaged"),
    "quote.csv": (b'question,answer\n"never closed,b\nc,d\n', "quotation mark"),
    "wide.csv": (b"question,answer\na,b,c\n", "3 cells"),
    "twice.csv": (b"a,a\n1,2\n", "both named"),
    "broken.json": (b'[{"a": 1},\n{"b": ]', "Line 2"),
    "broken.jsonl": (b'{"a": "b"}\n{"a": \n', "Line 2"),
    "numbers.json": (b"[1, 2]", "single value"),
    "string.json": (b'"hello"', "no list"),
    "deep.json": (b"[" * 200_000, "Line 1"),
    "data.docx": (b"abc", ".docx"),
    "noending": (b"abc", "no ending"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_file_is_one_sentence_with_a_way_out(tmp_path, name):
    content, says = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadData) as caught:
        read(tmp_path / name)
    assert says in str(caught.value) and caught.value.do and "Traceback" not in str(caught.value)


def test_a_folder_and_a_huge_cell_are_refused(tmp_path, monkeypatch):
    with pytest.raises(BadData, match="is a folder"):
        read(tmp_path)
    monkeypatch.setattr(reading, "MAX_CELL", 1000)
    (tmp_path / "big.jsonl").write_text(json.dumps({"question": "x" * 1001, "answer": "y"}))
    (tmp_path / "big.csv").write_text("question,answer\n" + "x" * 1200 + ",y\n")
    for name in ("big.jsonl", "big.csv"):
        with pytest.raises(BadData, match="1,0"):
            read(tmp_path / name)
