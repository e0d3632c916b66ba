"""Every write is whole or not there: temporary file beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any
from collections.abc import Iterator, Sequence


PATIENCE = (0.01, 0.05, 0.1, 0.2, 0.4) if os.name == "nt" else ()     # seconds between tries: nothing moves there while somebody reads it


def _move(source: Path, target: Path) -> None:
    for pause in PATIENCE:
        with contextlib.suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(pause)
    os.replace(source, target)


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable. Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced and takes the place of ``path``.

    On any exception the temporary file is removed and ``path`` is untouched.
    """
    with replacing_all([Path(path)]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The same for files that belong together: none takes its place before all of them are on the disk; then each in its turn."""
    temporaries = [path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part" for path in paths]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            _move(temporary, path)
        for folder in dict.fromkeys(path.parent for path in paths):
            _sync_folder(folder)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on success its files are synced and it takes the place of ``path``.

    An existing folder at ``path`` is replaced as a whole; on any exception it is untouched. After a kill in the middle, `recover` it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        old = None
        if path.exists():
            old = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
            _move(path, old)
        try:
            _move(temporary, path)
        except OSError:
            if old is not None:
                _move(old, path)
            raise
        _sync_folder(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(path: Path | str) -> None:
    """What a kill in the middle of `replacing_folder` left beside ``path`` goes; what had stood there stands there again.

    Nobody may be writing ``path`` meanwhile.
    """
    path = Path(path)
    for left in sorted(path.parent.glob(f".{glob.escape(path.name)}.????????.*")):
        if left.suffix == ".old" and not path.exists():
            _move(left, path)
        elif left.suffix in (".old", ".part"):
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path | str, data: Any) -> None:
    """Write JSON atomically, keys in the given order, readable by people."""
    write_text(path, as_json(data))


def as_json(data: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
