"""What a person changed in the examples: a short list beside the plan, applied as rows are read. The file stays as it is.

Rows are named by the hash of what stands in the file, so that edits find them wherever they stand, and a changed row stays on its side
of the held-out split.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence

from engine.data.rows import KEY, Index, Row, Rows
from engine.data.rules import marks, personal
from engine.specs import Edit

_SENTENCE = re.compile(r"(?<=[.!?…])[\"”“»’)]*\s+|\n+")


def edited(index: Index, edits: Sequence[Edit]) -> tuple[Rows, int]:
    """The rows as the edits leave them, and how many edits name rows that are not there (any more)."""
    if not edits:
        return Rows(index), 0
    named = {bytes.fromhex(key) for edit in edits for key in edit.rows if _is_key(key)}
    once = [set(map(bytes.fromhex, filter(_is_key, edit.rows))) for edit in edits if edit.do == "keep-one"]
    places = _places(index, named)
    rewritten, gone = {}, {bytes.fromhex(key) for edit in edits if edit.do == "drop" for key in edit.rows if _is_key(key)}
    for edit in edits:
        if edit.do == "merge":
            wanted = [key for key in map(bytes.fromhex, filter(_is_key, edit.rows)) if key in places]
            if len(wanted) > 1:
                rewritten[wanted[0].hex()] = merged([index.row(places[key]) for key in wanted])
                gone |= set(wanted[1:])
    chosen, seen = array("q"), set()
    for number in range(len(index)):
        key = bytes(index.keys[number * KEY:(number + 1) * KEY])
        if key in gone or key in seen:
            continue
        if any(not keys or key in keys for keys in once):
            seen.add(key)
        chosen.append(number)
    changes = [(frozenset(edit.rows), change) for edit in edits if (change := _change(edit))]

    def changed(row: Row) -> Row:
        messages = rewritten.get(row.key, row.messages)
        for keys, change in changes:
            if not keys or row.key in keys:
                messages = change(messages)
        return row if messages is row.messages else Row(tuple(messages), row.line, row.key)
    unmatched = sum(bool(edit.rows) and not any(_is_key(key) and bytes.fromhex(key) in places for key in edit.rows) for edit in edits)
    return Rows(index, chosen if len(chosen) < len(index) else None, changed if changes or rewritten else None), unmatched


def _is_key(key: str) -> bool:
    return bool(re.fullmatch(rf"[0-9a-f]{{{2 * KEY}}}", key))


def _places(index: Index, named: set[bytes]) -> dict[bytes, int]:
    """Named rows → the first place where each stands."""
    found: dict[bytes, int] = {}
    for number in range(len(index)) if named else ():
        key = bytes(index.keys[number * KEY:(number + 1) * KEY])
        if key in named:
            found.setdefault(key, number)
    return found


def _change(edit: Edit) -> Callable[[tuple[dict, ...]], tuple[dict, ...]] | None:
    if edit.do == "mask":
        kinds = tuple(edit.what) or personal.KINDS
        return lambda messages: _each(messages, lambda text: personal.mask(text, kinds))
    if edit.do == "strip":
        return lambda messages: _each(messages, lambda text: marks.strip(text, edit.what) if any(mark in text for mark in edit.what) else text)
    if edit.do == "shorten":
        return lambda messages: shortened(messages, edit.size)
    return None


def _each(messages: tuple[dict, ...], change: Callable[[str], str]) -> tuple[dict, ...]:
    """Every message changed; one that would be left empty stays as it was."""
    changed = tuple({**m, "content": text} if (text := change(m["content"])) and text != m["content"] else m for m in messages)
    return messages if changed == messages else changed


def merged(rows: list[Row]) -> tuple[dict, ...]:
    """The first row with the last answers of all, each once, one below the other."""
    answers = dict.fromkeys(row.messages[-1]["content"] for row in rows)
    return (*rows[0].messages[:-1], {**rows[0].messages[-1], "content": "\n\n".join(answers)})


def shortened(messages: tuple[dict, ...], size: int) -> tuple[dict, ...]:
    """At most about ``size`` letters: earlier turns go first, then the end of the longest message, at the end of a sentence.

    The last question and its answer always stay.
    """
    kept = list(messages)
    first = 1 if kept[0]["role"] == "system" else 0
    while _size(kept) > size and (later := next((i for i in range(first + 1, len(kept)) if kept[i]["role"] == "user"), None)):
        del kept[first:later]
    for _ in range(len(kept)):
        if (over := _size(kept) - size) <= 0:
            break
        longest = max(range(len(kept)), key=lambda i: len(kept[i]["content"]))
        text = kept[longest]["content"]
        kept[longest] = {**kept[longest], "content": _cut(text, max(size // 4, len(text) - over))}
    return tuple(kept)


def _size(messages: list[dict]) -> int:
    return sum(len(m["content"]) for m in messages)


def _cut(text: str, size: int) -> str:
    """The whole sentences that fit; where not even one does, the whole words."""
    if len(text) <= size:
        return text
    ends = [match.start() for match in _SENTENCE.finditer(text) if match.start() <= size]
    end = ends[-1] if ends and ends[-1] > 0 else text.rfind(" ", 0, size)
    return text[:end if end > 0 else size].rstrip()
