"""What a person means by the name of a model that is not in the library yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.specs import FetchSpec
from studio.core.text import teach as words

ON_THE_HUB = re.compile(r"(?:https?://huggingface\.co/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/?")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Wish:
    """Either a job that brings the model, or the sentence that says why there is none."""

    name: str = ""
    spec: FetchSpec | None = None
    fault: str = ""


def understand(typed: str, models: Path) -> Wish:
    """A name on the Hub (or its address), the path of a model folder, or of a GGUF file; it goes into the folder ``models``."""
    typed = typed.strip().strip('"')
    path = Path(typed).expanduser()
    if path.suffix.lower() in PICKLES:
        return Wish(fault=words.MODEL_BRING_PICKLE(name=path.name))
    if typed and path.exists() and (path.is_dir() or path.suffix.lower() == ".gguf"):
        model, name = str(path.resolve()), path.resolve().name
    elif found := ON_THE_HUB.fullmatch(typed):
        model, name = found[1], found[1].partition("/")[2]
    else:
        return Wish(fault=words.MODEL_BRING_WRONG(text=typed))
    name = re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    if (models / name).exists():
        return Wish(fault=words.MODEL_BRING_THERE(name=name))
    return Wish(name, FetchSpec(out=str(models / name), model=model))
