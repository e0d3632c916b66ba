"""Names in an adapter's file ↔ (module path, tensor name). One rule, used in both directions.

A file says ``base_model.model.<module path>.<tensor name>`` (PEFT), e.g. ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``,
and ``base_model.<tensor name>`` for what all layers share. Read as well: no prefix (adapters written by other integrations),
``_orig_mod.`` (torch.compile) and ``_fsdp_wrapped_module.`` inside.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container

from torch import Tensor

PREFIX, SHARED_PREFIX = "base_model.model.", "base_model."
_NOISE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module)\.")


def file_key(path: str, tensor: str) -> str:
    """The name of a tensor in the file; ``path`` is empty for what all layers share."""
    return f"{PREFIX}{path}.{tensor}" if path else f"{SHARED_PREFIX}{tensor}"


def _unwrapped(key: str) -> str:
    return _NOISE.sub("", key) if "_orig_mod." in key or "_fsdp_" in key else key


def strip(key: str) -> str:
    """A key of any file as a name in the user's model: without prefixes of PEFT and of what was wrapped round its modules."""
    bare = _unwrapped(key)
    return bare.removeprefix(PREFIX) if bare.startswith(PREFIX) else bare.removeprefix(SHARED_PREFIX)


def split(key: str, paths: Container[str], shared: Collection[str] = ()) -> tuple[str, str] | None:
    """(module path, tensor name) of a key, where the path is one of ``paths`` (the deepest that fits) or "" for a ``shared`` tensor; else None."""
    bare = _unwrapped(key)
    if shared and (name := bare.removeprefix(SHARED_PREFIX)) in shared:
        return "", name
    for prefix in (PREFIX, SHARED_PREFIX) if bare.startswith(SHARED_PREFIX) else ("",):     # beside a prompt, modules have the short one
        name = bare.removeprefix(prefix)
        at = name.rfind(".")
        while at > 0:
            if name[:at] in paths:
                return name[:at], name[at + 1:]
            at = name.rfind(".", 0, at)
    return None


def sort_by_site(tensors: dict[str, Tensor], paths: Container[str], shared: Collection[str] = ()
                 ) -> tuple[dict[str, dict[str, Tensor]], dict[tuple[str, str], str], list[str]]:
    """Group a file's tensors by module path.

    Returns:
        (path → tensor name → tensor, (path, tensor name) → key in the file, keys that belong to none of the paths).
    """
    sites: dict[str, dict[str, Tensor]] = {}
    origin: dict[tuple[str, str], str] = {}
    foreign: list[str] = []
    for key, tensor in tensors.items():
        place = split(key, paths, shared)
        if place is None:
            foreign.append(key)
        else:
            sites.setdefault(place[0], {})[place[1]] = tensor
            origin[place] = key
    return sites, origin, foreign
