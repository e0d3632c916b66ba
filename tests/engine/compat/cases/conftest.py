"""Puts the engine in PEFT's place before anything else is imported."""

from __future__ import annotations

from engine.compat import install_as_peft

install_as_peft()
