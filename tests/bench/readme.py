"""Tables in README.md: each stands between its two marks, ``<!-- name -->`` and ``<!-- /name -->``. And of which code a result is."""

from __future__ import annotations

import datetime
import subprocess
from importlib import metadata
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def rows(*cells: list[str]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *body = cells
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def read(name: str) -> str:
    """What stands between the marks. Raises `SystemExit` if there are none."""
    return _parts(name)[1]


def put(name: str, content: str) -> None:
    """Let ``content`` stand there. Raises `SystemExit` if there are no marks."""
    before, _, after = _parts(name)
    README.write_text(f"{before}\n{content}\n{after}", encoding="utf-8")


def signed(bench: str) -> dict[str, str]:
    """Day, torch and commit of a result that this file measures now; a plus where the engine or the file is newer than the commit."""
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(README.parent), *words], capture_output=True, text=True, check=False).stdout.strip()

    return {"date": datetime.date.today().isoformat(), "torch": metadata.version("torch"),
            "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "engine", bench) else "")}


def _parts(name: str) -> tuple[str, str, str]:
    text, start, end = README.read_text(encoding="utf-8"), f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise SystemExit(f"README.md has no place for the table: put {start} and {end} where it is to stand.")
    first, last = text.index(start) + len(start), text.index(end)
    return text[:first], text[first:last].strip("\n"), text[last:]
