"""Archives and pages made to harm: refused in a sentence, or passed over; nothing is written anywhere, and time grows with the file."""

import io
import struct
import tracemalloc
import zipfile

import pytest

from engine.data.readers import archive
from engine.data.readers.pages import html_text
from engine.data.shapes import load
from engine.errors import BadData

CSV = "question,answer\nWhere?,Here.\n"


def refused(path) -> BadData:
    with pytest.raises(BadData) as caught:
        load(path)
    assert caught.value.what.count(". ") == 0 and (caught.value.do or caught.value.why), caught.value
    return caught.value


def packed(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def test_a_bomb_is_not_opened(tmp_path):
    assert "fill a computer" in refused(packed(tmp_path / "bomb.zip", ("a.csv", CSV), ("b.txt", b" " * (96 << 20)))).why


def test_too_many_files_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 50)
    refused(packed(tmp_path / "many.zip", *((f"{n}.csv", CSV) for n in range(60))))


def test_what_is_never_read_may_be_large(tmp_path):
    """A chat's films are no reason to refuse its words."""
    path = packed(tmp_path / "chat.zip", ("a.csv", CSV), ("film.mp4", b"\0" * (96 << 20)))
    tracemalloc.start()
    assert len(load(path).rows) == 1
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


def test_archives_in_archives_are_passed_over_or_refused(tmp_path):
    inner = packed(tmp_path / "inner.zip", ("a.csv", CSV)).read_bytes()
    assert "archive inside an archive" in refused(packed(tmp_path / "outer.zip", ("inner.zip", inner))).why
    data = load(packed(tmp_path / "both.zip", ("inner.zip", inner), ("a.csv", CSV)))
    assert len(data.rows) == 1 and any("archive inside an archive" in note for note in data.notes)


@pytest.mark.parametrize("name", ["../../escaped.csv", "/tmp/escaped.csv", "C:\\escaped.csv", "..\\escaped.csv", "a/../../escaped.csv"])
def test_names_that_lead_away_are_passed_over(tmp_path, name):
    info = zipfile.ZipInfo("x")
    info.filename = name
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("good.csv", CSV)
        made.writestr(info, CSV)
    before = sorted(tmp_path.rglob("*"))
    data = load(tmp_path / "a.zip")
    assert len(data.rows) == 1 and any("leads out of the archive" in note for note in data.notes) and sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob("escaped.csv"))


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret.csv").write_text("question,answer\nsecret,secret\n")
    link = zipfile.ZipInfo("link.csv")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(link, str(tmp_path / "secret.csv"))
        made.writestr("good.csv", CSV)
    rows = load(tmp_path / "a.zip").rows
    assert [row.messages[0]["content"] for row in rows] == ["Where?"]


def test_an_archive_that_lies_about_sizes_or_sums_or_is_locked_is_a_sentence(tmp_path):
    whole = packed(tmp_path / "whole.zip", ("a.csv", CSV * 4000)).read_bytes()
    central = whole.rindex(b"PK\x01\x02")
    lies = {"short": (24, struct.pack("<I", 100)), "sum": (16, b"\1\2\3\4"), "locked": (8, struct.pack("<H", 1)),
            "method": (10, struct.pack("<H", 9)),
            "lzma": (10, struct.pack("<H", 14))}
    for name, (at, value) in lies.items():
        raw = bytearray(whole)
        raw[central + at:central + at + len(value)] = value
        (tmp_path / f"{name}.zip").write_bytes(raw)
        refused(tmp_path / f"{name}.zip")
    for part in (0.2, 0.6, 0.95):
        (tmp_path / "part.zip").write_bytes(whole[:int(part * len(whole))])
        refused(tmp_path / "part.zip")


def test_an_office_file_inside_an_archive_is_looked_at_as_carefully(tmp_path):
    inner = io.BytesIO()
    packed(inner, ("xl/workbook.xml", b" " * (96 << 20)))
    problem = refused(packed(tmp_path / "a.zip", ("bomb.xlsx", inner.getvalue()), method=zipfile.ZIP_STORED))
    assert "bomb.xlsx" in problem.why


def test_a_damaged_file_inside_is_passed_over(tmp_path):
    data = load(packed(tmp_path / "a.zip", ("bad.xlsx", b"PK\x03\x04noise"), ("bad.json", "[{"), ("good.csv", CSV)))
    assert len(data.rows) == 1 and sum("passed over" in note for note in data.notes) == 2


@pytest.mark.parametrize("hostile", ["<!--", "<", "<a ", "<a '", "&#", "<!", "<![CDATA[", "<script></scrip",
                                     "<div>", "<table><tr><td>", "<b><p>", "\0a"])
def test_pages_that_make_parsers_slow_are_read_at_once(hostile):
    """A hundred thousand of each; Python's own parser takes minutes for some, and a deep tree overflows others."""
    html_text(hostile * 100_000)


def test_entities_do_not_multiply_on_a_page():
    bomb = '<!DOCTYPE x [<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)) + "]><p>&a11;</p>"
    assert len(html_text(bomb)) < 10_000
