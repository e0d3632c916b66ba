"""Tables to rows: recognise what the columns mean and turn every record into chat messages.

A shape is told from the column names, whatever their case, umlauts or spaces, in several languages (`engine.data.names`); failing
that from what stands in them; and a person's word (``roles``: column → role) goes before both. The result is always the same: rows of
``{"role": system | user | assistant, "content": text}``, or one ``{"role": "text"}`` for plain text.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.data import names
from engine.data.edits import edited
from engine.data.names import fold
from engine.data.read import passed, read_all
from engine.data.rows import Index, LeftOut, Part, Row, Watch, unwatched
from engine.data.table import Table
from engine.errors import BadData
from engine.specs import Edit

ROLES = ("question", "answer", "context", "system", "messages", "text", "ignore")
SPEAKER_ROLES = ("user", "assistant", "ignore")
_GUESS_FROM = 100                          # records that are looked at where names say nothing


@dataclass
class Dataset:
    """Files understood. ``roles``: column → role; ``rows``: read when they are needed; ``notes``: what was left out and why, in sentences."""

    path: Path
    shape: str
    sentence: str
    columns: list[str]
    roles: dict[str, str]
    rows: Sequence[Row]
    digest: str                            # SHA-256 over all rows in order, and the edits: the identity of the data
    notes: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    index: Index | None = None

    @property
    def whole(self) -> bool:
        """Whether these are all rows, and not only a head of the file."""
        return self.index is None or self.index.whole


class _Shelf:
    """What was read last: a window asks for one file again and again."""

    def __init__(self):
        self.lock, self.read, self.edited = threading.RLock(), {}, {}


_all, _heads = _Shelf(), _Shelf()          # a head is there while all the rest is being read


def load(path: Path | str, roles: dict[str, str] | None = None, edits: Sequence[Edit] = (), watch: Watch = unwatched, head: int = 0) -> Dataset:
    """Read a file or folder and understand it. Raises `BadData` when nothing can be learned from it. Any thread may call it.

    Args:
        watch: told now and then what was found so far (a sentence) and how many rows; may raise.
        head: read so many rows at most, at once, whatever else is being read; 0 for all.
    """
    path, shelf = Path(path), _heads if head else _all
    with shelf.lock:
        asked = (str(path), _state(path), tuple(sorted((roles or {}).items())))
        wanted = asked, json.dumps([edit.to_dict() for edit in edits])
        if wanted not in shelf.edited:
            found = _load(path, asked, roles or {}, edits, watch, head)
            shelf.edited.clear()
            shelf.edited[wanted] = found
        return shelf.edited[wanted]


def _load(path: Path, asked: tuple, roles: dict[str, str], edits: Sequence[Edit], watch: Watch, head: int) -> Dataset:
    known = _all.read.get(asked) or _heads.read.get(asked)
    if known is None or not (known[0].whole or 0 < head <= len(known[0])):
        shelf = _heads if head else _all
        shelf.read.clear()
        shelf.edited.clear()
        tables, passed_over = read_all(path)
        parts = understood(tables, passed_over, roles, path)
        index = _indexed(parts, passed_over, lambda stage, done, total=0: watch(_sentence([part for part in parts if part.rows], done), done), head)
        if not len(index):
            raise BadData(f"No row of {path.name} can be used.", " ".join(n for part in parts for n in part.notes()),
                          "Fill in the missing parts and try again.", columns=parts[0].table.columns, path=str(path))
        known = shelf.read[asked] = (index, [part for part in parts if part.rows],
                                     _notes(parts) + passed_over)
    index, parts, notes = known
    rows, unmatched = edited(index, edits)
    if unmatched and index.whole:
        notes = [*notes, f"{unmatched} of your changes no longer {'find their examples' if unmatched > 1 else 'finds its examples'} in the file."]
    if not len(rows) and index.whole:
        raise BadData("No example is left.", "All of them were dropped.", "Undo the last change.", path=str(path))
    return Dataset(path, parts[0].shape if len({part.shape for part in parts}) == 1 else "mixed", _sentence(parts, len(index)),
                   list(dict.fromkeys(column for part in parts for column in part.table.columns)),
                   {column: role for part in reversed(parts) for column, role in part.roles.items()}, rows,
                   _identity(index.digest, edits), list(notes), parts, index)


def _indexed(parts: list[Part], passed_over: list[str], watch: Watch, head: int) -> Index:
    """The index of all rows. Of several files one that turns out to be broken far below is passed over; ``parts`` loses it."""
    while True:
        try:
            return Index(parts, watch, head)
        except BadData as problem:
            broken = next((part for part in parts if str(part.table.path) == problem.facts.get("path")), None)
            if broken is None or len(parts) == 1:
                raise
            passed_over.append(passed(broken.table.path, problem))
            parts.remove(broken)
            for part in parts:
                part.reasons.clear()
                part.first.clear()


def _notes(parts: list[Part]) -> list[str]:
    """What is said of the files; of several, each sentence once, with the names of the files that it is about."""
    about: dict[str, list[str]] = {}
    for part in parts:
        for note in part.notes():
            about.setdefault(note, []).append(part.table.path.name)
    return [note if len(parts) == 1 else f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}: {note}" for note, names in about.items()]


def _state(path: Path) -> tuple:
    """What changes when somebody saves a file anew."""
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)
    except OSError:
        return ()


def _identity(digest: str, edits: Sequence[Edit]) -> str:
    return digest if not edits else hashlib.sha256((digest + json.dumps([edit.to_dict() for edit in edits], sort_keys=True)).encode()).hexdigest()


def understood(tables: list[Table], passed_over: list[str], roles: dict[str, str], path: Path) -> list[Part]:
    """Each table with its meaning; in a folder, one without is passed over. Raises `BadData` if none is left."""
    parts, problems = [], []
    for table in tables:
        try:
            parts.append(understand(table, roles))
        except BadData as problem:
            problems.append(problem)
            passed_over.append(passed(table.path, problem))
    if not parts:
        raise problems[0]
    if chats := [part for part in parts if part.table.speakers]:      # an export's other files list users, projects, ratings
        passed_over += [f"{part.table.path.name} was passed over: it stands beside a chat and holds no conversation."
                        for part in parts if part.guessed]
        return [part for part in parts if part in chats or not part.guessed]
    return parts


def understand(table: Table, roles: dict[str, str] | None = None) -> Part:
    """Give the columns their meaning. Raises `BadData`: unknown columns, preference pairs."""
    if table.speakers:
        return _speakers(table, {**table.known, **{who: role for who, role in (roles or {}).items() if who in table.known}})
    said = {column: role for column, role in (roles or {}).items() if column in table.columns}
    if said:
        return _by_roles(table, said)
    by_fold: dict[str, str] = {}
    for column in table.columns:
        by_fold.setdefault(fold(column), column)

    def find(known: frozenset[str], but: str | None = None) -> str | None:
        return next((by_fold[key] for key in sorted(by_fold, key=names.VAGUE.__contains__) if key in known and by_fold[key] != but), None)

    chosen, rejected = find(names.CHOSEN), find(names.REJECTED)
    if chosen and rejected:
        raise BadData(f"The file {table.path.name} holds preferences, not examples.",
                      f"Learning from “{chosen}” against “{rejected}” is not supported yet.",
                      "To learn the preferred answers, remove the other column and name the first one “answer”.", columns=table.columns)
    if messages := find(names.MESSAGES):
        first = next((r[messages] for r in table.head(_GUESS_FROM) if isinstance(r.get(messages), list) and r[messages]), None)
        if first is not None:
            sharegpt, system = isinstance(first[0], dict) and "from" in first[0], find(names.SYSTEM)
            return Part(table, _conversation(messages, system), "conversations" if sharegpt else "messages", "conversations",
                        {messages: "messages", **({system: "system"} if system else {})})
    question, answer, shape, noun = _pair(find, table.columns)
    if question and answer:
        context, system = find(names.CONTEXT, but=question), find(names.SYSTEM)
        context = None if context == answer else context
        found = {c: r for c, r in ((question, "question"), (context, "context"), (answer, "answer"), (system, "system")) if c}
        if context and shape == "instruction/output":
            shape = "instruction/input/output"
        noun = "letters with their replies" if table.kind in ("mbox", "eml", "mail") else noun
        return Part(table, _asked(found), shape, noun, found)
    text = find(names.TEXT)
    if text and len(table.columns) <= 2:
        return Part(table, _plain(text), "plain text", _TEXTS.get(table.kind, "texts"), {text: "text"})
    if guess := _guess(table):
        return Part(table, _asked(guess), "question/answer", "question and answer pairs", guess, guessed=True)
    found_names = ", ".join(f"“{c}”" for c in table.columns[:8]) + (" …" if len(table.columns) > 8 else "")
    half = next((c for c in (question, answer) if c), None)
    raise BadData(f"The columns of {table.path.name} are not understood.",
                  f"Found {found_names}" + (f"; the partner of “{half}” is missing." if half else "."),
                  f"Name them in the first line: {names.EXPECTED}.", columns=table.columns, path=str(table.path),
                  samples=[[str(record.get(column, ""))[:80] for column in table.columns[:12]] for record in table.head(3)])


_TEXTS = {"txt": "paragraphs of plain text", "docx": "passages of text", "pdf": "passages of text", "md": "passages of text"}


def _pair(find, columns: list[str]) -> tuple[str | None, str | None, str, str]:
    for pair in names.PAIRS:
        question = find(pair.question)
        answer = find(pair.answer, but=question)
        if question and answer:
            return question, answer, pair.shape, pair.noun
    question = find(names.QUESTIONS)       # an odd couple, e.g. Prompt and Antwort
    answer = find(names.ANSWERS, but=question)
    question = question or (find(names.TEXT, but=answer) if answer else None)
    for role in ("question", "answer"):    # odd names: “1. Frage (Kunde)”, only where one column alone is called so
        called = [c for c in columns if names.loosely(c) == role and c not in (question, answer)]
        if len(called) == 1:
            question, answer = (question or called[0], answer) if role == "question" else (question, answer or called[0])
    return question, answer, "question/answer", "question and answer pairs"


def _guess(table: Table) -> dict[str, str] | None:
    """Two columns of whole words and no third: the one that asks more often, or comes first, is the question."""
    records, wordy = table.head(_GUESS_FROM), []
    for column in table.columns:
        cells = [value.strip() for record in records if isinstance(value := record.get(column), str) and value.strip()]
        if len(cells) >= 0.6 * len(records) and len(set(cells)) > len(cells) / 2 and sum(" " in cell for cell in cells) > 0.6 * len(cells):
            wordy.append((sum(cell.endswith("?") for cell in cells) / len(cells), column))
    if len(wordy) != 2 or len(records) < 2:
        return None
    (asks, first), (asks_too, second) = wordy
    return {second: "question", first: "answer"} if asks_too > asks + 0.3 else {first: "question", second: "answer"}


def _by_roles(table: Table, roles: dict[str, str]) -> Part:
    """A person has said what the columns mean."""
    def of(role: str) -> list[str]:
        return [column for column in table.columns if roles.get(column) == role]

    used = {column: role for column, role in roles.items() if role != "ignore"}
    if of("messages"):
        return Part(table, _conversation(of("messages")[0], next(iter(of("system")), None)), "messages", "conversations", used)
    if of("question") and of("answer"):
        return Part(table, _asked(used), "question/answer", "question and answer pairs", used)
    if of("text"):
        return Part(table, _plain(of("text")[0]), "plain text", _TEXTS.get(table.kind, "texts"), used)
    missing = "an answer" if of("question") else "a question" if of("answer") else "a question and an answer, or a text"
    raise BadData(f"The columns of {table.path.name} do not make examples yet.", f"No column is {missing}.",
                  "Say above the columns which of them is the question and which the answer.", columns=table.columns, path=str(table.path),
                  samples=[[str(record.get(column, ""))[:80] for column in table.columns[:12]] for record in table.head(3)])


def _sentence(parts: list[Part], rows: int) -> str:
    """ "120 question and answer pairs, from the columns Frage and Antwort." """
    if len(parts) > 1:
        counts: dict[str, int] = {}
        for part in parts:
            counts[part.noun] = counts.get(part.noun, 0) + part.rows
        found = ", ".join(f"{count:,} {_one(noun) if count == 1 else noun}" for noun, count in counts.items())
        return f"{rows:,} examples from {len(parts)} files: {found}."
    part = parts[0]
    noun = _one(part.noun) if rows == 1 else part.noun
    if part.table.speakers:
        answers = [who for who, role in part.roles.items() if role == "assistant"]
        return f"{rows:,} {noun}, in which {_and(answers)} answer{'s' if len(answers) == 1 else ''}."
    if part.table.known or part.table.kind == "txt":
        return f"{rows:,} {noun}."
    return f"{rows:,} {noun}, from the column{'s' if len(part.roles) > 1 else ''} {_and(list(part.roles))}."


def _one(noun: str) -> str:
    first, *rest = noun.split(" ")
    return " ".join([first.removesuffix("s"), *rest]).replace("pairs", "pair").replace("with their", "with its").replace("replies", "reply")


def _and(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0] if items else "nobody"


# --- records to messages -----------------------------------------------------------------------

def _text(value: Any) -> str:
    """A cell as clean text: one kind of line break, no NUL or half characters, no blank edges."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise LeftOut("a cell holds something else than text")
    text = str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-8", "replace").decode().strip()


def _filled(record: dict, column: str, role: str) -> str:
    if text := _text(record.get(column)):
        return text
    raise LeftOut(f"the {role} is empty")


def _asked(roles: dict[str, str]) -> Callable[[dict], list[dict]]:
    def of(role: str) -> list[str]:
        return [column for column, given in roles.items() if given == role]

    (question, *more), (answer, *_), contexts, systems = of("question"), of("answer"), of("context"), of("system")

    def convert(record: dict) -> list[dict]:
        if isinstance(record.get(question), list) and isinstance(record.get(answer), list):     # prompt and completion as messages
            return _ended([*map(_turn, record[question]), *map(_turn, record[answer])])
        asked, answered = _filled(record, question, "question"), _filled(record, answer, "answer")
        asked = "\n\n".join([asked, *(extra for column in (*more, *contexts) if (extra := _text(record.get(column))))])
        start = [{"role": "system", "content": text} for column in systems[:1] if (text := _text(record.get(column)))]
        return [*start, {"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return convert


def _plain(column: str) -> Callable[[dict], list[dict]]:
    return lambda record: [{"role": "text", "content": _filled(record, column, "text")}]


def _speakers(table: Table, roles: dict[str, str]) -> Part:
    """A chat between people: what each side says in one go is one message."""
    def convert(record: dict) -> list[dict]:
        messages: list[dict] = []
        for who, what in record["turns"]:
            role, said = roles.get(who, "user"), _text(what)
            if role == "ignore" or not said:
                continue
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f"\n{said}"
            elif messages or role != "assistant":      # what is said before anybody asked answers nothing
                messages.append({"role": role, "content": said})
        return _ended(messages)
    if "assistant" not in roles.values():
        raise BadData(f"Nobody answers in {table.path.name} yet.", do="Say which of the speakers is the one to learn from.",
                      columns=table.columns, path=str(table.path))
    return Part(table, convert, "chat", "conversations", {who: role for who, role in roles.items() if role != "ignore"})


def _conversation(column: str, system: str | None = None) -> Callable[[dict], list[dict]]:
    """Messages, behind what a column of its own says to the model unless they say it themselves."""
    def convert(record: dict) -> list[dict]:
        turns = record.get(column)
        if not isinstance(turns, list):
            raise LeftOut("it holds no list of messages")
        messages = _ended([_turn(turn) for turn in turns])
        told = _text(record.get(system)) if system and messages[0]["role"] != "system" else ""
        return [{"role": "system", "content": told}, *messages] if told else messages
    return convert


def _ended(messages: list[dict]) -> list[dict]:
    """The messages up to the last answer. A question that was never answered teaches nothing."""
    answered = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not answered:
        raise LeftOut("nobody answers in it")
    messages = messages[:answered[-1] + 1]
    if not any(m["role"] == "user" for m in messages[:answered[0]]):
        raise LeftOut("it begins with an answer")
    if any(m["role"] == "system" for m in messages[1:]):
        raise LeftOut("a system message stands in the middle of it")
    return messages


def _turn(turn: Any) -> dict:
    if not isinstance(turn, dict):
        raise LeftOut("a message is not an object with role and content")
    said = fold(str(turn.get("role", turn.get("from", ""))))
    if turn.get("tool_calls") or turn.get("function_call") or said in names.TOOLS:
        raise LeftOut("a tool is called in it, which cannot be learned yet")
    if turn.get("weight") == 0:
        raise LeftOut("an answer in it is marked as one not to learn (weight 0)")
    role = names.SPEAKERS.get(said)
    if role is None:
        raise LeftOut("somebody else than user, assistant or system speaks in it")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):          # OpenAI's parts: only text can be learned
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise LeftOut("a message holds something else than text")
        content = "\n".join(str(part.get("text", "")) for part in content)
    return {"role": role, "content": _filled({"content": content}, "content", "message")}
