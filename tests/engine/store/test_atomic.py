"""A folder takes the place of another as a whole, or not at all."""

from __future__ import annotations

import os

import pytest

from engine.store.atomic import replacing_folder


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
