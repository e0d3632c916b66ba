"""Whose a lock is, whatever the disk says."""

from __future__ import annotations

import errno
import os

import pytest

from engine.errors import Busy
from engine.store.lock import FileLock, owner


def test_a_full_disk_keeps_nobody_from_a_lock_and_leaves_none_behind(tmp_path, monkeypatch):
    def full(handle, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with FileLock(tmp_path / "lock", "It is taken."):
            with pytest.raises(Busy):
                FileLock(tmp_path / "lock", "It is taken.").acquire()
    with FileLock(tmp_path / "lock", "It is taken."):
        assert owner(tmp_path / "lock") == os.getpid()
