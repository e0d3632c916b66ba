"""Mail: mbox and eml. A reply with what it answers is an example: the question from the mail it refers to, or from what it quotes."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Callable, Iterable, Iterator
from email.message import EmailMessage
from itertools import dropwhile
from pathlib import Path

from engine.data.readers.pages import html_text
from engine.data.table import MAX_CELL, Table, damaged, numbered

MAX_MAIL = 32 << 20                        # bytes; what is longer is an attachment with a letter in front
_WROTE = re.compile(r"^.{0,200}(?:wrote|schrieb(?:\s.{0,120})?|a écrit|escribió|ha scritto)\s?:\s*$", re.IGNORECASE)
_ORIGINAL = re.compile(r"^(?:-{2,}\s*(?:Original Message|Ursprüngliche Nachricht|Message d'origine|Weitergeleitete Nachricht|Forwarded message).*|"
                       r"_{10,})$", re.IGNORECASE)
_HEAD = re.compile(r"^(?:From|Sent|To|Cc|Subject|Von|Gesendet|An|Betreff|Datum|Date|De|Envoyé|À|Objet)\s?: ", re.IGNORECASE)
Mails = Callable[[], Iterable[tuple[int, EmailMessage]]]


def read_mbox(path: Path) -> Table:
    """A mailbox of any size: read twice, letter by letter."""
    with path.open("rb") as file:
        if not file.read(5) == b"From ":
            raise damaged(path, "a mailbox begins with the word “From”")
    return mail_table(path, "mbox", lambda: _letters(path))


def read_eml(path: Path) -> Table:
    """One letter: an example if it answers one that it quotes."""
    return mail_table(path, "eml", lambda: [(1, _parse(path.read_bytes()[:MAX_MAIL]))])


def mail_folder(path: Path, files: list[Path]) -> Table:
    """Letters that lie in one folder belong together."""
    return mail_table(path, "mail", lambda: ((n, _parse(file.read_bytes()[:MAX_MAIL])) for n, file in enumerate(files, 1)))


def mail_table(path: Path, kind: str, mails: Mails) -> Table:
    """Replies as records with question and answer; letters that answer nothing are records without question."""
    def records() -> Iterator[tuple[int, dict]]:
        wanted = {reference for _, mail in mails() if (reference := _id(mail, "in-reply-to"))}
        asked: dict[str, str] = {}
        for number, mail in mails():
            own, quoted = parts_of(_body(mail))
            if (id := _id(mail, "message-id")) in wanted:
                asked[id] = own[:MAX_CELL // 10]
            question = asked.get(_id(mail, "in-reply-to")) or parts_of(quoted)[0]
            yield number, {"question": question, "answer": own}
    return Table(path, kind, ["question", "answer"], numbered(records), known={"question": "question", "answer": "answer"})


def _id(mail: EmailMessage, header: str) -> str:
    """The first name of a letter in a header, taken as it stands: Python's own parser fails at odd ones."""
    found = re.search(r"<[^<>\s]+>", next((str(value) for name, value in mail.raw_items() if name.lower() == header), ""))
    return found[0] if found else ""


def _letters(path: Path) -> Iterator[tuple[int, EmailMessage]]:
    start, lines, size = 1, [], 0
    with path.open("rb") as file:
        blank = True
        for number, line in enumerate(file, 1):
            if blank and line.startswith(b"From "):
                if lines:
                    yield start, _parse(b"".join(lines))
                start, lines, size = number, [], 0
            elif size < MAX_MAIL:
                lines.append(line[1:] if line.startswith(b">From ") else line)
                size += len(line)
            blank = not line.strip()
    if lines:
        yield start, _parse(b"".join(lines))


def _parse(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def _body(mail: EmailMessage) -> str:
    """The letter's own words: its plain text, else the words of its HTML; nothing if it cannot be decoded."""
    try:
        part = mail.get_body(("plain", "html"))
        text = part.get_content() if part is not None else None
        is_html = part is not None and part.get_content_subtype() == "html"
    except (LookupError, ValueError, KeyError, AttributeError, UnicodeError):
        return ""                          # an unknown encoding, a damaged part: no words
    if not isinstance(text, str):
        return ""
    return (html_text(text) if is_html else text).replace("\r\n", "\n")


def parts_of(body: str) -> tuple[str, str]:
    """(what the writer says, what is quoted): marks of quotation, the line above them and the signature are left out."""
    own, quoted, lines = [], [], body.split("\n")
    last_quoted = max((number for number, line in enumerate(lines) if line.startswith(">")), default=-1)
    for number, line in enumerate(lines):
        if line.startswith(">"):
            quoted.append(re.sub(r"^> ?", "", line))
        elif _ORIGINAL.match(line.strip()) or _HEAD.match(line) and sum(bool(_HEAD.match(after)) for after in lines[number:number + 5]) >= 3:
            quoted += dropwhile(lambda line: not line.strip() or _HEAD.match(line) or _ORIGINAL.match(line.strip()), lines[number:])
            break
        elif line.rstrip("\r") in ("-- ", "--"):
            own.append("")
            if number > last_quoted:
                break
        else:
            own.append(line)
    text = "\n".join(own)
    kept = [paragraph for paragraph in re.split(r"\n{2,}", text) if not _WROTE.match(" ".join(paragraph.split()))]
    kept = ["\n".join(line for line in paragraph.split("\n") if not _WROTE.match(line.strip())) for paragraph in kept]
    return "\n\n".join(part.strip() for part in kept if part.strip()), "\n".join(quoted).strip()
