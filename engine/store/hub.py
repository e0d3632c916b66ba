"""Where an adapter lies: a folder here, or a name on the Hugging Face Hub, whose files are fetched into the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import BadAdapter, Unreachable

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "use_auth_token", "local_files_only", "force_download", "endpoint", "proxies")


def hub_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call's arguments that say how the Hub is asked; old names as today's."""
    found = {name: given[name] for name in HUB_ARGUMENTS if given.get(name) is not None}
    if "use_auth_token" in found:
        found.setdefault("token", found.pop("use_auth_token"))
    found.pop("proxies", None)             # the system's own are used
    return found


def locate(model_id: Path | str, subfolder: str | None = None, *, only_config: bool = False, **hub: Any) -> Path:
    """The folder of an adapter: a local path, or a name on the Hugging Face Hub (config and weights are fetched).

    Args:
        subfolder: of the folder or repository. only_config: the weights are not needed. hub: see `HUB_ARGUMENTS`.

    Raises:
        BadAdapter: neither is there. Unreachable: the Hub cannot be asked.
    """
    folder = Path(model_id)
    if not folder.is_dir() and str(model_id).count("/") == 1 and not str(model_id).startswith((".", "/")):
        folder = _fetch(str(model_id), subfolder, only_config, hub_arguments(hub))
    if subfolder:
        inside = (folder / subfolder).resolve()
        if not inside.is_relative_to(folder.resolve()):
            raise BadAdapter(f"The sub-folder {subfolder} lies outside of {folder.name}.", do="Choose another one.")
        folder = inside
    if not (folder / CONFIG).is_file():
        raise BadAdapter(f"Can't find '{CONFIG}' at '{model_id}'.", "There is no adapter in that place.", "Choose another folder.")
    return folder


def _fetch(repo: str, subfolder: str | None, only_config: bool, hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    def fetch(*names: str) -> Path:
        wanted = [f"{subfolder}/{name}" if subfolder else name for name in names]
        return Path(snapshot_download(repo, allow_patterns=wanted, **hub))

    try:
        folder = fetch(CONFIG, *(() if only_config else (WEIGHTS,)))
        return folder if only_config or (folder / (subfolder or "") / WEIGHTS).exists() else fetch(CONFIG, OLD_WEIGHTS)
    except HFValidationError:              # no name on the Hub, but a folder that is not there
        return Path(repo)
    except RepositoryNotFoundError as problem:
        raise BadAdapter(f"There is no adapter “{repo}” on the Hub, or it is private.", do="Check the name, or log in.") from problem
    except RevisionNotFoundError as problem:
        raise BadAdapter(f"The adapter “{repo}” has no state “{hub.get('revision')}”.", do="Check the name, or log in.") from problem
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as problem:
        raise Unreachable(f"The adapter “{repo}” cannot be fetched.", "The Hugging Face Hub cannot be reached.",
                          "Check the connection, or choose a folder on this computer.", details=str(problem)) from problem
