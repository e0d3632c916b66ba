"""The stack as a list under Qt's model tester: it follows every command, and what cannot join says why."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PySide6.QtCore import QModelIndex, Qt, qInstallMessageHandler
from PySide6.QtTest import QAbstractItemModelTester

from studio.models import drag
from studio.models.stack_model import ID, StackModel
from studio.core.stack_commands import SetBase
from tests.studio.core.test_stack_commands import STEP, command
from tests.studio.kit import World, make_adapter, make_model


@pytest.fixture
def world(tmp_path, qapp):
    made = World(tmp_path / "home")
    base = make_model(made.home)
    for name in ("a", "b", "c"):
        make_adapter(made.home, base, name)
    make_adapter(made.home, make_model(made.home, "Wide", hidden=64), "wide", hidden=64)
    made.catalogue.refresh()
    yield made
    made.close()


def stack(world: World) -> StackModel:
    return StackModel(world.document, world.undo, world.catalogue)


def path(world: World, name: str):
    return world.home.adapters / name


def shown(model: StackModel) -> list[int]:
    return [model.index(row).data(ID) for row in range(model.rowCount())]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.one_of(STEP, st.sampled_from(["undo", "redo"])), max_size=20))
def test_it_follows_every_command(world, steps):
    world.undo.clear()
    world.undo.push(SetBase(None, tuple(e.id for e in world.document.entries)))
    model = stack(world)
    complaints = []
    before = qInstallMessageHandler(lambda kind, context, words: complaints.append(words))
    tester = QAbstractItemModelTester(model, QAbstractItemModelTester.FailureReportingMode.Warning)
    for step in steps:
        if isinstance(step, str):
            getattr(world.undo, step)()
        elif (next_command := command(world.document, step)) is not None:
            world.undo.push(next_command)
        assert shown(model) == [e.id for e in world.document.entries]
    world.document.changed.disconnect(model._follow)
    qInstallMessageHandler(before)
    del tester
    assert complaints == []


def test_the_first_adapter_brings_its_model(world):
    model = stack(world)
    assert model.add([path(world, "a")]) == []
    assert world.document.base == world.home.models / "Tiny-Instruct"
    world.undo.undo()
    assert world.document.base is None and not len(world.document)


@pytest.mark.parametrize("name, part", [("wide", "does not fit Tiny-Instruct"), ("nowhere", "not in the library")])
def test_what_cannot_join_says_why_before_it_is_dropped(world, name, part):
    model = stack(world)
    model.add([path(world, "a")])
    why = model.refusal(path(world, name))
    mime = drag.pack(adapters=[path(world, name)])
    assert part in why and model.drop_refusal(mime) == why
    assert not model.canDropMimeData(mime, Qt.DropAction.CopyAction, 0, 0, QModelIndex())
    assert model.add([path(world, name)]) == [why] and len(world.document) == 1


def test_an_adapter_joins_once(world):
    model = stack(world)
    model.add([path(world, "a")])
    assert "already" in model.refusal(path(world, "a"))


def test_an_adapter_without_its_model_says_which_is_missing(world):
    shutil.rmtree(world.home.models / "Wide")
    world.catalogue.refresh()
    assert "Wide" in stack(world).refusal(path(world, "wide"))


def test_several_join_as_one_step_and_misfits_stay_out(world):
    model = stack(world)
    refused = model.add([path(world, n) for n in ("a", "wide", "b")])
    assert [e.name for e in world.document.entries] == ["a", "b"] and len(refused) == 1
    world.undo.undo()
    assert not len(world.document)


@pytest.mark.parametrize("row, expected", [(0, "cab"), (1, "acb"), (2, "abc"), (3, "abc"), (-1, "abc")])
def test_a_row_is_dropped_between_rows(world, row, expected):
    model = stack(world)
    model.add([path(world, n) for n in "abc"])
    mime = model.mimeData([model.index(2)])
    assert model.dropMimeData(mime, Qt.DropAction.MoveAction, row, 0, QModelIndex())
    assert "".join(e.name for e in world.document.entries) == expected


def test_rows_of_another_window_are_not_taken(world):
    model = stack(world)
    model.add([path(world, "a")])
    assert model.drop_refusal(drag.pack(entries=[999])) == ""


def test_another_model_sends_misfits_away_undoably(world):
    model = stack(world)
    model.add([path(world, "a"), path(world, "b")])
    assert model.choose_base(world.home.models / "Wide") == ["a", "b"]
    assert model.add([path(world, "wide")]) == []
    world.undo.undo()
    world.undo.undo()
    assert [e.name for e in world.document.entries] == ["a", "b"] and world.document.base.name == "Tiny-Instruct"


def test_an_adapter_whose_files_are_gone_is_marked(world):
    model = stack(world)
    model.add([path(world, "a")])
    assert model.problem(world.document.entries[0]) == ""
    shutil.rmtree(path(world, "a"))
    world.catalogue.refresh()
    assert "gone" in model.problem(world.document.entries[0])


def test_screen_readers_hear_position_and_strength(world):
    model = stack(world)
    model.add([path(world, "a"), path(world, "b")])
    assert model.index(1).data(Qt.ItemDataRole.AccessibleTextRole) == "b, position 2 of 2, strength 100 percent, on"
