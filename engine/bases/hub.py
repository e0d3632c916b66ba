"""A model of the Hugging Face Hub becomes a local folder: safetensors and small text files only, never a pickle, never a program."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from collections.abc import Callable, Iterator

from engine.bases.download import Source, download, get_json
from engine.errors import BadModel, Unreachable
from engine.events import Progress

WANTED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
          "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "README.md", "LICENSE", "LICENSE.txt"}
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository; ``check`` as in `engine.bases.download.Source`."""

    name: str
    size: int
    check: str


@dataclass(frozen=True)
class Remote:
    """A repository at one commit: what of it is worth having."""

    model: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def switched_off() -> bool:
    """Whether the person has forbidden the Hub with ``HF_HUB_OFFLINE``."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def address() -> str:
    """Where the Hub is: the address that `huggingface_hub` knows, or ``HF_ENDPOINT``."""
    if not (chosen := os.environ.get("HF_ENDPOINT")):
        from huggingface_hub.constants import ENDPOINT as chosen
    return chosen.rstrip("/")


def access_token() -> str:
    """The person's own access token, if they are logged in."""
    from huggingface_hub import get_token

    return get_token() or ""


def look_up(model: str, *, seconds: float = 10.0, stopped: Callable[[], bool] = lambda: False) -> Remote:
    """The newest commit of ``org/name`` and its files. Raises `BadModel` (name, no safetensors), `Unreachable`, `Cancelled`."""
    if not NAME.fullmatch(model):
        raise BadModel(f"“{model}” is not a name on the Hugging Face Hub.", "Names look like organisation/model.", "Check the spelling.")
    if switched_off():
        raise Unreachable("The Hugging Face Hub is switched off.", "The environment variable HF_HUB_OFFLINE is set.", "Remove it and try again.")
    try:
        info = get_json(f"{address()}/api/models/{model}/revision/main?blobs=true", token=access_token(), seconds=seconds, stopped=stopped)
    except Unreachable as error:
        if error.facts.get("status") in (401, 403, 404):
            raise BadModel(f"The Hub does not give out {model}.", "There is no such model, or it is private, or its makers want to be asked first.",
                           "Check the spelling; if it is a gated model, ask for access on its page and log in.", details=error.details) from error
        raise
    try:
        files = [_remote_file(entry) for entry in info["siblings"] if belongs(entry["rfilename"])]
        remote = Remote(model, str(info["sha"]), tuple(_without_doubles(files)))
    except (KeyError, TypeError, ValueError) as error:
        raise Unreachable("The Hugging Face Hub gave an answer that cannot be read.", do="Try again later.", details=repr(error)) from error
    if not any(file.name.endswith(".safetensors") for file in remote.files):
        raise BadModel(f"{model} has no weights that can be read.", "It offers no safetensors files.", "Choose a model in safetensors format.")
    return remote


def bring(remote: Remote, store: Path, stopped: Callable[[], bool]) -> Iterator[Progress]:
    """Download all files of ``remote`` into ``store``; a second call goes on where the first ended. Errors as `download`."""
    store.mkdir(parents=True, exist_ok=True)
    done, token = 0, access_token()
    for file in sorted(remote.files, key=lambda f: f.size):
        source = Source(f"{address()}/{remote.model}/resolve/{remote.commit}/{file.name}", file.size, file.check, token)
        for progress in download(source, store / file.name, stopped):
            yield Progress("Downloading the model", done + progress.done, remote.bytes, "bytes", seconds_left=progress.seconds_left)
        done += file.size


def belongs(name: str) -> bool:
    """Whether a file of this name is a part of a model that is worth having: weights in safetensors, small descriptions, no programs."""
    return name in WANTED or bool(WEIGHTS.fullmatch(name))


def _without_doubles(files: list[RemoteFile]) -> list[RemoteFile]:
    """Some repositories hold the weights twice, whole and in pieces: take the whole."""
    names = {file.name for file in files}
    if "model.safetensors" in names:
        return [f for f in files if f.name == "model.safetensors" or not WEIGHTS.fullmatch(f.name)]
    return files


def _remote_file(entry: dict) -> RemoteFile:
    large = entry.get("lfs") or {}
    digest, blob = str(large.get("sha256") or ""), str(entry.get("blobId") or "")
    check = f"sha256:{digest}" if re.fullmatch("[0-9a-f]{64}", digest) else f"git:{blob}" if re.fullmatch("[0-9a-f]{40}", blob) else ""
    return RemoteFile(entry["rfilename"], int(large.get("size") or entry.get("size") or 0), check)
