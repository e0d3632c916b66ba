"""Conversations people already had: WhatsApp and Telegram as text, Telegram, ChatGPT and Claude as JSON.

A record is one conversation, ``{"turns": [(who, what), …]}``. The columns of such a table are the people; who of them is the one
to learn from is a role like any other and can be changed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data.readers.text import Text
from engine.data.table import Table, numbered
from engine.errors import BadData

PAUSE = timedelta(hours=6)                 # after so long a silence another conversation begins
MAX_SPEAKERS = 30
_GAP = r"[\s\u202f\u00a0]"
_CLOCK = r"(\d{1,2}):(\d{2})(?::\d{2})?(?:[\s\u202f\u00a0]*([AaPp])\.?[\s\u00a0]?[Mm]\.?)?"
_DAY = r"(\d{1,4})[./-](\d{1,2})[./-](\d{2,4})"
_STARTS = (                                # groups: day (3), clock (3), speaker, text
    re.compile(rf"^{_DAY},?{_GAP}+(?:um |at |à )?{_CLOCK}{_GAP}*(?:Uhr )?[-–][ \u00a0]([^:]{{1,60}}?): (.*)$"),     # WhatsApp, Android
    re.compile(rf"^\[{_DAY},?{_GAP}+{_CLOCK}\][ \u00a0]([^:]{{1,60}}?): (.*)$"),  # WhatsApp, iPhone
)
_COPIED = re.compile(rf"^(.{{1,60}}?), ?\[{_DAY},?{_GAP}+{_CLOCK}\]:?\s*(.*)$")  # Telegram, copied
_NOTICE = re.compile(rf"^\[?{_DAY},?{_GAP}+(?:um |at |à )?{_CLOCK}\]?{_GAP}*(?:Uhr )?[-–]?[ \u00a0]")
_NO_TEXT = re.compile(r"^\s*(?:<[^>]{3,40}>|[^\n]{0,20}\b(?:omitted|weggelassen|ausgeschlossen|absente?|omis(?:e)?|omitido)\b\.?|"
                      r"(?:This message was|You) deleted.*|(?:Diese Nachricht wurde|Du hast diese Nachricht) gelöscht.*|"
                      r"Ce message a été supprimé.*|null|(?:Missed|Verpasster?) [\w -]{0,20}(?:call|anruf)\b[^\n]{0,40})\s*$", re.IGNORECASE)
_APP = "\u200e"                            # stands before what WhatsApp says itself: “image omitted”, “Anna was added”, “edited”
_ATTACHED = re.compile(r"[^\n]*\.\w{2,5} \((?:file attached|Datei angehängt|fichier joint|archivo adjunto|file allegato)\)")
_EDITED = re.compile(_APP + r"?<(?:This message was edited|Diese Nachricht wurde bearbeitet|Ce message a été modifié|Se editó este mensaje)\.?>\s*$")


@dataclass(frozen=True)
class Said:
    """One message of a chat between people."""

    line: int
    when: datetime | None
    who: str
    what: str


# --- text exports ------------------------------------------------------------------------------

def read_chat_text(text: Text) -> Table | None:
    """A WhatsApp or Telegram export, or None if this text is none."""
    head = [_clean(line) for _, line, _ in islice(text.lines(), 60) if line.strip()]
    starts = [match for line in head if (match := _match(line))]
    if len(starts) < 3 or len(starts) < 0.15 * len(head) or not any(_match(line) or _NOTICE.match(line) for line in head[:3]):
        return None
    month_first = _month_first(text)

    def said() -> Iterator[Said]:
        found: Said | None = None

        def ended() -> Iterator[Said]:
            if found and (words := _words(found.what)):
                yield Said(found.line, found.when, found.who, words)
        for (_, number), raw, _ in text.lines():
            line = _clean(raw)
            if match := _match(line):
                yield from ended()
                day, clock, who, what = match
                found = Said(number, _time(day, clock, month_first), who.strip(f"~ \u00a0\u202f{_APP}"), what)
            elif _NOTICE.match(line):      # “Messages are end-to-end encrypted”, “Anna added Ben”
                yield from ended()
                found = None
            elif found:
                found = Said(found.line, found.when, found.who, f"{found.what}\n{line}")
        yield from ended()
    return chat_table(text.path, said)


def _clean(line: str) -> str:
    return re.sub("[\u200f\u202a-\u202c\ufeff]", "", line).strip(f"{_APP}\r\n")


def _words(what: str) -> str:
    """What a person said of a message: without what the app says in it or adds to it."""
    lines = _EDITED.sub("", what).rstrip().split("\n")
    return "\n".join(line.replace(_APP, "") for n, line in enumerate(lines)
                     if not (line.startswith(_APP) or f"• {_APP}" in line or n == 0 and _ATTACHED.fullmatch(line)))


def _match(line: str) -> tuple[tuple, tuple, str, str] | None:
    """(day, clock, speaker, text) if a message begins on this line. A quotation never closed is no name: “Ann created the group "Team: North"”."""
    for start in _STARTS:
        if (found := start.match(line)) and sum(found[7].count(mark) for mark in '"„“”«»') % 2 == 0:
            parts = found.groups()
            return parts[:3], parts[3:6], parts[6], parts[7]
    if found := _COPIED.match(line):
        parts = found.groups()
        return parts[1:4], parts[4:7], parts[0], parts[7]
    return None


def _month_first(text: Text) -> bool:
    """Whether days are written 12/31 and not 31/12: by the numbers that can only be one of them."""
    days = [match[0] for _, line, _ in islice(text.lines(), 20_000) if (match := _match(_clean(line)))]
    return any(int(day[1]) > 12 for day in days) and not any(12 < int(day[0]) < 32 for day in days)


def _time(day: tuple[str, str, str], clock: tuple, month_first: bool) -> datetime | None:
    first, second, third = map(int, day)
    year, month, date = (first, second, third) if len(day[0]) == 4 else (third, first, second) if month_first else (third, second, first)
    hour = int(clock[0]) % 12 + 12 * (clock[2] in "Pp") if clock[2] else int(clock[0])
    try:
        return datetime(year + 2000 if year < 100 else year, month, date, hour, int(clock[1]))
    except ValueError:
        return None


# --- JSON exports ------------------------------------------------------------------------------

def read_chat_json(path: Path, first: Any, items: Callable[[], Iterable[tuple[int, Any]]]) -> Table | None:
    """A ChatGPT, Claude or Telegram export, or None if its first item is none. ``items`` walks through (number, item)."""
    if not isinstance(first, dict):
        return None
    if isinstance(first.get("mapping"), dict):
        return _assistant_chats(path, "chatgpt", items, _chatgpt)
    if isinstance(first.get("chat_messages"), list):
        return _assistant_chats(path, "claude", items, _claude)
    chats = [first] if _is_telegram(first) else first.get("chats", {}).get("list") if isinstance(first.get("chats"), dict) else None
    if isinstance(chats, list) and chats and all(_is_telegram(chat) for chat in chats):
        return chat_table(path, lambda: (said for chat in chats for said in _telegram(chat)))
    return None


def _dict(value: Any) -> dict:             # one odd message must not cost a person all the others
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _assistant_chats(path: Path, kind: str, items: Callable, turns: Callable[[dict], Iterator[tuple[str, str]]]) -> Table:
    def records() -> Iterator[tuple[int, dict]]:
        for number, item in items():
            found = list(turns(item)) if isinstance(item, dict) else []
            yield number, {"turns": [(who, what.strip()) for who, what in found if what.strip()]}
    return Table(path, kind, ["user", "assistant"], numbered(records), known={"user": "user", "assistant": "assistant"}, speakers=True)


def _chatgpt(conversation: dict) -> Iterator[tuple[str, str]]:
    """The branch that was last looked at: from its leaf up to the root, turned round."""
    nodes, path = _dict(conversation.get("mapping")), []
    here = conversation.get("current_node") or next((key for key, node in reversed(nodes.items()) if not _dict(node).get("children")), None)
    while isinstance(here, str) and here in nodes and len(path) <= len(nodes):
        path.append(_dict(nodes[here]))
        here = path[-1].get("parent")
    for node in reversed(path):
        message = _dict(node.get("message"))
        who, content = _dict(message.get("author")).get("role"), _dict(message.get("content"))
        spoken = content.get("content_type", "text") in ("text", "multimodal_text") and message.get("recipient", "all") == "all"
        if spoken and who in ("user", "assistant"):
            yield who, "\n".join(part for part in _list(content.get("parts")) if isinstance(part, str))


def _claude(conversation: dict) -> Iterator[tuple[str, str]]:
    for message in map(_dict, _list(conversation.get("chat_messages"))):
        parts = [part for part in map(_dict, _list(message.get("content"))) if part.get("type") == "text"]
        text = _str(message.get("text")) or "\n".join(_str(part.get("text")) for part in parts)
        yield ("user" if message.get("sender") == "human" else "assistant"), text


def _is_telegram(chat: Any) -> bool:
    return any(m.get("type") == "message" and {"date", "from"} <= m.keys() for m in map(_dict, _list(_dict(chat).get("messages"))))


def _telegram(chat: dict) -> Iterator[Said]:
    for number, message in enumerate(map(_dict, _list(chat["messages"])), 1):
        if message.get("type") == "message" and message.get("from"):
            parts = message.get("text")
            text = _str(parts) or "".join(_str(part) or _str(_dict(part).get("text")) for part in _list(parts))
            try:
                when = datetime.fromisoformat(str(message.get("date", ""))).replace(tzinfo=None)
            except ValueError:
                when = None
            yield Said(number, when, str(message["from"]), text)


# --- from messages to conversations ------------------------------------------------------------

def chat_table(path: Path, said: Callable[[], Iterable[Said]]) -> Table:
    """Cut what was said into conversations, and guess who answers: whoever least often begins one."""
    spoke, began, last = Counter(), Counter(), None
    for word in said():
        spoke[word.who] += 1
        if last is None or _apart(last, word):
            began[word.who] += 1
        last = word
    if len(spoke) < 2:
        raise BadData(f"Only one person speaks in {path.name}.", "Nobody answers, so there is nothing to learn.", "Export the whole chat.",
                      path=str(path))
    speakers = [who for who, _ in spoke.most_common(MAX_SPEAKERS)]
    answers = max((who for who in speakers[:8] if spoke[who] >= 0.1 * spoke[speakers[0]]), key=lambda who: (spoke[who] - 3 * began[who], who))

    def records() -> Iterator[tuple[int, dict]]:
        turns, start, last = [], 1, None
        for word in said():
            if last is not None and _apart(last, word) and turns:
                yield start, {"turns": turns}
                turns = []
            last = word
            if word.what.strip() and not _NO_TEXT.match(word.what):
                start = start if turns else word.line
                turns.append((word.who, word.what.strip()))
        if turns:
            yield start, {"turns": turns}
    return Table(path, "chat", speakers, numbered(records), known={who: "assistant" if who == answers else "user" for who in speakers}, speakers=True)


def _apart(before: Said, after: Said) -> bool:
    return before.when is not None and after.when is not None and not timedelta() <= after.when - before.when <= PAUSE
