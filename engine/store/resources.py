"""Where the shipped files lie: samples, icons, fonts, presets."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "_resources", _PACKAGE.parent / "resources")     # a built package; a clone or an editable install


def resource(name: str = "") -> Path:
    """Path of a shipped file or folder, e.g. ``resource("samples/corner-shop.csv")``. Raises `FileNotFoundError` naming it."""
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(f"The program's own file resources/{name} is missing: install the program again.")
