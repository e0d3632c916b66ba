"""Names in an adapter's file ↔ (module path, tensor name). One rule, used in both directions.

A file says ``base_model.model.<module path>.<tensor name>`` (PEFT), e.g. ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``.
Read as well: no prefix (adapters written by other integrations), ``_orig_mod.`` (torch.compile) and ``_fsdp_wrapped_module.`` inside.
"""

from __future__ import annotations

import re

from torch import Tensor

PREFIX = "base_model.model."
_NOISE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module)\.")


def file_key(path: str, tensor: str) -> str:
    """The name of a tensor in the file."""
    return f"{PREFIX}{path}.{tensor}"


def split(key: str, prefix: str) -> tuple[str, str] | None:
    """(module path, tensor name) of a key of a method whose tensor names begin with ``prefix``; None if it is none of that method's."""
    bare = _NOISE.sub("", key)
    bare = bare.removeprefix(PREFIX)
    at = bare.rfind(f".{prefix}")
    return None if at < 1 else (bare[:at], bare[at + 1:])


def sort_by_site(tensors: dict[str, Tensor], prefix: str) -> tuple[dict[str, dict[str, Tensor]], dict[tuple[str, str], str], list[str]]:
    """Group a file's tensors by module path.

    Returns:
        (path → tensor name → tensor, (path, tensor name) → key in the file, keys that are none of the method's).
    """
    sites: dict[str, dict[str, Tensor]] = {}
    origin: dict[tuple[str, str], str] = {}
    foreign: list[str] = []
    for key, tensor in tensors.items():
        place = split(key, prefix)
        if place is None:
            foreign.append(key)
        else:
            sites.setdefault(place[0], {})[place[1]] = tensor
            origin[place] = key
    return sites, origin, foreign
