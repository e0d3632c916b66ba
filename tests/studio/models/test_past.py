"""Histories are read in bites, whole and in order."""

from PySide6.QtCore import QObject

from engine import events, specs
from engine.store.runs import EventLog, RunFolder
from studio.models import past
from studio.models.past import Past


def history(tmp_path, count):
    run = RunFolder.create(tmp_path / "run", specs.FetchSpec(out="x"))
    with EventLog(run) as log:
        for number in range(count):
            log.write(events.Note(str(number)))
    return run.path


def test_a_short_history_is_there_at_once(tmp_path, qapp):
    heard, ends = [], []
    Past(QObject(qapp)).read(history(tmp_path, 5), heard.append, lambda: ends.append(len(heard)))
    assert [e.text for e in heard] == list("01234") and ends == [5]


def test_a_long_one_comes_in_bites_and_loses_nothing(tmp_path, qapp, qtbot, monkeypatch):
    monkeypatch.setattr(past, "BITE", 0.0)
    heard, ends, reader = [], [], Past(QObject(qapp))
    reader.read(history(tmp_path, 60), heard.append, lambda: ends.append(len(heard)))
    assert len(heard) == 1 and reader.reading
    qtbot.waitUntil(lambda: bool(ends), timeout=5000)
    assert [e.seq for e in heard] == list(range(1, 61)) and ends == [60] and not reader.reading


def test_a_new_history_takes_the_place_of_the_old(tmp_path, qapp, qtbot, monkeypatch):
    monkeypatch.setattr(past, "BITE", 0.0)
    old, new, reader = [], [], Past(QObject(qapp))
    reader.read(history(tmp_path, 30), old.append, lambda: old.append("end"))
    reader.read(None, new.append, lambda: new.append("end"))
    assert new == ["end"]
    for _ in range(60):
        qapp.processEvents()
    assert len(old) == 1
