"""The engine in place of the package `peft`: for scripts, and for transformers' own adapter integration.

Everything that only programs written for PEFT need (its module paths, its private attributes, its habits) is kept in this room, as
views that are put on the engine's classes when `install_as_peft` is called. Nothing else of the engine knows of it.
"""

from engine.compat.install import install_as_peft

__all__ = ["install_as_peft"]
