"""Files that are broken, locked, or made to harm: each is one sentence, quickly, and without filling memory."""

import io
import json
import struct
import zipfile

import pytest

from engine.data.read import KINDS, read
from engine.data.shapes import load
from engine.errors import BadData
from tests.support import files


def refused(path) -> BadData:
    with pytest.raises(BadData) as caught:
        load(path)
    assert caught.value.what.count(". ") == 0 and (caught.value.do or caught.value.why), caught.value
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"PK\x03\x04" + b"\xff" * 3000, b"%PDF-1.7\n" + b"\x80" * 3000, bytes(range(256)) * 40,
                                     b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, b"From " + b"\0\xff" * 900, b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_noise_under_any_name_is_one_sentence(tmp_path, kind, content):
    (tmp_path / f"noise.{kind}").write_bytes(content)
    refused(tmp_path / f"noise.{kind}")


@pytest.mark.parametrize("kind, make", [("xlsx", files.xlsx), ("docx", files.docx),
                                        ("parquet", lambda path: files.parquet(path, [{"question": "a", "answer": "b"}])),
                                        ("pdf", lambda path: files.pdf(path, ["Some text."]))])
def test_files_that_break_off_are_refused_or_read(tmp_path, kind, make):
    """Never anything but a sentence, wherever they break off (a PDF may be mended by its reader)."""
    whole = make(tmp_path / f"whole.{kind}").read_bytes()
    for part in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / f"part.{kind}").write_bytes(whole[:int(part * len(whole))])
        try:
            load(tmp_path / f"part.{kind}")
        except BadData as problem:
            assert problem.what


@pytest.mark.parametrize("kind, member", [("xlsx", "xl/workbook.xml"), ("docx", "word/document.xml")])
def test_a_zip_bomb_is_not_opened(tmp_path, kind, member):
    with zipfile.ZipFile(tmp_path / f"bomb.{kind}", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, b" " * (96 << 20))
    assert "fill a computer" in refused(tmp_path / f"bomb.{kind}").why


def test_an_archive_that_lies_about_its_size_is_damaged(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b"<workbook/>" + b" " * 500_000)
    raw = bytearray(buffer.getvalue())
    central = raw.rindex(b"PK\x01\x02")
    raw[central + 24:central + 28] = struct.pack("<I", 100)
    (tmp_path / "liar.xlsx").write_bytes(raw)
    assert "damaged" in refused(tmp_path / "liar.xlsx").what


def test_a_locked_office_file_says_so(tmp_path):
    (tmp_path / "locked.xlsx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 4096)
    assert "password" in refused(tmp_path / "locked.xlsx").what


def test_a_locked_pdf_says_so(tmp_path):
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter()
    writer.append(PdfReader(files.pdf(tmp_path / "open.pdf", ["secret"])))
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    assert "password" in refused(tmp_path / "locked.pdf").what


@pytest.mark.parametrize("kind, member", [("docx", "word/document.xml"), ("xlsx", "xl/workbook.xml")])
def test_entities_that_multiply_are_not_resolved(tmp_path, kind, member):
    bomb = '<!DOCTYPE x [<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)) + "]><x>&a11;</x>"
    getattr(files, kind)(tmp_path / f"whole.{kind}")
    with zipfile.ZipFile(tmp_path / f"whole.{kind}") as whole, zipfile.ZipFile(tmp_path / f"bomb.{kind}", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, bomb if name == member else whole.read(name))
    refused(tmp_path / f"bomb.{kind}")


def test_names_in_an_archive_lead_nowhere(tmp_path):
    files.docx(tmp_path / "whole.docx")
    with zipfile.ZipFile(tmp_path / "whole.docx", "a") as archive:
        archive.writestr("../../escaped.txt", "x")
    assert len(load(tmp_path / "whole.docx").rows) == 3 and not list(tmp_path.parent.rglob("escaped.txt"))


def test_huge_cells_lines_and_nesting(tmp_path):
    (tmp_path / "line.jsonl").write_text('{"question": "' + "x" * 17_000_000)
    assert "Line 1" in refused(tmp_path / "line.jsonl").what
    (tmp_path / "cell.csv").write_text("question,answer\na,b\nc," + "x" * 1_100_000 + "\n")
    assert refused(tmp_path / "cell.csv").facts["line"] == 3
    (tmp_path / "deep.jsonl").write_text('{"question": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "nested too deeply" in refused(tmp_path / "deep.jsonl").why
    (tmp_path / "number.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": ' + "9" * 5000 + "}")
    assert refused(tmp_path / "number.jsonl").facts["line"] == 2
    for number, whole in enumerate(('[\n{"question": "a"},\n{"question": %s}]', '{"data": [{"question": %s}]}')):
        (tmp_path / f"{number}.json").write_text(whole % ("9" * 5000))
        assert "digits" in refused(tmp_path / f"{number}.json").why
    (tmp_path / "wide.csv").write_text("question,answer\na,b" + ",c" * 50)
    assert "cells" in refused(tmp_path / "wide.csv").why


@pytest.mark.parametrize("before", ["", "\n\n"])
@pytest.mark.parametrize("rows", [2, 20_000])
def test_a_fault_in_a_list_is_told_by_its_line(tmp_path, before, rows):
    whole = before + "[\n" + '{"question": "a", "answer": "b"},\n' * rows
    (tmp_path / "a.json").write_text(whole + '{"question": wrong}]')
    assert refused(tmp_path / "a.json").facts["line"] == whole.count("\n") + 1


@pytest.mark.parametrize("before", ["", "Q", "# a"])
@pytest.mark.parametrize("kind", ["txt", "md"])
def test_a_line_of_blanks_is_read_at_once(tmp_path, kind, before):
    """In hours, were each blank tried as the end of what stands before it."""
    (tmp_path / f"a.{kind}").write_text(f"Q: Open?\nA: Till six.\n\nQ: Sunday?\nA: No.\n{before}{' ' * 500_000}x\n")
    assert len(load(tmp_path / f"a.{kind}").rows) == 2


def test_links_that_lead_in_circles_do_not_hang(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "a.csv").write_text("question,answer\na,b\n")
    assert len(load(tmp_path / "folder").rows) >= 1


def test_reading_opens_nothing_to_write(tmp_path):
    files.xlsx(tmp_path / "a.xlsx")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    list(read(tmp_path / "a.xlsx"))
    load(tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
