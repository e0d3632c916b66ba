"""What a data file holds, in one sentence and a few examples: all that the Data page asks for. Needs no model."""

from __future__ import annotations

from engine.data.shapes import load
from engine.data.split import split
from engine.specs.talk import DataReport, DescribeData

SHOWN = 20                                 # examples sent to the window; others are asked for one by one


def describe(request: DescribeData) -> DataReport:
    """Read, recognise and split a file. Raises `BadData` with the way out."""
    data = load(request.path)
    learned, tested = split(data.rows, request.holdout)
    notes = list(data.notes)
    if doubles := len(data.rows) - len({row.digest for row in data.rows}):
        notes.append(f"{doubles} example{'s stand' if doubles > 1 else ' stands'} in the file more than once.")
    if not tested and request.holdout > 0:
        notes.append("There are too few different examples to hold some back for testing.")
    return DataReport(path=str(data.path), sentence=data.sentence, rows=len(learned) + len(tested), held_out=len(tested), shape=data.shape,
                      columns=data.columns, roles=data.roles, examples=[list(row.messages) for row in data.rows[:SHOWN]], notes=notes)
