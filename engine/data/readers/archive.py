"""Zip files: those that people send, read where they lie, and those that office files are.

Nothing is ever unpacked to the disk. A file inside an archive is an `Inside`: it has as much of `pathlib.Path` as the readers use, so that
they read it as any other. What is read of it is bounded by what the archive's directory says, and that is bounded here.
"""

from __future__ import annotations

import contextlib
import io
import stat
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from engine.data.table import damaged
from engine.errors import BadData

MAX_UNPACKED = 1 << 31                     # bytes that an archive may unpack to
MAX_SQUEEZED = 200                         # and how many times its own size, from 64 MB on
MAX_MEMBERS = 20_000
MAX_HELD = 256 << 20                       # bytes of an office file inside an archive: such a file cannot be read piece by piece
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)      # LZMA may ask for gigabytes before its first byte


class _Lent(io.RawIOBase):
    """A file that is open only while somebody reads it, so that its owner can write it anew in between, on every system."""

    def __init__(self, path: Path):
        super().__init__()
        self._path, self._place, self._file, self._readers, self._lock = path, 0, None, 0, threading.Lock()

    def __enter__(self) -> "_Lent":
        with self._lock:
            self._file = self._file or self._path.open("rb")
            self._readers += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._file.close()
                self._file = None

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        if whence == 2:
            place += self._path.stat().st_size
        self._place = place + self._place * (whence == 1)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        self._file.seek(self._place)
        found = self._file.read(size)
        self._place += len(found)
        return found


class Inside:
    """A file inside a zip: name, suffix, parent, size and bytes. The zip itself is open only while one of these is."""

    def __init__(self, archive: zipfile.ZipFile, lent: _Lent, part: zipfile.ZipInfo, outside: Path):
        self._archive, self._lent, self._part, self.outside = archive, lent, part, outside
        self._path = PurePosixPath("".join(c for c in part.filename if c.isprintable()))
        self.name, self.suffix, self.parent, self.parts = self._path.name, self._path.suffix, self._path.parent, self._path.parts

    def __str__(self) -> str:
        return f"{self.outside}/{self._path}"

    def exists(self) -> bool:
        return True

    def is_dir(self) -> bool:
        return False

    def stat(self) -> SimpleNamespace:
        """Only the size."""
        return SimpleNamespace(st_size=self._part.file_size)

    def open(self, mode: str = "rb") -> io.BufferedIOBase:
        """A stream of its bytes. Seeking in it means reading on, or anew from the beginning. Raises `BadData` if it is damaged."""
        try:
            return _Careful(self._archive, self._lent, self._part, self)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as problem:
            raise damaged(self, problem) from problem

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()


class _Careful(io.BufferedIOBase):
    """The stream of a member; whatever is wrong with it is one sentence."""

    def __init__(self, archive: zipfile.ZipFile, lent: _Lent, part: zipfile.ZipInfo, member: Inside):
        self._stream, self._member, self._held = None, member, contextlib.ExitStack()
        with contextlib.ExitStack() as held:
            held.enter_context(lent)
            self._stream = held.enter_context(archive.open(part))
            self._held = held.pop_all()

    def _do(self, method: str, *values):
        try:
            return getattr(self._stream, method)(*values)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, zipfile.zlib.error) as problem:
            raise damaged(self._member, problem) from problem

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        return self._do("read", size)

    def read1(self, size: int = -1) -> bytes:
        return self._do("read1", size)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._do("seek", place, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._held.close()
        super().close()


def seekable(path: Path | Inside) -> Path | io.BytesIO:
    """What a library that leaps about in its file is given. Raises `BadData` for what is too large to be held."""
    if not isinstance(path, Inside):
        return path
    if path.stat().st_size > MAX_HELD:
        raise BadData(f"The file {path.name} is too large to be read inside an archive.", f"It has {path.stat().st_size / 1e6:,.0f} MB.",
                      "Unpack the archive first, then choose the folder.", path=str(path))
    return io.BytesIO(path.read_bytes())


def members(path: Path, is_read: Callable[[PurePosixPath], bool]) -> tuple[list[Inside], list[str]]:
    """The files in an archive, in the order of their names; and the names that point out of it or are links, which are passed over.

    Args:
        is_read: which files will ever be opened.

    Raises `BadData`: no zip, damaged, protected by a password, made to fill a computer, packed in a way that is not read.
    """
    with _Lent(path) as lent:
        archive, parts = _directory(path, lent)
    astray = [part.filename for part in parts if leads_away(part)]
    parts = [part for part in parts if not part.is_dir() and not leads_away(part)]
    wanted = [part for part in parts if is_read(PurePosixPath(part.filename))]
    _check_size(path, wanted, path.stat().st_size)
    if any(part.flag_bits & 1 for part in wanted):
        raise BadData(f"The file {path.name} is protected by a password.", do="Unpack it first, then choose the folder.", path=str(path))
    if strange := [part for part in wanted if part.compress_type not in _READABLE]:
        raise BadData(f"The file {path.name} is packed in a way that is not read here.", f"The first such file in it is {strange[0].filename}.",
                      "Unpack it first, then choose the folder.", path=str(path))
    return sorted((Inside(archive, lent, part, path) for part in parts), key=str), astray


def leads_away(part: zipfile.ZipInfo) -> bool:
    """Whether a member's name leaves the archive (../, /, C:) or the member is a link to somewhere."""
    name = part.filename.replace("\\", "/")
    return name.startswith("/") or ".." in name.split("/") or name[1:2] == ":" or stat.S_ISLNK(part.external_attr >> 16)


def careful_zip(path: Path | Inside, member: str) -> None:
    """Look at an office file before any of it is unpacked. Raises `BadData`: no zip, damaged, protected, a bomb, another kind."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise BadData(f"The file {path.name} is protected by a password or is of an old kind.",
                      do="Open it in its own program and save it anew, without a password.", path=str(path))
    archive, parts = _directory(path, seekable(path))
    archive.close()
    _check_size(path, parts, path.stat().st_size)
    if any(part.flag_bits & 1 for part in parts):
        raise BadData(f"The file {path.name} is protected by a password.", do="Save it without a password.", path=str(path))
    if member not in archive.NameToInfo:
        raise damaged(path, f"there is no {member} in it", "Check which program it comes from, and save it again.")


def _directory(path: Path | Inside, file: Path | io.IOBase) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    try:
        archive = zipfile.ZipFile(file)
        return archive, archive.infolist()
    except PermissionError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise damaged(path, problem) from problem


def _check_size(path: Path | Inside, parts: list[zipfile.ZipInfo], packed: int) -> None:
    whole = sum(part.file_size for part in parts)
    if whole > MAX_UNPACKED or whole > max(MAX_SQUEEZED * max(packed, 1), 64 << 20) or len(parts) > MAX_MEMBERS:
        raise BadData(f"The file {path.name} is not opened.", f"It would unpack to {whole / 1e9:.1f} GB, as files made to fill a computer do.",
                      "Choose another file.", path=str(path))
