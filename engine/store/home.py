"""Where things lie on disk. One root holds everything; it can be moved as a whole."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from engine.errors import StudioError


@dataclass(frozen=True)
class Home:
    """The studio's folders under one root (environment variable ``ADAPTER_STUDIO_HOME`` overrides the default)."""

    root: Path

    @classmethod
    def default(cls) -> "Home":
        chosen = os.environ.get("ADAPTER_STUDIO_HOME")
        return cls(Path(chosen).expanduser() if chosen else user_data_path("adapter-studio", appauthor=False))

    @property
    def models(self) -> Path:
        """Base models, one Hugging Face folder each."""
        return self.root / "library" / "models"

    @property
    def starter(self) -> Path:
        """Where the starter model lies once it was fetched (`FetchSpec.model` "starter")."""
        return self.models / "SmolLM2-135M-Instruct"

    @property
    def adapters(self) -> Path:
        """Adapters, one PEFT folder each, with ``recipe.json``."""
        return self.root / "library" / "adapters"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def corrections(self) -> Path:
        """Answers put right in a chat, one file a skill, as examples to teach again."""
        return self.root / "corrections"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def downloads(self) -> Path:
        """Partial and verified downloads; may be emptied at any time."""
        return self.root / "downloads"

    @property
    def database(self) -> Path:
        """SQLite: jobs and index."""
        return self.root / "studio.db"

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    def prepare(self) -> "Home":
        """Make the folders. Raises `StudioError` when the place cannot be written."""
        try:
            for folder in (self.models, self.adapters, self.runs, self.exports, self.downloads):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudioError(f"The folder {self.root} cannot be used.", str(error.strerror or error),
                              "Choose another one with the environment variable ADAPTER_STUDIO_HOME.") from error
        return self


def safe_name(name: str) -> str:
    """A folder name for what a person typed: no separators, no leading dots, nothing a file system refuses. Never empty."""
    name = re.sub(r"[\x00-\x1f<>:\"/\\|?*.]+", " ", name).strip()
    name = re.sub(r"\s+", "-", name)[:80].strip("-")
    if name.upper() in {"CON", "PRN", "AUX", "NUL", *(f"COM{i}" for i in range(10)), *(f"LPT{i}" for i in range(10))}:
        name = f"{name}_"
    return name or "unnamed"


def free_name(folder: Path, name: str) -> Path:
    """A path in ``folder`` that does not exist yet: ``name``, ``name-2``, ``name-3`` …"""
    name = safe_name(name)
    candidate, number = folder / name, 2
    while candidate.exists():
        candidate, number = folder / f"{name}-{number}", number + 1
    return candidate
