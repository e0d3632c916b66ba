"""One owner at a time: a lock that the operating system takes back when its process ends, however it ends.

There is therefore no stale lock: the file of a dead process is simply taken over.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from engine.errors import Busy

if os.name == "nt":
    import msvcrt

    def _grab(handle: int) -> None:
        os.lseek(handle, 1 << 30, os.SEEK_SET)     # a byte far behind the text, which others may then still read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _grab(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """An exclusive lock on ``path``; the file holds the owner's process number. Use as a context manager.

    Args:
        what: the sentence of the `Busy` error. do: its way out. wait: seconds to try before giving up.
    """

    def __init__(self, path: Path | str, what: str, do: str = "", wait: float = 0.0):
        self.path, self.what, self.do, self.wait = Path(path), what, do, wait
        self._handle: int | None = None

    def acquire(self) -> "FileLock":
        """Raises `Busy` (fact ``pid`` of the owner, if it is known) when someone else holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        until = time.monotonic() + self.wait
        while True:
            try:
                _grab(handle)
                break
            except OSError:
                if time.monotonic() >= until:
                    os.close(handle)
                    raise Busy(self.what, do=self.do, pid=owner(self.path)) from None
                time.sleep(0.05)
        self._handle = handle
        with contextlib.suppress(OSError):     # on a full disk nobody learns whose it is, but it is ours
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, str(os.getpid()).encode())
        return self

    def release(self) -> None:
        """Closing the file gives the lock back; the file itself stays (removing it would race with the next owner)."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> "FileLock":
        return self.acquire()

    def __exit__(self, *exc) -> None:
        self.release()


def owner(path: Path | str) -> int | None:
    """The process number written in a lock file, None if there is none. Says nothing about whether it still lives."""
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
