"""Files as people have them, made by code: office files, mailboxes, chat exports, a PDF."""

from __future__ import annotations

import json
from pathlib import Path

PAIRS = [("Wann öffnen Sie?", "Um sieben Uhr, jeden Tag."), ("Was kostet ein Brot?", "Ein Brot kostet 3,50 Euro."),
         ("Liefern Sie auch?", "Ja, am Mittwoch und am Freitag.")]

WHATSAPP_ANDROID = """\
12.03.24, 09:58 - Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.
12.03.24, 10:00 - Kundin Müller: Guten Morgen!
12.03.24, 10:01 - Kundin Müller: Wann öffnen Sie?
12.03.24, 10:05 - Bäckerei: Um sieben Uhr,
jeden Tag.
12.03.24, 10:06 - Kundin Müller: <Medien ausgeschlossen>
13.03.24, 18:00 - Kundin Müller: Was kostet ein Brot?
13.03.24, 18:02 - Bäckerei: Ein Brot kostet 3,50 Euro.
14.03.24, 18:02 - Bäckerei: Heute haben wir Rosinenbrot.
"""
WHATSAPP_IPHONE = """\
[3/12/24, 9:58:01 AM] Bakery: \u200eMessages and calls are end-to-end encrypted.
[3/12/24, 10:00:12 AM] Ann: When do you open?
[3/12/24, 10:05:40 AM] Bakery: At seven.
[3/13/24, 6:00:00 PM] Ann: What is a loaf?
[3/13/24, 6:01:00 PM] Bakery: $3.50
\u200e[3/13/24, 6:02:00 PM] Ann: \u200eimage omitted
"""
TELEGRAM_COPIED = "Ann, [12.03.2024 10:00]\nWhen do you open?\n\nBakery, [12.03.2024 10:01]\nAt seven.\n\nAnn, [12.03.2024 10:02]\nThanks!\n" \
                  "\nBakery, [12.03.2024 10:03]\nYou are welcome.\n"


def xlsx(path: Path, pairs=PAIRS, header=("Nr.", "Frage", "Antwort")) -> Path:
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.title = "Fragen"
    sheet.append(["Kundenfragen 2024"])
    sheet.append(list(header))
    for number, pair in enumerate(pairs, 1):
        sheet.append([number, *pair])
    other = book.create_sheet("Preise")
    other.append(["Ware", "Preis"])
    other.append(["Brot", 3.5])
    book.save(path)
    return path


def docx(path: Path, how: str = "headings") -> Path:
    import docx as word

    document = word.Document()
    if how == "table":
        table = document.add_table(1, 2)
        for cell, name in zip(table.rows[0].cells, ("Frage", "Antwort")):
            cell.text = name
        for pair in PAIRS:
            for cell, text in zip(table.add_row().cells, pair):
                cell.text = text
    elif how == "headings":
        document.add_heading("Fragen und Antworten", 0)
        for question, answer in PAIRS:
            document.add_heading(question, 1)
            document.add_paragraph(answer)
    elif how == "labels":
        for question, answer in PAIRS:
            document.add_paragraph(f"Frage: {question}")
            document.add_paragraph(f"Antwort: {answer}")
    else:
        document.add_heading("Die Bäckerei", 1)
        document.add_paragraph("Unsere Bäckerei steht seit 1897 am Hafen.")
        document.add_heading("Das Brot", 1)
        document.add_paragraph("Das Brot backen wir nachts.")
    document.save(path)
    return path


def pdf(path: Path, lines: list[str]) -> Path:
    """One page of Helvetica, written by hand."""
    text = "BT /F1 12 Tf 72 720 Td 14 TL " + " ".join(f"({line.replace('(', '[').replace(')', ']')}) Tj T*" for line in lines) + " ET"
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
               "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
               f"<< /Length {len(text)} >>\nstream\n{text}\nendstream", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    body += f"xref\n0 6\n0000000000 65535 f \n{table}trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    path.write_bytes(body.encode("latin-1"))
    return path


def parquet(path: Path, records: list[dict], rows: int = 100) -> Path:
    import pyarrow
    from pyarrow import parquet as format

    format.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=rows)
    return path


def chatgpt(path: Path) -> Path:
    def node(id, parent, role, text, children=()):
        return {"id": id, "parent": parent, "children": list(children),
                "message": role and {"author": {"role": role}, "recipient": "all", "content": {"content_type": "text", "parts": [text]}}}
    mapping = {"root": node("root", None, None, "", ["s"]), "s": node("s", "root", "system", "", ["q"]),
               "q": node("q", "s", "user", "Wann öffnen Sie?", ["old", "new"]), "old": node("old", "q", "assistant", "Keine Ahnung."),
               "new": node("new", "q", "assistant", "Um sieben.", ["t"]), "t": node("t", "new", "user", "Danke!", ["w"]),
               "w": node("w", "t", "assistant", "Gern.")}
    path.write_text(json.dumps([{"title": "Shop", "current_node": "w", "mapping": mapping}, {"title": "Empty", "mapping": {}}]), encoding="utf-8")
    return path


def telegram(path: Path) -> Path:
    messages = [{"id": n, "type": "message", "date": f"2024-03-1{2 + n // 2}T10:0{n}:00", "from": "Ann" if n % 2 == 0 else "Bakery",
                 "text": text if n else ["When do you ", {"type": "bold", "text": "open"}, "?"]}
                for n, text in enumerate(["", "At seven.", "And on Sunday?", "We are closed."])]
    path.write_text(json.dumps({"name": "Ann", "type": "personal_chat", "id": 1, "messages": [{"type": "service", "action": "call"}, *messages]}))
    return path


MBOX = """\
From ann@example.com Mon Mar 11 10:00:00 2024
From: Ann <ann@example.com>
To: shop@example.com
Subject: Opening
Message-ID: <1@example.com>
Content-Type: text/plain; charset=utf-8

Hello,
when do you open?

--\x20
Ann

From shop@example.com Mon Mar 11 11:00:00 2024
From: Shop <shop@example.com>
Subject: Re: Opening
Message-ID: <2@example.com>
In-Reply-To: <1@example.com>
Content-Type: text/plain; charset=utf-8

We open at seven.
>From Monday on at six.

On Mon, 11 Mar 2024 Ann wrote:
> Hello,
> when do you open?

From shop@example.com Mon Mar 11 12:00:00 2024
From: Shop <shop@example.com>
Subject: =?utf-8?q?Re=3A_Br=C3=B6tchen?=
Message-ID: <3@example.com>
In-Reply-To: <lost@example.com>
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<html><head><style>p {}</style></head><body><p>Ein Br=C3=B6tchen kostet 50 Cent.</p>
<blockquote>Was kostet ein Br=C3=B6tchen?</blockquote></body></html>
"""
EML = """\
From: shop@example.com
Subject: AW: Lieferung
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: 8bit

Ja, am Mittwoch. Schöne Grüße

-----Ursprüngliche Nachricht-----
Von: Kundin
Gesendet: Montag
An: Shop
Betreff: Lieferung

Liefern Sie auch?
"""
