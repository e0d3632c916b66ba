"""A download arrives whole and right, or not at all; what has arrived is never fetched twice."""

from __future__ import annotations

import errno
import hashlib
import random
import time
from pathlib import Path

import pytest

from engine.bases import download as module
from engine.bases.download import Source, download, fits, get_json
from engine.errors import Cancelled, DiskFull, Unreachable, explain

CONTENT = random.Random(0).randbytes(3_000_000)
CHECK = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def never() -> bool:
    return False


def bring(web, target: Path, stopped=never, check: str = CHECK, size: int = len(CONTENT), content: bytes = CONTENT) -> list:
    web.files.setdefault("/file", content)
    return list(download(Source(web.address + "/file", size, check), target, stopped))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between two tries are not what is tested."""
    monkeypatch.setattr(module, "_wait", lambda seconds, stopped: None)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_it_arrives_whole_and_leaves_nothing_beside(web, target: Path):
    events = bring(web, target)
    assert target.read_bytes() == CONTENT
    assert events[-1].done == events[-1].total == len(CONTENT)
    assert [e.done for e in events] == sorted(e.done for e in events)
    assert [p.name for p in target.parent.iterdir() if p.name.startswith("file")] == ["file"]


def test_what_is_there_and_right_is_not_fetched_again(web, target: Path):
    bring(web, target)
    asked = len(web.asked)
    bring(web, target)
    assert len(web.asked) == asked


@pytest.mark.parametrize("cuts", [[1], [1_000_000], [500_000, 700_000, 1, 0, 0]])
def test_a_cut_line_is_taken_up_where_it_was_cut(web, target: Path, cuts: list[int]):
    web.cut = list(cuts)
    bring(web, target)
    assert target.read_bytes() == CONTENT
    arrived, ranges = 0, [""]
    for length in cuts:
        arrived += length
        ranges.append(f"bytes={arrived}-" if arrived else "")
    assert [wanted for _, wanted, _ in web.asked] == ranges


def test_a_stopped_download_keeps_its_part_and_the_next_one_goes_on_from_it(web, target: Path):
    web.cut = [1_500_000]
    with pytest.raises(Cancelled):
        bring(web, target, stopped=lambda: len(web.asked) > 1)
    part = target.with_name("file.part")
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT) and part.read_bytes() == CONTENT[:kept] and not target.exists()
    web.asked.clear()
    bring(web, target)
    assert target.read_bytes() == CONTENT and web.asked[0][1] == f"bytes={kept}-"


def test_a_stop_is_heard_within_a_second_though_the_server_is_silent(web, target: Path):
    web.silent.set()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        bring(web, target, stopped=lambda: time.monotonic() - begun > 0.1)
    assert time.monotonic() - begun < 1.5
    web.closing.set()


def test_a_server_without_ranges_is_read_from_the_start(web, target: Path):
    web.ranges_allowed, web.cut = False, [1_000_000]
    bring(web, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("check", [CHECK, ""])
def test_two_versions_of_a_file_are_never_glued_together(web, target: Path, check: str):
    """The part is of an older file: known by its checksum, or, without one, by the server's mark."""
    old = random.Random(1).randbytes(len(CONTENT))
    web.files["/file"], web.cut = old, [1_000_000]
    with pytest.raises(Cancelled):
        bring(web, target, stopped=lambda: len(web.asked) > 1, check="sha256:" + hashlib.sha256(old).hexdigest() if check else "")
    web.files["/file"] = CONTENT
    bring(web, target, check=check)
    assert target.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(web, target: Path):
    web.cut = [1_000_000]
    with pytest.raises(Cancelled):
        bring(web, target, stopped=lambda: len(web.asked) > 1, size=0)
    with open(target.with_name("file.part"), "ab") as part:
        part.write(bytes(len(CONTENT)))
    bring(web, target, size=0)
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_of_it_stays(web, target: Path):
    with pytest.raises(Unreachable, match="checksum is wrong"):
        bring(web, target, check="sha256:" + "0" * 64)
    assert not target.exists() and not target.with_name("file.part").exists()


def test_a_wrong_size_is_refused(web, target: Path):
    with pytest.raises(Unreachable, match="instead of"):
        bring(web, target, size=len(CONTENT) - 1, check="")
    assert not target.exists()


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_is_one_sentence_with_the_way_out(web, target: Path, status: int):
    web.status["/file"] = status
    with pytest.raises(Unreachable, match=str(status)) as caught:
        bring(web, target)
    assert caught.value.do and caught.value.facts["status"] == status
    assert len(web.asked) == (1 if status < 500 else module.TRIES)


def test_a_dead_address_is_unreachable(target: Path):
    with pytest.raises(Unreachable, match="could not be reached"):
        list(download(Source("http://127.0.0.1:9/file"), target, never))


def test_a_full_disk_is_said_and_the_part_is_kept(web, target: Path, monkeypatch: pytest.MonkeyPatch):
    real = open

    class Full:
        """A file that takes one megabyte."""

        def __init__(self, file):
            self._file = file

        def write(self, data):
            if self._file.tell() > 1_000_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(data)

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            self._file.close()

    monkeypatch.setattr(module, "open", lambda path, mode: Full(real(path, mode)) if mode == "ab" else real(path, mode), raising=False)
    with pytest.raises(OSError) as caught:
        bring(web, target)
    assert isinstance(explain(caught.value), DiskFull)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    kept = target.with_name("file.part").stat().st_size
    web.asked.clear()
    bring(web, target)
    assert target.read_bytes() == CONTENT and kept and web.asked[0][1] == f"bytes={kept}-"


def test_too_little_room_is_said_before_anything_is_fetched(web, target: Path):
    with pytest.raises(DiskFull, match="too little room"):
        bring(web, target, size=10**18)
    assert not web.asked


def test_the_access_token_goes_to_its_own_address_only(web, target: Path):
    web.files["/elsewhere"], web.moved["/file"] = CONTENT, "/elsewhere"
    list(download(Source(web.address + "/file", token="secret"), target, never))
    assert target.read_bytes() == CONTENT
    assert [(path, token) for path, _, token in web.asked] == [("/file", "Bearer secret"), ("/elsewhere", "")]
    assert "secret" not in repr(Source("x", token="secret"))


def test_git_checksums_are_understood(tmp_path: Path):
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert fits(tmp_path / "hello", "git:ce013625030ba8dba906f756967f9e9ca394464a")
    assert not fits(tmp_path / "hello", "git:" + "0" * 40)


def test_a_silent_server_does_not_hold_up_a_question(web):
    web.silent.set()
    with pytest.raises(Unreachable):
        get_json(web.address + "/api", seconds=0.3)
    web.closing.set()
