"""What a data file holds: one sentence, a few examples, and any page of the rest. Needs no model."""

from __future__ import annotations

from itertools import islice

from engine.data.rows import Watch, unwatched
from engine.data.shapes import ROLES, SPEAKER_ROLES, Dataset, load
from engine.data.split import held_out
from engine.specs import DataReport, DescribeData, RowsPage, ShowRows

SHOWN = 20                                 # examples sent at once; others are asked for page by page
ASKED, ASKED_LETTERS = 3, 160              # questions to be pinned, and their length at most
LETTERS = 2000                             # of each of their messages


def describe(request: DescribeData, watch: Watch = unwatched) -> DataReport:
    """Read, recognise and split a file, or the head of it. Raises `BadData` with the way out."""
    data = load(request.data, request.roles, request.edits, watch, request.head)
    held = _held(data, request.holdout)
    notes = list(data.notes)
    if any(part.guessed for part in data.parts):
        notes.append("The columns have unknown names: what they mean was guessed from what stands in them.")
    if doubles := len(data.rows) - data.rows.different():
        notes.append(f"{doubles} example{'s stand' if doubles > 1 else ' stands'} in the file more than once.")
    if data.whole and not held and request.holdout > 0:
        notes.append("There are too few different examples to hold some back for testing.")
    return DataReport(path=str(data.path), sentence=data.sentence, rows=len(data.rows), held_out=len(held), shape=data.shape,
                      columns=list(_choices(data)), roles=data.roles, choices=_choices(data), notes=notes,
                      examples=[_shortened(row.messages, LETTERS) for row in islice(data.rows, SHOWN)],
                      found=[[part.noun, part.rows] for part in data.parts], files=len(data.parts),
                      asks=_asks(data, held), guessed=any(part.guessed for part in data.parts), whole=data.whole)


def show_rows(request: ShowRows) -> RowsPage:
    """Some rows from a place on. Raises `BadData`."""
    data = load(request.data, request.roles, request.edits, head=request.head)
    held = _held(data, request.holdout)
    page = list(islice(data.rows.from_(request.start), request.count))
    return RowsPage(start=request.start, examples=[_shortened(row.messages, request.letters) for row in page],
                    held=[request.start + n in held for n in range(len(page))])


_latest_held: dict[tuple[str, float], set[int]] = {}           # one page after the other asks for the same


def _held(data: Dataset, holdout: float) -> set[int]:
    """None of a head: which rows are held back depends on all."""
    if not data.whole:
        return set()
    wanted = data.digest, holdout
    found = _latest_held.get(wanted)       # asked once: another thread may forget it meanwhile
    if found is None:
        found = held_out(data.rows.keys, holdout)
        _latest_held.clear()
        _latest_held[wanted] = found
    return found


def _asks(data: Dataset, held: set[int]) -> list[str]:
    """Questions that a training never sees, to hear the change by: one line each, in the order of the file."""
    found: dict[str, None] = {}
    for number in sorted(held):
        asked = data.rows[number].messages[0]
        if asked["role"] == "user" and len(asked["content"]) <= ASKED_LETTERS and "\n" not in asked["content"]:
            found[asked["content"]] = None
        if len(found) == ASKED:
            break
    return list(found)


def _shortened(messages: tuple[dict, ...], letters: int) -> list[dict]:
    """What a list shows of a row: at most so many letters of each message, 0 for all."""
    return [m if not letters or len(m["content"]) <= letters else {**m, "content": m["content"][:letters].rstrip() + " …"} for m in messages]


def _choices(data: Dataset) -> dict[str, list[str]]:
    """Columns whose meaning can be changed, with what each can be: not those of texts that have none."""
    parts = [part for part in data.parts if part.table.speakers or not part.table.known and part.table.kind != "txt"]
    found = {column: list(SPEAKER_ROLES if part.table.speakers else ROLES) for part in parts for column in part.table.columns}
    return dict(islice(found.items(), 40))
