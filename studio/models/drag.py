"""What travels on a drag or the clipboard: our own MIME type with paths and ids, plain text for others, files from outside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QByteArray, QMimeData

MIME = "application/x-adapter-studio+json"
VERSION = 1
LIMIT = 1_000_000                          # bytes; more is not from us


@dataclass(frozen=True)
class Load:
    """``adapters``: folders from the library · ``entries``: ids of rows of the stack · ``files``: folders or files from outside."""

    adapters: tuple[Path, ...] = ()
    entries: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.adapters or self.entries or self.files)


def pack(*, adapters: list[Path] = (), entries: list[int] = (), names: list[str] = ()) -> QMimeData:
    """Make the data of a drag; ``names`` are what a text field receives."""
    mime = QMimeData()
    body = {"version": VERSION, "adapters": [str(path) for path in adapters], "entries": list(entries)}
    mime.setData(MIME, QByteArray(json.dumps(body).encode()))
    mime.setText("\n".join(names))
    return mime


def unpack(mime: QMimeData) -> Load:
    """Read what is dropped; whatever is not sound is as if nothing were there."""
    if mime.hasFormat(MIME):
        raw = bytes(mime.data(MIME))
        try:
            body = json.loads(raw) if len(raw) <= LIMIT else None
            if body["version"] != VERSION:
                return Load()
            adapters, entries = body["adapters"], body["entries"]
            if all(isinstance(a, str) for a in adapters) and all(type(e) is int for e in entries):
                return Load(tuple(Path(a) for a in adapters), tuple(entries))
        except (ValueError, KeyError, TypeError, RecursionError):
            return Load()
        return Load()
    return Load(files=tuple(Path(url.toLocalFile()) for url in mime.urls() if url.isLocalFile()))


def adapter_folder(path: Path) -> Path | None:
    """The adapter folder that a dropped file or folder means, or None."""
    folder = path if path.is_dir() else path.parent
    return folder if (folder / "adapter_config.json").is_file() else None
