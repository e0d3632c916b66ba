"""PEFT's tests that the engine fails on purpose: (pattern of the test's name, why). Counted apart by `tests.parity.peft_suite`."""

from __future__ import annotations

DIFFERENCES: list[tuple[str, str]] = []
