"""What lies in a folder: base models and adapters, told from their small files alone (no tensor is read)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from collections.abc import Iterator

from engine.errors import BadAdapter, BadModel
from engine.store.headers import Header, read_header

CONFIG_LIMIT = 10_000_000                  # bytes; a larger JSON is no configuration


def folder_bytes(folder: Path) -> int:
    """What a folder takes on the disk, all files counted; what is just being deleted counts as gone."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def read_json(path: Path, error: type) -> dict:
    """A small JSON object from disk. Raises ``error`` (a `StudioError` class)."""
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise error(f"The file {path.name} is far too large to be a description.", do="Get the folder again.", path=str(path))
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"The file {path.name} is missing in {path.parent.name}.", do="Get the folder again, whole.", path=str(path)) from problem
    except (ValueError, RecursionError) as problem:            # also a number of more digits than Python takes
        raise error(f"The file {path.name} cannot be read.", "It is damaged.", "Get the folder again.", path=str(path)) from problem
    if not isinstance(data, dict):
        raise error(f"The file {path.name} cannot be read.", "It holds something else than expected.", "Get the folder again.", path=str(path))
    return data


@contextlib.contextmanager
def _reading(path: Path, error: type) -> Iterator[None]:
    """What the system says of a folder that goes while it is read, or may not be read, as an ``error``."""
    try:
        yield
    except OSError as problem:
        raise error(f"The folder {path.name} cannot be read.", str(problem.strerror or problem), "Check that it is there and that you may read it.",
                    path=str(path)) from problem


@dataclass(frozen=True)
class ModelInfo:
    """A base model folder. ``bytes`` is all that lies in it; ``fingerprint`` identifies the weights (hash over the files' headers and sizes)."""

    path: Path
    name: str
    model_type: str
    parameters: int
    bytes: int
    dtype: str
    fingerprint: str
    has_chat_template: bool
    config: dict = field(repr=False, compare=False)
    headers: tuple[Header, ...] = field(repr=False, compare=False)


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter folder in PEFT's format. ``bytes`` is all that lies in it; ``fingerprint`` is the SHA-256 of its weights file."""

    path: Path
    name: str
    peft_type: str
    base: str                              # as written in its config; may be a path or a Hub name
    base_fingerprint: str                  # from recipe.json, "" if unknown
    rank: int | None
    parameters: int
    bytes: int
    fingerprint: str
    config: dict = field(repr=False, compare=False)
    recipe: dict = field(repr=False, compare=False)
    header: Header = field(repr=False, compare=False)


def read_model(path: Path | str) -> ModelInfo:
    """Describe a base model folder. Raises `BadModel` with the way out."""
    with _reading(Path(path), BadModel):
        return _model(Path(path))


def _model(path: Path) -> ModelInfo:
    if path.is_file() and path.suffix == ".gguf":
        raise BadModel("A GGUF file cannot be trained.", "It holds shrunken weights.", "Get the original model folder.", path=str(path))
    if not path.is_dir():
        raise BadModel(f"The model folder {path} does not exist.", do="Choose another model, or fetch it again.", path=str(path))
    if (path / "adapter_config.json").exists():
        raise BadModel(f"{path.name} is an adapter, not a model.", do="Choose the model that it was made for.", path=str(path))
    config = read_json(path / "config.json", BadModel)
    index = path / "model.safetensors.index.json"
    if index.exists():
        places = read_json(index, BadModel).get("weight_map")
        if not isinstance(places, dict) or any(not isinstance(n, str) for n in places.values()):
            raise BadModel(f"The file {index.name} cannot be read.", "It does not say which tensor lies in which file.", "Get the model again.",
                           path=str(index))
        names = sorted(set(places.values()))
        if any(Path(n).name != n for n in names):
            raise BadModel(f"The model {path.name} points to files outside its folder.", do="Do not use it.", path=str(path))
    else:
        names = sorted(p.name for p in path.glob("*.safetensors"))
    if not names:
        pickled = sorted(p.name for p in path.glob("*.bin"))
        why = (f"It has only {pickled[0]}, a format that could run a program when opened." if pickled
               else "There is no safetensors file in the folder.")
        raise BadModel(f"The model {path.name} has no weights that can be read.", why, "Get the model again, in safetensors format.", path=str(path))
    headers = tuple(read_header(path / name, BadModel) for name in names)
    dtypes: dict[str, int] = {}
    for header in headers:
        for tensor in header.tensors.values():
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.numel
    template = (path / "chat_template.jinja").exists() or "chat_template" in _quiet_json(path / "tokenizer_config.json")
    digest = hashlib.sha256("".join(h.digest for h in headers).encode() + _sample(headers)).hexdigest()
    return ModelInfo(path, path.name, str(config.get("model_type", "")), sum(h.numel for h in headers),
                     folder_bytes(path), max(dtypes, key=dtypes.get, default=""), digest, template, config, headers)


def _sample(headers: tuple[Header, ...]) -> bytes:
    """64 KiB from the middle of each file: two fine-tunes of one model share their headers but not this."""
    pieces = []
    for header in headers:
        with open(header.path, "rb") as file:
            file.seek(header.data_start + (header.path.stat().st_size - header.data_start) // 2)
            pieces.append(file.read(65536))
    return hashlib.sha256(b"".join(pieces)).digest()


def _quiet_json(path: Path) -> dict:
    try:
        return read_json(path, BadModel)
    except BadModel:
        return {}


def read_adapter(path: Path | str) -> AdapterInfo:
    """Describe an adapter folder. Raises `BadAdapter` with the way out; never opens a pickle."""
    with _reading(Path(path), BadAdapter):
        return _adapter(Path(path))


def _adapter(path: Path) -> AdapterInfo:
    if not path.is_dir():
        raise BadAdapter(f"The adapter folder {path} does not exist.", do="Choose another adapter.", path=str(path))
    config = read_json(path / "adapter_config.json", BadAdapter)
    weights = path / "adapter_model.safetensors"
    if not weights.exists():
        why = ("It has only adapter_model.bin, a format that could run a program when opened." if (path / "adapter_model.bin").exists()
               else "The file adapter_model.safetensors is missing.")
        raise BadAdapter(f"The adapter {path.name} has no weights that can be read.", why, "Get it again, in safetensors format.", path=str(path))
    header = read_header(weights, BadAdapter)
    recipe = _quiet_json(path / "recipe.json")
    rank = config.get("r")
    with open(weights, "rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    return AdapterInfo(path, path.name, str(config.get("peft_type", "")), str(config.get("base_model_name_or_path") or ""),
                       str(recipe.get("base_fingerprint", "")), rank if isinstance(rank, int) else None, header.numel,
                       folder_bytes(path), fingerprint, config, recipe, header)


def scan(folder: Path | str, reader) -> tuple[list, list]:
    """Read every sub-folder with ``reader`` (`read_model` or `read_adapter`). Returns (infos, errors), each sorted by name."""
    infos, errors = [], []
    folder = Path(folder)
    for child in sorted(folder.iterdir(), key=lambda p: p.name.lower()) if folder.is_dir() else []:
        if child.is_dir() and not child.name.startswith("."):
            try:
                infos.append(reader(child))
            except (BadModel, BadAdapter) as problem:
                errors.append(problem)
    return infos, errors
