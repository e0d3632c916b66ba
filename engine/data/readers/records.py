"""JSON lists and JSON lines, walked through item by item: a file of any size is never held."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data.readers.chats import read_chat_json
from engine.data.readers.text import MAX_LINE, Text, open_text
from engine.data.table import Mark, Table, Walk, bad_line, numbered
from engine.errors import BadData

_LOOK = 200                                # records that are looked at to learn the columns
_SAVE_AGAIN = "Save the file again from the program it comes from."


def read_jsonl(path: Path) -> Table:
    """One JSON value a line; a list under this name is read as one."""
    text = open_text(path)
    if text.head(4096).lstrip("\ufeff \t\r\n").startswith("[") and not _is_value(next(text.lines())[1]):
        return read_json(path)

    def walk(mark: Mark) -> Walk:
        for here, line, _ in text.lines(*mark):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as problem:
                    raise bad_line(path, here[1], _why(problem), "Every line must be one complete JSON object.") from problem
                yield here, here[1], record(path, here[1], value)
    return with_columns(Table(path, "jsonl", [], walk))


def read_json(path: Path) -> Table:
    """A list of objects; ``{"data": [...]}``; one object; JSON lines under the wrong name."""
    text = open_text(path)
    start = text.head(4096).lstrip("\ufeff \t\r\n")[:1]
    if start == "{" and _is_value(next((line for _, line, _ in text.lines() if line.strip()), "")):
        lines = islice((line for _, line, _ in text.lines() if line.strip()), 2)
        if len(list(lines)) == 2:
            return read_jsonl(path)
    if start == "[":
        return _chat_or_list(path, lambda: enumerate(items(text), 1))
    value = _whole(text)
    if chat := read_chat_json(path, value, lambda: [(1, value)]):
        return chat
    if isinstance(value, dict):            # {"data": [...]}: the one list inside is what is meant
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], (dict, list))]
        value = lists[0] if len(lists) == 1 and not {"role", "from"} & set(lists[0][0]) else [value]
    if not isinstance(value, list):
        raise BadData(f"The file {path.name} holds no list of examples.", do="It should be a list of objects, one for each example.", path=str(path))
    return _chat_or_list(path, lambda: enumerate(value, 1))


def _chat_or_list(path: Path, members: Callable[[], Iterable[tuple[int, Any]]]) -> Table:
    first = next(iter(members()), (1, None))[1]
    return read_chat_json(path, first, members) or with_columns(
        Table(path, "json", [], numbered(lambda: ((n, record(path, n, item)) for n, item in members()))))


def with_columns(table: Table) -> Table:
    """The table with the columns that its first records name."""
    table.columns = list(dict.fromkeys(column for found in table.head(_LOOK) for column in found))
    return table


def items(text: Text) -> Iterator[Any]:
    """The members of the list that a text holds, one after the other. Raises `BadData` with the line."""
    decoder, blocks = json.JSONDecoder(), text.blocks()
    buffer, line, wanted = next(blocks).lstrip("\ufeff"), 1, 1             # the buffer begins in this line
    at, first = _skip(buffer, 0) + 1, True     # behind the opening bracket
    while True:
        after = _skip(buffer, at)
        mark = buffer[after:after + 1]
        try:
            if mark == "]":
                return
            if not first and mark == ",":
                after = _skip(buffer, after + 1)
            elif not first and mark:
                raise json.JSONDecodeError("there is a comma missing", buffer, after)
            value, end = decoder.raw_decode(buffer, after)
            if end == len(buffer):         # a number may go on in the next block
                raise json.JSONDecodeError("cut off", buffer, end)
        except json.JSONDecodeError as problem:
            fresh = [block for _, block in zip(range(wanted), blocks)]
            if not fresh or len(buffer) - at > MAX_LINE:
                raise bad_line(text.path, line + buffer.count("\n", 0, problem.pos), _why(problem), _SAVE_AGAIN) from problem
            line += buffer.count("\n", 0, at)
            buffer, at, wanted = buffer[at:] + "".join(fresh), 0, 2 * wanted     # twice as much each time: linear in all
            continue
        except (ValueError, RecursionError) as problem:
            raise bad_line(text.path, line + buffer.count("\n", 0, after), _why(problem), _SAVE_AGAIN) from problem
        yield value
        first, wanted, at = False, 1, end


def record(path: Path, number: int, item: Any) -> dict[str, Any]:
    """One JSON value as a record: an object as it is, a bare list as messages, a bare string as text."""
    if isinstance(item, list):
        return {"messages": item}
    if isinstance(item, str):
        return {"text": item}
    if not isinstance(item, dict):
        raise bad_line(path, number, "It holds a single value, not an example.",
                       "Every example must be an object such as {\"question\": …, \"answer\": …}.")
    return item


def _skip(buffer: str, at: int) -> int:
    while at < len(buffer) and buffer[at] in " \t\r\n":
        at += 1
    return at


def _is_value(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(text: Text) -> Any:
    """The one value of a text that is no list. Raises `BadData`: too large for that, no JSON."""
    whole = ""
    for block in text.blocks():
        whole += block
        if len(whole) > 20 * MAX_LINE:
            raise BadData(f"The file {text.path.name} is one single object of more than {20 * MAX_LINE:,} characters.",
                          do="Save the examples as a list, or as JSON lines.", path=str(text.path))
    try:
        return json.loads(whole.lstrip("\ufeff"))
    except (ValueError, RecursionError) as problem:
        raise bad_line(text.path, getattr(problem, "lineno", 1), _why(problem), _SAVE_AGAIN) from problem


def _why(problem: Exception) -> str:
    if isinstance(problem, json.JSONDecodeError):
        return f"It is no valid JSON: {problem.msg}."
    return "It is nested too deeply." if isinstance(problem, RecursionError) else "It holds a number of more digits than can be read."
