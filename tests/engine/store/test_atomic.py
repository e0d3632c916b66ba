"""A folder takes the place of another as a whole, or not at all."""

from __future__ import annotations

import os

import pytest

from engine.store import atomic
from engine.store.atomic import recover, replacing_folder, write_text


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one_there(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "weights").write_text("old")
    move = os.replace

    def held_open(source, place):
        if str(source).endswith(".part"):
            raise PermissionError(13, "The file is in use")
        move(source, place)

    monkeypatch.setattr(os, "replace", held_open)
    with pytest.raises(PermissionError), replacing_folder(target) as new:
        (new / "weights").write_text("new")
    assert (target / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [target]


class Killed(BaseException):
    """Nothing is run after it."""


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_in_the_middle_leaves_the_old_folder_or_the_new_one(tmp_path, monkeypatch, moves):
    """0: before the old one is moved away; 1: while none is there; 2: before the old one is deleted."""
    target, beside = tmp_path / "a.b", tmp_path / ".a.b.c.01234567.part"       # the second is that of a folder “a.b.c”
    target.mkdir(), beside.mkdir()
    (target / "weights").write_text("old")
    left, move = iter(range(moves)), os.replace

    def until_killed(source, place):
        if next(left, None) is None:
            raise Killed()
        move(source, place)

    monkeypatch.setattr(os, "replace", until_killed)
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda *_, **__: None)
    if moves == 2:
        monkeypatch.setattr(atomic, "_sync_folder", lambda folder: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed), replacing_folder(target) as new:
        (new / "weights").write_text("new")
    monkeypatch.undo()
    assert (moves == 1) is not target.exists()
    recover(target)
    assert (target / "weights").read_text() == ("new" if moves == 2 else "old") and sorted(tmp_path.iterdir()) == [beside, target]


def test_where_a_reader_holds_a_file_it_is_tried_again(tmp_path, monkeypatch):
    tries, move = iter(range(2)), os.replace

    def held_open(source, place):
        if next(tries, None) is not None:
            raise PermissionError(13, "The file is in use")
        move(source, place)

    monkeypatch.setattr(atomic, "PATIENCE", (0, 0, 0))
    monkeypatch.setattr(os, "replace", held_open)
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
