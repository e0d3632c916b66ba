"""A run folder says what happened, whatever a power cut did to it."""

from __future__ import annotations

import errno

import pytest

from engine import events, specs
from engine.store.record import last_step
from engine.store.runs import EventLog, EventTail, RunFolder


@pytest.mark.parametrize("torn", ['{"event": "note", "text": "Mü'.encode()[:-1], b'{"event": "note", "te', b"null\n", b"\0\0\0\0"])
def test_a_line_torn_anywhere_is_passed_over_and_the_log_goes_on(tmp_path, torn):
    run = RunFolder.create(tmp_path / "run", specs.FetchSpec(out="x"))
    with EventLog(run) as log:
        log.write(events.Note("before"))
    with open(run.path / "events.jsonl", "ab") as file:
        file.write(torn)
    with EventLog(run) as log:
        log.write(events.Note("after"))
    for heard in (list(run.events()), EventTail(run).poll()):
        assert [(event.text, event.seq) for event in heard] == [("before", 1), ("after", 2)]


@pytest.mark.parametrize("damage", [b"\0" * 40, b'{"event": "note", "text": "M\xc3', b"null", b"{}"])
def test_an_outcome_that_cannot_be_read_is_none(tmp_path, damage):
    run = RunFolder.create(tmp_path / "run", specs.FetchSpec(out="x"))
    (run.path / "outcome.json").write_bytes(damage)
    outcome = run.outcome()
    assert outcome is None or not outcome.final


class NearlyFull:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(bytes(data[:min(7, self.room)]))       # a piece at a time, as a pipe or a network's disk does
        self.room -= taken
        return taken

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_nearly_full_disk_gets_an_event_whole_or_not_at_all(tmp_path):
    run = RunFolder.create(tmp_path / "run", specs.FetchSpec(out="x"))
    with EventLog(run) as log:
        tail, log._file = EventTail(run), NearlyFull(log._file, 200)
        log.write(events.Note("before"))
        with open(run.path / "events.jsonl", "ab") as file:    # as it looks for a moment, when somebody happens to look
            file.write(b'{"event": "note", "te')
        assert [event.text for event in tail.poll()] == ["before"]
        log._file.truncate(log._file.tell())
        with pytest.raises(OSError, match="No space"):
            log.write(events.Note("long" * 40))
        log._file = log._file.file
        log.write(events.Note("after"))
    for heard in (list(run.events()), [events.Note("before", seq=1), *tail.poll()]):
        assert [(event.text, event.seq) for event in heard] == [("before", 1), ("after", 2)]


def test_an_end_that_cannot_be_written_down_is_none(tmp_path, monkeypatch):
    """Else a job would end twice: finished, then failed because that could not be said."""
    run = RunFolder.create(tmp_path / "run", specs.FetchSpec(out="x"))
    with EventLog(run) as log:
        with monkeypatch.context() as patched, pytest.raises(OSError):
            patched.setattr("engine.store.runs.write_json", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
            log.write(events.Finished({}))
        assert list(run.events()) == [] and run.outcome() is None
        log.write(events.Failed({}))
    assert [event.kind for event in run.events()] == ["failed"] and run.outcome().kind == "failed"


@pytest.mark.parametrize("last, step", [(events.Saved(3, "step-00000003"), 3), (events.Saved(0, ""), None)])
def test_a_checkpoint_that_was_taken_back_is_none(tmp_path, last, step):
    run = RunFolder.create(tmp_path / "run", specs.FetchSpec(out="x"))
    with EventLog(run) as log:
        log.write(events.Saved(6, "step-00000006"))
        log.write(last)
    assert last_step(run) == step
