"""What the studio remembers between two starts: one documented dataclass, one JSON file, numbered migrations. No Qt here."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from collections.abc import Callable

from engine.store.atomic import write_json

VERSION = 1
MIGRATIONS: dict[int, Callable[[dict], dict]] = {}     # version found → function that makes it the next version
TEXT_SIZES = (0.9, 1.0, 1.15, 1.3, 1.5, 1.8)


@dataclass
class Values:
    """Every setting with its default. A file with fewer, more or wrong entries still loads: each is judged by itself."""

    theme: str = "system"                  # system, light, dark, contrast
    text_size: float = 1.0                 # one of TEXT_SIZES
    language: str = "en"
    geometry: str = ""                     # window place and size, as Qt packs them, in base64
    layout: str = ""                       # docks, in base64
    tab: str = "start"                     # workspace that was open
    last_folder: str = ""                  # where a file was chosen last
    remembered: dict = field(default_factory=dict)     # small things of single panels, by "panel.key"


class Settings:
    """The values and their file. `set` keeps the file up to date and tells those who watch."""

    def __init__(self, path: Path):
        self._path = path
        self._watchers: list[Callable[[str], None]] = []
        self.values = _load(path)

    def get(self, name: str) -> Any:
        return getattr(self.values, name)

    def set(self, name: str, value: Any) -> None:
        """Change one setting; raises `AttributeError` for a name that is none and `OSError` if the file cannot be written."""
        if getattr(self.values, name) == value:
            return
        setattr(self.values, name, value)
        self.save()
        for watcher in list(self._watchers):
            watcher(name)

    def remember(self, key: str, value: Any) -> None:
        """Keep a small JSON value for a panel, e.g. ``remember("teach.preset", "balanced")``."""
        self.set("remembered", {**self.values.remembered, key: value})

    def recall(self, key: str, default: Any = None) -> Any:
        return self.values.remembered.get(key, default)

    def subscribe(self, watcher: Callable[[str], None]) -> None:
        """Call ``watcher(name)`` after each change."""
        self._watchers.append(watcher)

    def save(self) -> None:
        write_json(self._path, {"version": VERSION, **dataclasses.asdict(self.values)})


def _load(path: Path) -> Values:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["version"]
        while version < VERSION:
            data, version = MIGRATIONS[version](data), version + 1
    except (OSError, ValueError, KeyError, TypeError):
        return Values()                    # no file yet, or one that says nothing: the defaults are a fine start
    values = Values()
    for known in dataclasses.fields(Values):
        default, found = getattr(values, known.name), data.get(known.name)
        if isinstance(found, type(default)) or (isinstance(default, float) and type(found) is int):
            setattr(values, known.name, found)
    return values
