"""Zips and pages as people have them: exports of chats, folders sent by mail, tables and questions that a browser saved."""

import json
import zipfile

import psutil
import pytest

from engine.data.describe import describe
from engine.data.readers.pages import html_text
from engine.data.shapes import load
from engine.errors import BadData
from engine.specs import DescribeData
from tests.support import files


def packed(path, members):
    """A zip of name → text, bytes or the file that a maker writes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if callable(content):
                content = content(path.parent / f"member{len(name)}.{name.split('.')[-1]}").read_bytes()
            archive.writestr(name, content)
    return path


def chats_of(path, **roles):
    return [[(m["role"], m["content"]) for m in row.messages] for row in load(path, **roles).rows]


PAIRS = [[("user", question), ("assistant", answer)] for question, answer in files.PAIRS]
ROWS = "".join(f"<tr><td>{n}<td>{q}<td>{a}" for n, (q, a) in enumerate(files.PAIRS))


# --- zip ---------------------------------------------------------------------------------------

def test_a_chatgpt_export_is_read_from_its_zip(tmp_path):
    path = packed(tmp_path / "export.zip", {
        "conversations.json": files.chatgpt, "chat.html": "<html><body><script>var jsonData = [{}]</script></body></html>",
        "user.json": json.dumps({"id": "user-1", "email": "a@example.org"}), "message_feedback.json": "[]", "dalle/picture.webp": b"RIFF\0"})
    data = load(path)
    assert [m["content"] for m in data.rows[0].messages] == ["Wann öffnen Sie?", "Um sieben.", "Danke!", "Gern."]
    assert data.sentence == "1 conversation, in which assistant answers."


def test_files_beside_a_chat_are_not_guessed_to_be_examples(tmp_path):
    projects = [{"uuid": str(n), "title": f"This is project {n}", "about": f"It is about the matter {n}."} for n in range(5)]
    data = load(packed(tmp_path / "claude.zip", {"conversations.json": files.chatgpt, "projects.json": json.dumps(projects)}))
    assert len(data.rows) == 1 and any("beside a chat" in note for note in data.notes)


@pytest.mark.parametrize("name, text", [("_chat.txt", files.WHATSAPP_IPHONE), ("WhatsApp Chat mit Bäckerei.txt", files.WHATSAPP_ANDROID)])
def test_a_whatsapp_export_is_read_from_its_zip(tmp_path, name, text):
    path = packed(tmp_path / "WhatsApp Chat.zip", {name: text, "00000012-PHOTO-2024.jpg": b"\xff\xd8\xff" * 50})
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert chats_of(path) == chats_of(tmp_path / name) and any("00000012" in note for note in load(path).notes)


def test_every_kind_of_file_is_read_inside_a_zip_as_outside(tmp_path):
    """The same rows, from the beginning and from the middle."""
    records = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(200)]
    made = {"a.xlsx": files.xlsx, "b.docx": files.docx, "c.pdf": lambda p: files.pdf(p, ["Q: Where?", "A: Here.", "Q: When?", "A: Now."]),
            "d.parquet": lambda p: files.parquet(p, records), "e.csv": lambda p: _csv(p, records), "f.jsonl": lambda p: _jsonl(p, records),
            "g.mbox": lambda p: _text(p, files.MBOX), "h.md": lambda p: _text(p, "# Where?\n\nHere.\n\n# When?\n\nNow.\n"),
            "i.html": lambda p: _text(p, f"<table><tr><th>Nr<th>Frage<th>Antwort{ROWS}</table>")}
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, make in made.items():
        make(outside / name)
    path = packed(tmp_path / "all.zip", {f"deep/{name}": (outside / name).read_bytes() for name in made})
    inside, plain = load(path).rows, None
    keys = [row.messages for row in inside]
    assert keys[-1] == inside[len(inside) - 1].messages and inside[250].messages == keys[250]
    plain = [row.messages for row in load(outside).rows]
    assert keys == plain and len(plain) > 600


def test_a_zip_in_a_folder_is_one_of_its_files(tmp_path):
    (tmp_path / "folder").mkdir()
    packed(tmp_path / "folder" / "a.zip", {"a.csv": "question,answer\nWhere?,Here.\n"})
    (tmp_path / "folder" / "b.csv").write_text("question,answer\nWhen?,Now.\n")
    assert [chat[0][1] for chat in chats_of(tmp_path / "folder")] == ["Where?", "When?"]


def _csv(path, records):
    return _text(path, "question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in records))


def _jsonl(path, records):
    return _text(path, "".join(json.dumps(r) + "\n" for r in records))


def _text(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# --- html --------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", [
    f"<head><title>x</title><style>p{{}}</style></head><body><p>Prices</p><table><tr><th>Nr<th>Frage<th>Antwort</tr>{ROWS}</table></body></html>",
    "".join(f"<h2>{q}</h2><p>{a}</p>" for q, a in files.PAIRS),
    "<dl>" + "".join(f"<dt>{q}<dd>{a}" for q, a in files.PAIRS) + "</dl>",
    "".join(f"<details><summary>{q}</summary>{a}</details>" for q, a in files.PAIRS),
    "".join(f"<p><b>Frage:</b> {q}</p>\n<p><b>Antwort:</b> {a}<br></p>" for q, a in files.PAIRS)])
def test_questions_on_a_page_are_found_however_they_stand_there(tmp_path, page):
    assert chats_of(_text(tmp_path / "faq.html", page)) == PAIRS


def test_a_page_without_questions_is_its_words(tmp_path):
    _text(tmp_path / "a.htm", "<nav>Home</nav><h1>The bakery</h1><p>It stands by the <b>harbour</b>&nbsp;&amp; smells.<script>alert(1)</script>"
          "<p>Come in!<h1>The bread</h1><pre>rye\n  wheat</pre>")
    assert [row[0][1] for row in chats_of(tmp_path / "a.htm")] == ["The bakery\n\nIt stands by the harbour & smells.\n\nCome in!",
                                                                   "The bread\n\nrye\n  wheat"]


def test_a_page_that_a_program_fills_says_so(tmp_path):
    with pytest.raises(BadData, match="has no text"):
        load(_text(tmp_path / "a.html", "<html><body><div id=app></div><script>draw('text')</script></body></html>"))


def test_a_telegram_page_is_a_chat(tmp_path):
    def message(who, text, clock):
        name = f'<div class="from_name">{who}</div>' if who else ""
        return (f'<div class="message default clearfix{"" if who else " joined"}"><div class="body"><div class="pull_right date details" '
                f'title="12.03.2024 {clock}:00 UTC+01:00">{clock}</div>{name}<div class="text">{text}</div></div></div>')
    page = "".join(('<div class="message service"><div class="body details">12 March 2024</div></div>',
                    message("Ann", "When do you<br>open?", "10:00"),
                    message("Bakery", "At seven.", "10:01"), message("", "Every <b>day</b>.", "10:02"), message("Ann", "Thanks!", "20:00"),
                    message("Bakery", "Gern.", "20:01")))
    path = _text(tmp_path / "messages.html", f"<html><body><div class=history>{page}</div></body></html>")
    assert chats_of(path, roles={"Bakery": "assistant", "Ann": "user"}) == [
        [("user", "When do you\nopen?"), ("assistant", "At seven.\nEvery day.")], [("user", "Thanks!"), ("assistant", "Gern.")]]


def test_a_page_says_how_it_is_written(tmp_path):
    page = "<meta charset=windows-1251><h1>Где?</h1><p>Здесь.</p><h1>Когда?</h1><p>Сейчас.</p>"
    (tmp_path / "a.html").write_bytes(page.encode("cp1251"))
    assert chats_of(tmp_path / "a.html")[0] == [("user", "Где?"), ("assistant", "Здесь.")]


def test_a_zip_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")
    (tmp_path / "a.zip").write_bytes(b"PK")
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(BadData, match="cannot be opened. Permission denied.? Check that you may read it"):
        load(tmp_path / "a.zip")


@pytest.mark.parametrize("charset", ["undefined", "idna", "hex", "klingon"])
def test_an_encoding_that_is_none_for_pages_is_not_believed(tmp_path, charset):
    page = f"<meta charset={charset}><h1>Où ?</h1><p>Là-bas, à côté.</p><h1>Et après ?</h1><p>Là aussi, dès l'été.</p>"
    (tmp_path / "a.html").write_bytes(page.encode("latin-1"))
    assert chats_of(tmp_path / "a.html")[0] == [("user", "Où ?"), ("assistant", "Là-bas, à côté.")]


def test_the_words_of_a_mail_keep_what_it_quotes_apart():
    assert html_text("<style>x</style><p>Yes,<br>we do.</p><blockquote><p>Do you&nbsp;deliver?</p></blockquote><p>Bye") == \
        "Yes,\nwe do.\n> Do you deliver?\nBye"


def test_a_report_of_a_zip_is_one_of_many_files(tmp_path):
    path = packed(tmp_path / "a.zip", {"a.csv": "question,answer\na,b\n", "b.csv": "question,answer\nc,d\n"})
    assert describe(DescribeData(str(path), holdout=0)).files == 2


def test_a_zip_is_open_only_while_it_is_read(tmp_path):
    """Its owner can write it anew while its examples are kept at hand: some systems do not let an open file be replaced."""
    path = tmp_path / "both.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.csv", "b.csv"):
            archive.writestr(name, "question,answer\n" + "".join(f"{name} {n}?,It is {n}.\n" for n in range(300)))
    is_open = lambda: str(path) in {file.path for file in psutil.Process().open_files()}       # noqa: E731
    rows = load(path).rows
    assert not is_open()
    one, two = iter(rows), rows.from_(400)
    assert [next(two).messages[0]["content"], next(one).messages[0]["content"]] == ["b.csv 100?", "a.csv 0?"] and is_open()
    one.close()
    assert next(two).messages[0]["content"] == "b.csv 101?" and is_open()
    two.close()
    assert not is_open() and rows[599].messages[0]["content"] == "b.csv 299?" and not is_open()
