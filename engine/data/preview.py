"""One row as the model will see it: asked for by the window, answered by the function that makes the training labels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from engine.data.render import Unusable, prepare_tokenizer, render
from engine.data.shapes import load
from engine.errors import BadData
from engine.specs import RenderedRow, RenderRow


def render_row(request: RenderRow) -> RenderedRow:
    """Raises `BadData`, `BadModel`."""
    rows = load(request.data, request.roles, request.edits, head=request.head).rows
    if not 0 <= request.row < len(rows):
        raise BadData(f"There is no example number {request.row + 1}.", f"The file has {len(rows)}.", "Choose another one.")
    try:
        rendered = render(rows[request.row], tokenizer_of(request.base), request.system)
    except Unusable as reason:
        raise BadData(f"Example {request.row + 1} cannot be learned because {reason}.", do="Change or remove it.") from reason
    return RenderedRow(spans=[list(span) for span in rendered.spans], tokens=len(rendered.ids), learned_tokens=rendered.learned,
                       limit=request.max_length)


def tokenizer_of(base: str, user: str = ""):
    """The model's tokenizer, ready to render; kept while its file stays as it is. Each ``user`` (a thread) has its own."""
    files = [Path(base) / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    return _tokenizer(base, user, tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files))


@lru_cache(4)
def _tokenizer(base: str, user: str, state: tuple):
    from engine.bases.load import load_tokenizer

    return prepare_tokenizer(load_tokenizer(base))
