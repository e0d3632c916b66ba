"""The table of methods in README.md is what the registry, the methods and their trials give."""

from __future__ import annotations

import json

from engine.methods import registry
from tests.bench import table


def facts(lines: list[str]) -> list[str]:
    """Without the number of lines and the times, which are those of the day when the table was written."""
    return [line.rsplit(" | ", 2)[0] for line in lines]


def test_the_readme_says_what_the_registry_says():
    in_readme = [line for line in table.written().splitlines() if line.startswith("|")]
    assert facts(in_readme) == facts(table.table().splitlines()), "Run: python -m tests.bench.methods --table"


def test_every_method_of_the_house_has_its_row():
    modules = {module for *_, module in table.rows()}
    assert {path.rpartition(".")[2] for path in registry._BUILT_IN.values()} <= modules


def test_what_was_measured_on_wide_layers_too_is_said_below_the_table(tmp_path, monkeypatch):
    noted = {"peft": "1", "machine": "a machine", "date": "today", "times": {}}
    monkeypatch.setattr(table, "RESULTS", tmp_path / "methods.json")
    table.RESULTS.write_text(json.dumps(noted))
    without = table.note()
    table.RESULTS.write_text(json.dumps({**noted, "wide": {"SUPERTUNING": {"token": 8.26, "plain": 8.14, "plain, usual": 2.38}}}))
    more = table.note().removeprefix(without)
    assert more.startswith(" Super-tuning") and all(figure in more for figure in ("2048 → 2048 → 5632", "8.3", "8.1", "2.4"))
