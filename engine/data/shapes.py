"""Records to rows: recognise what the columns mean and turn every record into chat messages.

A shape is told from the column names alone, in English and German, whatever their case, umlauts or spaces. The result
is always the same: rows of ``{"role": system | user | assistant, "content": text}``, or one ``{"role": "text"}`` for plain text.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.data.read import Table, read
from engine.errors import BadData


@dataclass(frozen=True)
class Row:
    """One example as chat messages; ``line`` is where it stands in its file."""

    messages: tuple[dict, ...]
    line: int

    @property
    def digest(self) -> str:
        """SHA-256 of the content: the row's identity, wherever it stands."""
        return hashlib.sha256(json.dumps(self.messages, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


@dataclass
class Dataset:
    """A file understood. ``roles``: column → role; ``notes``: what was left out and why, in sentences."""

    path: Path
    shape: str
    sentence: str
    columns: list[str]
    roles: dict[str, str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """SHA-256 over all rows in order: the identity of the data."""
        return hashlib.sha256("".join(row.digest for row in self.rows).encode()).hexdigest()


def fold(name: str) -> str:
    """The form under which names are compared: no case, accents, umlaut spelling, spaces or punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if c.isalnum())
    return re.sub(r"([aou])e", r"\1", plain)   # Lösung, Loesung, losung: one name (applied to both sides, so harmless elsewhere)


def _names(text: str) -> frozenset[str]:
    return frozenset(fold(word) for word in text.split(","))


@dataclass(frozen=True)
class _Pair:
    shape: str
    noun: str
    question: frozenset[str]
    answer: frozenset[str]


_PAIRS = (
    _Pair("instruction/output", "instructions with their answers", _names("instruction,instructions,task,anweisung,aufgabe,auftrag"),
          _names("output,response,answer,completion,target,ausgabe,antwort,ergebnis,lösung,ziel")),
    _Pair("prompt/completion", "prompts with their completions", _names("prompt,eingabe,vorgabe"),
          _names("completion,response,output,answer,chosen answer,ergänzung,fortsetzung,ausgabe,antwort")),
    _Pair("user/assistant", "messages with their replies",
          _names("user,human,customer,client,kunde,kundin,nutzer,benutzer,mensch,mail,email,message,nachricht,anfrage"),
          _names("assistant,bot,gpt,model,agent,support,reply,assistent,verkäufer,shop,we,wir,reply text,antwort,answer,response")),
    _Pair("question/answer", "question and answer pairs", _names("question,questions,q,query,request,problem,frage,fragen,f,thema,input,text in"),
          _names("answer,answers,a,response,solution,output,reply,antwort,antworten,lösung,ausgabe,text out")),
    _Pair("text/label", "texts with their labels", _names("text,sentence,content,satz,inhalt"),
          _names("label,class,category,sentiment,klasse,kategorie,etikett")),
)
_CONTEXT = _names("input,context,background,eingabe,kontext,hintergrund,zusatz")
_SYSTEM = _names("system,system prompt,systemprompt,role description,systemanweisung,rolle")
_MESSAGES = _names("messages,conversations,conversation,chat,dialog,dialogue,turns,nachrichten,gespräch,unterhaltung")
_TEXT = _names("text,content,document,body,story,paragraph,inhalt,dokument,absatz,geschichte")
_CHOSEN = _names("chosen,preferred,bevorzugt,gewählt")
_REJECTED = _names("rejected,dispreferred,abgelehnt,verworfen")
_SPEAKERS = {**dict.fromkeys(_names("user,human,customer,prompter,kunde,nutzer,benutzer,mensch"), "user"),
             **dict.fromkeys(_names("assistant,gpt,bot,model,ai,chatgpt,agent,assistent"), "assistant"),
             **dict.fromkeys(_names("system,developer"), "system")}
EXPECTED = ("question and answer (or Frage and Antwort), instruction and output, prompt and completion, user and assistant, "
            "messages, conversations, or text")


def load(path: Path | str) -> Dataset:
    """Read a file and understand it. Raises `BadData` when nothing can be learned from it."""
    return understand(read(path))


def understand(table: Table) -> Dataset:
    """Give the columns their meaning and make rows. Raises `BadData`: unknown columns, preference pairs, no usable row."""
    by_fold = {}
    for column in table.columns:
        by_fold.setdefault(fold(column), column)

    def find(names: frozenset[str], but: str | None = None) -> str | None:
        return next((column for key, column in by_fold.items() if key in names and column != but), None)

    chosen, rejected = find(_CHOSEN), find(_REJECTED)
    if chosen and rejected:
        raise BadData(f"The file {table.path.name} holds preferences, not examples.",
                      f"Learning from “{chosen}” against “{rejected}” is not supported yet.",
                      "To learn the preferred answers, remove the other column and name the first one “answer”.", columns=table.columns)
    if messages := find(_MESSAGES):
        first = next((r[messages] for r in table.records if isinstance(r.get(messages), list) and r[messages]), None)
        if first is not None:
            sharegpt = isinstance(first[0], dict) and "from" in first[0]
            return _build(table, "conversations" if sharegpt else "messages", "conversations", {messages: "messages"}, _conversation(messages))
    question, answer, shape, noun = _pair(find)
    if question and answer:
        context, system = find(_CONTEXT, but=question), find(_SYSTEM)
        context = None if context == answer else context
        roles = {c: r for c, r in ((question, "question"), (context, "context"), (answer, "answer"), (system, "system")) if c}
        if context and shape == "instruction/output":
            shape = "instruction/input/output"
        return _build(table, shape, noun, roles, _asked(question, answer, context, system))
    text = find(_TEXT)
    if text and len(table.columns) <= 2:
        return _build(table, "plain text", "texts", {text: "text"}, _plain(text))
    found = ", ".join(f"“{c}”" for c in table.columns[:8]) + (" …" if len(table.columns) > 8 else "")
    half = next((c for c in (question, answer) if c), None)
    raise BadData(f"The columns of {table.path.name} are not understood.",
                  f"Found {found}" + (f"; the partner of “{half}” is missing." if half else "."),
                  f"Name them in the first line: {EXPECTED}.", columns=table.columns, path=str(table.path))


def _pair(find) -> tuple[str | None, str | None, str, str]:
    for pair in _PAIRS:
        question = find(pair.question)
        answer = find(pair.answer, but=question)
        if question and answer:
            return question, answer, pair.shape, pair.noun
    pairs = _PAIRS[:-1]                    # an odd couple, e.g. Prompt and Antwort
    question = find(frozenset().union(*(p.question for p in pairs)))
    answer = find(frozenset().union(*(p.answer for p in pairs)), but=question)
    return question, answer, "question/answer", "question and answer pairs"


class _LeftOut(Exception):
    """Why one record is not a row; the text completes "3 rows were left out because …"."""


def _build(table: Table, shape: str, noun: str, roles: dict[str, str], convert) -> Dataset:
    rows, reasons, where = [], Counter(), {}
    for line, record in zip(table.lines, table.records):
        try:
            rows.append(Row(tuple(convert(record)), line))
        except _LeftOut as reason:
            reasons[str(reason)] += 1
            where.setdefault(str(reason), line)
    notes = table.notes + [f"{count} {'row was' if count == 1 else 'rows were'} left out because {reason} (first: line {where[reason]})."
                           for reason, count in reasons.most_common()]
    if not rows:
        raise BadData(f"No row of {table.path.name} can be used.", " ".join(notes), "Fill in the missing parts and try again.",
                      columns=table.columns, path=str(table.path))
    columns = " and ".join([", ".join(list(roles)[:-1]), list(roles)[-1]]) if len(roles) > 1 else next(iter(roles))
    noun = noun if len(rows) != 1 else {"conversations": "conversation", "texts": "text"}.get(noun, noun.replace("pairs", "pair"))
    sentence = f"{len(rows):,} {noun}, from the column{'s' if len(roles) > 1 else ''} {columns}."
    if table.path.suffix.lower() == ".txt":
        sentence = f"{len(rows):,} paragraph{'s' if len(rows) > 1 else ''} of plain text."
    return Dataset(table.path, shape, sentence, table.columns, roles, rows, notes)


def _text(value: Any) -> str:
    """A cell as clean text: one kind of line break, no NUL or half characters, no blank edges."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _LeftOut("a cell holds something else than text")
    text = str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-8", "replace").decode().strip()


def _filled(record: dict, column: str, role: str) -> str:
    if text := _text(record.get(column)):
        return text
    raise _LeftOut(f"the {role} is empty")


def _asked(question: str, answer: str, context: str | None, system: str | None):
    def convert(record: dict) -> list[dict]:
        asked, answered = _filled(record, question, "question"), _filled(record, answer, "answer")
        if context and (extra := _text(record.get(context))):
            asked = f"{asked}\n\n{extra}"
        start = [{"role": "system", "content": text}] if system and (text := _text(record.get(system))) else []
        return [*start, {"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return convert


def _plain(column: str):
    return lambda record: [{"role": "text", "content": _filled(record, column, "text")}]


def _conversation(column: str):
    def convert(record: dict) -> list[dict]:
        turns = record.get(column)
        if not isinstance(turns, list):
            raise _LeftOut("it holds no list of messages")
        messages = [_turn(turn) for turn in turns]
        answered = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not answered:
            raise _LeftOut("nobody answers in it")
        messages = messages[:answered[-1] + 1]   # a question that was never answered teaches nothing
        if not any(m["role"] == "user" for m in messages[:answered[0]]):
            raise _LeftOut("it begins with an answer")
        if any(m["role"] == "system" for m in messages[1:]):
            raise _LeftOut("a system message stands in the middle of it")
        return messages
    return convert


def _turn(turn: Any) -> dict:
    if not isinstance(turn, dict):
        raise _LeftOut("a message is not an object with role and content")
    role = _SPEAKERS.get(fold(str(turn.get("role", turn.get("from", "")))))
    if role is None:
        raise _LeftOut("somebody else than user, assistant or system speaks in it")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):          # OpenAI's parts: only text can be learned
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise _LeftOut("a message holds something else than text")
        content = "\n".join(str(part.get("text", "")) for part in content)
    return {"role": role, "content": _filled({"content": content}, "content", "message")}
