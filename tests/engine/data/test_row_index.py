"""Rows are read when they are needed: what is held does not grow with what they say."""

import json
import threading
import tracemalloc

import pytest

from engine.data import shapes
from engine.data.describe import describe, show_rows
from engine.data.rows import STRIDE
from engine.data.shapes import load
from engine.data.split import split
from engine.errors import BadData
from engine.specs import DescribeData, Edit, ShowRows
from tests.support import files


def write(path, rows: int, letters: int = 0):
    with open(path, "w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("Frage,Antwort\n")
            file.writelines(f'Was ist {n}?,"Zeile {n},\n{"ü" * letters}"\n' for n in range(rows))
        else:
            file.writelines(json.dumps({"question": f"Was ist {n}?", "answer": f"Zeile {n}, {'ü' * letters}"}) + "\n" for n in range(rows))
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_every_row_is_found_by_its_number(tmp_path, name):
    rows = load(write(tmp_path / name, 3 * STRIDE + 5)).rows
    walked = [row.messages[0]["content"] for row in rows]
    assert walked == [f"Was ist {n}?" for n in range(3 * STRIDE + 5)]
    assert [rows[n].messages[0]["content"] for n in range(len(rows))] == walked
    assert [row.key for row in rows] == list(rows.keys) == [row.digest[:16] for row in rows]
    assert rows[-1] == rows[len(rows) - 1] and [r.line for r in rows[5:8]] == [rows[n].line for n in (5, 6, 7)]
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_rows_that_are_left_out_do_not_shift_the_others(tmp_path):
    records = [{"question": "" if n % 3 else f"q{n}", "answer": "a"} for n in range(600)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    rows = load(tmp_path / "t.jsonl").rows
    assert len(rows) == 200 and [rows[n].messages[0]["content"] for n in (0, 63, 64, 65, 199)] == ["q0", "q189", "q192", "q195", "q597"]


def test_the_split_is_read_lazily_and_is_the_split_of_the_rows(tmp_path):
    rows = load(write(tmp_path / "t.csv", 500)).rows
    learned, tested = split(rows, 0.1)
    plain, plain_tested = split(list(rows), 0.1)
    assert list(learned) == plain and list(tested) == plain_tested
    assert [tested[n] for n in range(len(tested))] == plain_tested and learned[300] == plain[300]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_memory_stays_bounded_however_long_the_file(tmp_path, name):
    """12,000 rows (10 MB of text): index, split and a walk hold a small part of it at any time."""
    path = write(tmp_path / name, 12_000, letters=400)
    shapes._all.read.clear()
    load(write(tmp_path / f"small{path.suffix}", 10))          # what is imported is no part of it
    tracemalloc.start()
    try:
        rows = load(path).rows
        learned, tested = split(rows, 0.1)
        assert sum(1 for _ in learned) + sum(1 for _ in tested) == 12_000
        assert rows[11_999].messages[0]["content"] == "Was ist 11999?"
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 9e6 and held < 1e6 and peak < 3.5e6


def test_a_file_is_read_once_and_anew_when_it_changes(tmp_path):
    path = write(tmp_path / "t.csv", 20)
    first = load(path)
    assert load(path).index is first.index
    write(path, 21)
    assert len(load(path).rows) == 21
    assert load(path, {"Frage": "answer", "Antwort": "question"}).rows[0].messages[1]["content"] == "Was ist 0?"


def test_a_file_that_changes_while_it_is_used_is_an_error_not_nonsense(tmp_path):
    path = files.xlsx(tmp_path / "t.xlsx")
    rows = load(path).rows
    path.write_bytes(b"PK gone")
    with pytest.raises(BadData, match="damaged"):
        rows[1]


def test_the_head_is_there_while_all_the_rest_is_being_read(tmp_path):
    """It waits for nobody, and tells of itself what the whole file tells of these rows."""
    path, head, found = write(tmp_path / "t.csv", 3000), [], []

    def watch(said, rows):
        if not head:
            reader = threading.Thread(target=lambda: head.append(describe(DescribeData(str(path), head=100))))
            reader.start()
            reader.join(30)
        found.append((said, rows))
    whole = describe(DescribeData(str(path)), watch)
    assert head[0].rows == 100 and not head[0].whole and head[0].held_out == 0 and head[0].examples == whole.examples
    assert whole.whole and whole.rows == 3000 and found[0] == ("1,000 question and answer pairs, from the columns Frage and Antwort.", 1000)
    page = show_rows(ShowRows(str(path), start=90, count=10, head=100))
    assert page.examples == show_rows(ShowRows(str(path), start=90, count=10)).examples


def test_a_head_that_is_all_is_the_whole_and_read_once(tmp_path):
    path = write(tmp_path / "t.csv", 100)
    report = describe(DescribeData(str(path), head=100))
    assert report.whole and report.held_out == 10 and load(path).index is load(path, head=100).index


def test_edits_of_rows_behind_the_head_are_no_news(tmp_path):
    path = write(tmp_path / "t.csv", 300)
    gone = [Edit("drop", [load(path).rows.key(250)])]
    shapes._all.read.clear()
    assert load(path, edits=gone, head=100).notes == [] and len(load(path, edits=gone).rows) == 299
    everything = [Edit("drop", list(load(path).rows.keys)[:100])]
    shapes._all.read.clear()
    assert len(load(path, edits=everything, head=100).rows) == 0
