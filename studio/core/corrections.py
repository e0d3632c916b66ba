"""Answers that a person has put right, kept as examples: one conversation a line, in a file that can be taught like any other."""

from __future__ import annotations

import json
from pathlib import Path

from engine.errors import explain
from engine.store.atomic import write_text
from engine.store.home import Home, safe_name

ENOUGH = 20                                # corrections that are worth teaching again


class Corrections:
    """Those of one skill (or of a model without any), by its name."""

    def __init__(self, home: Home, name: str):
        self.path: Path = home.corrections / f"{safe_name(name)}.jsonl"

    def __len__(self) -> int:
        return len(self._rows())

    def keep(self, messages: list[dict]) -> int:
        """Keep a conversation ({role, content}) whose last answer is the corrected one. Returns how many there are now.

        The same question put right again replaces what was kept before. Raises `StudioError` if the file cannot be written.
        """
        rows = [row for row in self._rows() if row["messages"][:-1] != messages[:-1]] + [{"messages": messages}]
        try:
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        except OSError as error:
            raise explain(error) from error
        return len(rows)

    def _rows(self) -> list[dict]:
        """What is kept; a line that somebody has broken by hand is left out."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("messages"), list) and row["messages"]:
                rows.append(row)
        return rows
