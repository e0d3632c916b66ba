"""Undo laws over random sequences of commands: undo is exact, redo is exact, JSON keeps everything, a drag is one step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StudioError
from studio.core.stack_commands import AddAdapter, MoveAdapter, RemoveAdapter, SetBase, SetEnabled, SetStrength, Several
from studio.core.stack_document import StackDocument
from studio.models.undo import LIMIT, UndoStack

KINDS = ("add", "add several", "remove", "move", "strength", "drag", "enabled", "base")
STEP = st.tuples(st.sampled_from(KINDS), st.integers(-2, 6), st.floats(-12, 12))


def command(document: StackDocument, step: tuple):
    """A command that makes sense for the document as it is; None if there is nothing to do it to."""
    kind, number, value = step
    if kind == "add":
        return AddAdapter(Path(f"/a/{number}"), f"a{number}", None if number < 0 else number, base=Path("/m/first"))
    if kind == "add several":
        return Several([AddAdapter(Path(f"/s/{n}"), f"s{n}", base=Path("/m/s")) for n in range(max(number, 0))], "several")
    if kind == "base":
        return SetBase(Path(f"/m/{number}") if number >= 0 else None, tuple(e.id for e in document.entries if e.id % 2 == number % 2))
    if not len(document):
        return None
    id = document.entries[number % len(document)].id
    return {"remove": RemoveAdapter(id), "move": MoveAdapter(id, number), "enabled": SetEnabled(id, value > 0),
            "strength": SetStrength(id, value), "drag": SetStrength(id, value, gesture=7)}[kind]


def carry_out(steps: list) -> tuple[StackDocument, UndoStack, list[str]]:
    """Push all; returns the states after each step that can be undone, the first being the empty document."""
    document = StackDocument()
    undo = UndoStack(document)
    states = [document.to_json()]
    for step in steps:
        if (next_command := command(document, step)) is not None:
            undo.push(next_command)
            del states[len(undo) + 1:]
            states[len(undo):] = [document.to_json()]
    return document, undo, states


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_undo_and_redo_walk_the_same_states(steps):
    document, undo, states = carry_out(steps)
    for state in reversed(states[:-1]):
        undo.undo()
        assert document.to_json() == state
    assert not len(undo)
    undo.undo()
    for state in states[1:]:
        undo.redo()
        assert document.to_json() == state
    undo.redo()
    assert document.to_json() == states[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=15))
def test_json_round_trip_keeps_everything(steps):
    document, _, _ = carry_out(steps)
    copy = StackDocument()
    copy.load_json(document.to_json())
    assert (copy.base, copy.entries) == (document.base, document.entries)
    assert copy.to_specs() == document.to_specs()
    assert copy.new_id() not in {e.id for e in copy.entries}


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=15))
def test_every_change_is_told(steps):
    """Whoever only listens ends with the same picture as whoever reads."""
    document, heard = StackDocument(), []
    undo = UndoStack(document)
    document.changed.connect(lambda change: heard.append((change.kind, document.to_json())))
    before = document.to_json()
    for step in steps:
        if (next_command := command(document, step)) is not None and undo.push(next_command):
            assert document.to_json() == before or heard
            assert heard == [] or heard[-1][1] == document.to_json()
            before = document.to_json()
    for kind, _ in heard:
        assert kind in {"structure", "strength", "enabled", "base"}


def one_adapter() -> tuple[StackDocument, UndoStack, int]:
    document = StackDocument()
    undo = UndoStack(document)
    undo.push(AddAdapter(Path("/a"), "a", base=Path("/m")))
    return document, undo, document.entries[0].id


def test_a_drag_is_heard_at_each_value_but_is_one_step():
    document, undo, id = one_adapter()
    heard = []
    document.changed.connect(lambda change: heard.append((change.kind, change.entry_id, document.entry(id).strength)))
    for percent in (90, 80, 70):
        undo.push(SetStrength(id, percent / 100, gesture=5))
    assert heard == [("strength", id, 0.9), ("strength", id, 0.8), ("strength", id, 0.7)]
    assert len(undo) == 2
    undo.undo()
    assert document.entry(id).strength == 1.0
    undo.redo()
    assert document.entry(id).strength == 0.7


@pytest.mark.parametrize("second", [6, 0])
def test_another_gesture_is_another_step(second):
    document, undo, id = one_adapter()
    undo.push(SetStrength(id, 0.5, gesture=second and 5))
    undo.push(SetStrength(id, 0.4, gesture=second))
    undo.undo()
    assert document.entry(id).strength == 0.5


def test_what_changes_nothing_is_no_step():
    document, undo, id = one_adapter()
    assert not undo.push(SetStrength(id, 1.0))
    assert not undo.push(SetEnabled(id, True))
    assert not undo.push(MoveAdapter(id, 5))
    assert not undo.push(SetBase(Path("/m")))
    assert len(undo) == 1


def test_the_oldest_steps_are_forgotten():
    document, undo, id = one_adapter()
    for n in range(LIMIT + 10):
        undo.push(SetEnabled(id, bool(n % 2)))
    assert len(undo) == LIMIT


def test_strength_stays_within_what_the_engine_accepts():
    document, undo, id = one_adapter()
    undo.push(SetStrength(id, 1e9))
    assert document.to_specs()[0].problems() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000,
                                  '{"version":1,"base":null,"entries":[{"id":1e999,"adapter":"a","name":"a","strength":1,"enabled":true}]}',
                                  '{"version": 99, "entries": [], "base": null}', '{"version": 1}',
                                  '{"version": 1, "base": null, "entries": [{"id": 1}]}',
                                  '{"version":1,"base":null,"entries":[{"id":1,"adapter":"a","name":"a","strength":99,"enabled":true}]}',
                                  '{"version":1,"base":null,"entries":[{"id":1,"adapter":"a","name":"a","strength":1,"enabled":true},'
                                  '{"id":1,"adapter":"b","name":"b","strength":1,"enabled":true}]}'])
def test_a_damaged_file_is_told_and_changes_nothing(text):
    document, _, _ = one_adapter()
    before = document.to_json()
    with pytest.raises(StudioError):
        document.load_json(text)
    assert document.to_json() == before
