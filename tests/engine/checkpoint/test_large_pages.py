"""What is read is what the file holds, whatever pages the system gives; after one that was dear no more are asked for."""

import io
import itertools

import pytest
import torch

from engine.checkpoint import large_pages
from engine.checkpoint.large_pages import LARGE, read_into


@pytest.fixture
def asked(monkeypatch):
    found = []
    monkeypatch.setattr(large_pages, "_ready", True)
    monkeypatch.setattr(large_pages, "_asker", lambda: lambda address, size: found.append((address, size)))
    return found


def content(size):
    return torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 3 * LARGE + 5])
def test_all_bytes_arrive(size):
    wanted, room = content(size), torch.empty(size, dtype=torch.uint8)
    assert read_into(io.BytesIO(wanted.numpy().tobytes()), room) == size and torch.equal(room, wanted)


def test_a_system_that_cannot_be_asked_reads_as_well(monkeypatch):
    monkeypatch.setattr(large_pages, "_asker", lambda: None)
    wanted, room = content(LARGE + 7), torch.empty(LARGE + 7, dtype=torch.uint8)
    assert read_into(io.BytesIO(wanted.numpy().tobytes()), room) == LARGE + 7 and torch.equal(room, wanted)


def test_a_file_that_ends_early_is_told_by_the_number(asked):
    assert read_into(io.BytesIO(b"x" * (LARGE + 1)), torch.empty(4 * LARGE, dtype=torch.uint8)) == LARGE + 1


@pytest.mark.parametrize("seconds, pages", [(0.0001, 3), (0.01, 1)])
def test_only_whole_pages_are_asked_for_and_none_after_a_dear_one(monkeypatch, asked, seconds, pages):
    clock = itertools.count(0, seconds)
    monkeypatch.setattr(large_pages.time, "thread_time", lambda: next(clock))
    block = torch.empty(5 * LARGE, dtype=torch.uint8)
    start = -block.data_ptr() % LARGE
    room = block[start + 1:start + 4 * LARGE]                  # three whole pages, and parts of one before and after
    assert read_into(io.BytesIO(bytes(len(room))), room) == len(room) and not room.any()
    assert asked == [(block.data_ptr() + start + n * LARGE, LARGE) for n in range(1, 1 + pages)]
    read_into(io.BytesIO(bytes(len(room))), room)
    assert len(asked) == (6 if pages == 3 else 1)
