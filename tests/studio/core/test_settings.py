"""Settings survive, and a damaged file costs only what is damaged."""

from __future__ import annotations

import json

import pytest

from studio.core import settings as module
from studio.core.settings import Settings, Values


def test_what_is_set_is_there_at_the_next_start(tmp_path):
    first = Settings(tmp_path / "s.json")
    first.set("theme", "dark")
    first.remember("teach.preset", "best")
    second = Settings(tmp_path / "s.json")
    assert second.get("theme") == "dark" and second.recall("teach.preset") == "best" and second.recall("none", 3) == 3


def test_watchers_hear_only_real_changes(tmp_path):
    settings, heard = Settings(tmp_path / "s.json"), []
    settings.subscribe(heard.append)
    settings.set("theme", "dark")
    settings.set("theme", "dark")
    assert heard == ["theme"]
    with pytest.raises(AttributeError):
        settings.set("colour of the cat", 1)


@pytest.mark.parametrize("content", ["", "null", "[]", "{", '{"version": "x"}', '{"theme": "dark"}', "\x00"])
def test_an_unreadable_file_means_defaults(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    assert Settings(tmp_path / "s.json").values == Values()


def test_each_value_is_judged_by_itself(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"version": 1, "theme": "dark", "text_size": "huge", "tab": 5, "from the future": 1,
                                                 "remembered": {"a": 1}}))
    values = Settings(tmp_path / "s.json").values
    assert (values.theme, values.text_size, values.tab, values.remembered) == ("dark", 1.0, "start", {"a": 1})


def test_older_files_are_brought_up_step_by_step(tmp_path, monkeypatch):
    (tmp_path / "s.json").write_text(json.dumps({"version": -1, "colours": "dark"}))
    monkeypatch.setattr(module, "MIGRATIONS", {-1: lambda d: {**d, "theme": d["colours"]}, 0: lambda d: {**d, "tab": "mix"}})
    values = Settings(tmp_path / "s.json").values
    assert (values.theme, values.tab) == ("dark", "mix")
