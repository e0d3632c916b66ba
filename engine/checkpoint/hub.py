"""Sending a saved adapter to the Hugging Face Hub; fetching is in `engine.store.hub`."""

from __future__ import annotations

from pathlib import Path

from engine.errors import Unreachable

SENT = ["README.md", "adapter_config.json", "adapter_model.safetensors", "mix.json", "*/README.md", "*/adapter_config.json",
        "*/adapter_model.safetensors"]


def upload(folder: Path, repo_id: str, *, commit_message: str = "Upload adapter", private: bool | None = None, token: str | None = None,
           revision: str | None = None, create_pr: bool = False) -> str:
    """Send an adapter's own files (and nothing else that may lie beside them) to ``repo_id``; returns the commit's address.

    Arguments and errors as of `PeftModel.push_to_hub`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi(token=token)
    try:
        where = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=where, folder_path=folder, allow_patterns=SENT, commit_message=commit_message, revision=revision,
                                     create_pr=create_pr))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as problem:
        raise Unreachable(f"The adapter could not be sent to “{repo_id}”.", "The Hugging Face Hub cannot be reached, or refuses it.",
                          "Check the connection and the name, and that you are logged in.", details=str(problem)) from problem
