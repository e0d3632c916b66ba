"""A run folder says what happened, whatever a power cut did to it."""

from __future__ import annotations

import pytest

from engine import events, specs
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
