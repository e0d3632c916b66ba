"""Answers that a person has put right, kept as examples: one conversation a line, in a file that can be taught like any other."""

from __future__ import annotations

import json
from pathlib import Path

from engine.errors import StudioError, explain
from engine.store.atomic import write_text
from engine.store.home import Home, safe_name

ENOUGH = 20                                # corrections that are worth teaching again


class Corrections:
    """Those of one skill (or of a model without any), by its name."""

    def __init__(self, home: Home, name: str):
        self.path: Path = home.corrections / f"{safe_name(name)}.jsonl"

    def __len__(self) -> int:
        try:
            return sum(_conversation(line) is not None for line in self._lines())
        except (OSError, UnicodeDecodeError):
            return 0

    def keep(self, messages: list[dict]) -> int:
        """Keep a conversation ({role, content}) whose last answer is the corrected one. Returns how many there are now.

        The same question put right again replaces what was kept before. Raises `StudioError` if the file cannot be read or written.
        """
        try:
            others = [line for line in self._lines() if (known := _conversation(line)) is None or known[:-1] != messages[:-1]]
            write_text(self.path, "".join(f"{line}\n" for line in [*others, json.dumps({"messages": messages}, ensure_ascii=False)]))
        except OSError as error:
            raise explain(error) from error
        except UnicodeDecodeError as error:
            raise StudioError(f"The file {self.path.name} is damaged or is not what its name says.", "", "Get or save it again.",
                              details=str(error)) from error
        return len(self)

    def _lines(self) -> list[str]:
        """One conversation each, but for what somebody has broken by hand. (Not `splitlines`: an answer may hold other signs that part lines.)"""
        try:
            return [line for line in self.path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except FileNotFoundError:
            return []


def _conversation(line: str) -> list | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    messages = row.get("messages") if isinstance(row, dict) else None
    return messages if isinstance(messages, list) and messages else None
