"""Modules that take long to load, loaded beside the window, which would stand still meanwhile."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from threading import Thread


@cache
def _loading(module: str) -> Thread:
    thread = Thread(target=import_module, args=(module,), name=f"loading {module}")
    thread.start()
    return thread


def loaded(module: str, patience: float = 0.0) -> bool:
    """Whether it is there, waiting so many seconds at most; whoever asks first lets it begin."""
    thread = _loading(module)
    thread.join(patience)
    return not thread.is_alive()
