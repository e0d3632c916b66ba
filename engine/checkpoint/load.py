"""Reading adapters in PEFT's format. Headers are checked before a byte is believed; of a pickle only the words that describe tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.errors import BadAdapter, WrongBase
from engine.checkpoint.keys import file_key, sort_by_site
from engine.checkpoint.large_pages import read_into
from engine.checkpoint.pickle_reader import read_pickled_tensors
from engine.checkpoint.report import LoadReport
from engine.law import Method, Site, Tensors, TensorSpec, taken
from engine.methods.registry import config_class
from engine.store.headers import TensorEntry, read_header
from engine.store.hub import OLD_WEIGHTS, WEIGHTS, locate
from engine.store.library import read_json

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
           "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter folder in private memory (the file may be replaced afterwards). Raises `BadAdapter`."""
    path = folder / WEIGHTS
    if not path.exists() and (folder / OLD_WEIGHTS).exists():
        return read_pickled_tensors(folder / OLD_WEIGHTS)
    if not path.exists():
        raise BadAdapter(f"Can't find weights for {folder.name}.", f"{WEIGHTS} is missing.", "Get the adapter again, in safetensors format.")
    header = read_header(path, BadAdapter)
    kinds = {entry.dtype for entry in header.tensors.values()}
    if strange := sorted(kinds - _DTYPES.keys()):
        raise BadAdapter(f"The adapter {folder.name} holds numbers of the kind {', '.join(strange)}.", "This version cannot use them.",
                         "Get the adapter in 16 or 32 bit.")
    whole = torch.empty(max((t.end for t in header.tensors.values()), default=0), dtype=torch.uint8)
    with open(path, "rb") as file:
        file.seek(header.data_start)
        if read_into(file, whole) != whole.numel():
            raise BadAdapter(f"The adapter {folder.name} changed while it was read.", do="Try again.")
    if len(kinds) == 1:
        parts = whole.view(_DTYPES[kinds.pop()]).split([entry.numel for entry in header.tensors.values()])
        return {name: part.view(entry.shape) for (name, entry), part in zip(header.tensors.items(), parts)}
    return {name: _view(whole, t) for name, t in header.tensors.items()}


def rename(tensors: dict[str, Tensor], key_mapping: Mapping[str, str] | None) -> dict[str, Tensor]:
    """The tensors with ``key_mapping`` (regular expression → replacement) on their keys, one after the other."""
    for pattern, replacement in (key_mapping or {}).items():
        tensors = {re.sub(pattern, replacement, key): tensor for key, tensor in tensors.items()}
    return tensors


def load_peft_weights(model_id: Path | str, device: str | torch.device | None = None, key_mapping: Mapping[str, str] | None = None,
                      subfolder: str | None = None, **hub: Any) -> dict[str, Tensor]:
    """An adapter's tensors by their keys in the file, from a folder or the Hub (PEFT function of the same name).

    Args:
        device: where they go; the CPU by default (PEFT: a graphics card if there is one). key_mapping: see `rename`.
        hub: ``revision``, ``cache_dir``, ``token`` ….

    Raises:
        BadAdapter: damaged, hostile or not there. Unreachable: the Hub cannot be asked.
    """
    found = rename(read_tensors(locate(model_id, subfolder, **hub)), key_mapping)
    return {key: tensor.to(device or "cpu") for key, tensor in found.items()}


def _view(whole: Tensor, entry: TensorEntry) -> Tensor:
    """A tensor where it lies in the file, or a copy where no tensor of its kind could lie."""
    part, dtype = whole[entry.start:entry.end], _DTYPES[entry.dtype]
    return (part.clone() if entry.start % dtype.itemsize else part).view(dtype).view(entry.shape)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `BadAdapter` if a value is no number. One pass without temporaries: such a value shows in the extremes."""
    if _are_one_sound_file(list(tensors.values())):
        return
    unsound = [key for key, t in tensors.items() if t.is_floating_point() and t.numel()
               and not torch.isfinite(torch.stack(torch.aminmax(t))).all()]
    if unsound:
        raise BadAdapter("The adapter holds values that are not numbers.", f"{len(unsound)} of its tensors are broken.",
                         "Train it again with a lower learning speed, or get it again.", details="\n".join(unsound[:50]))


def _are_one_sound_file(tensors: list[Tensor]) -> bool:
    """Whether all are parts of one block of memory that holds nothing but numbers of one kind: then a single look at it is enough."""
    whole, dtype = tensors[0]._base, tensors[0].dtype
    if whole is None or not dtype.is_floating_point or any(t._base is not whole or t.dtype is not dtype for t in tensors):
        return False
    sound = whole.dim() == 1 and whole.nbytes and whole.nbytes % dtype.itemsize == 0
    return bool(sound and torch.isfinite(torch.stack(torch.aminmax(whole.view(dtype)))).all())


def unknown_settings(folder: Path) -> list[str]:
    """Settings in an adapter's config that this version does not know (of a newer PEFT, most likely)."""
    data = read_json(folder / "adapter_config.json", BadAdapter)
    return config_class(data.get("peft_type")).unknown_keys(data)


def fill(live: Tensors, values: Mapping[str, Tensor], home: torch.device) -> None:
    """Copy values into an adapter's tensors in place. A tensor without memory gets some at ``home``, and stays the same object."""
    for key, value in values.items():
        tensor = live[key]
        if tensor.is_meta:
            there = torch.empty_like(tensor, device="cpu" if home.type == "meta" else home)
            torch.utils.swap_tensors(tensor, nn.Parameter(there, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there)
        tensor.copy_(value)


class Place(Protocol):
    """Where tensors go: a layer as an adapter sees it (`Placement` of one that comes, `Tenant` of one that is there)."""

    method: Method
    config: Any
    site: Site
    specs: Mapping[str, TensorSpec]


def match(tensors: dict[str, Tensor], places: Mapping[str, Place], shared: Mapping[str, TensorSpec],
          unknown_settings: Sequence[str] = (), ignore_mismatched_sizes: bool = False) -> tuple[dict[str, Tensors], LoadReport]:
    """Bring a file's tensors together with what the layers expect.

    Args:
        places: module path → what sits there. shared: specs of what all layers have in common.
        ignore_mismatched_sizes: tensors of other sizes are told and not used, instead of refusing them all.

    Returns:
        (module path → tensor name → tensor, with what is shared under the path "", report).

    Raises:
        WrongBase: not one tensor fits a layer, or shapes differ.
        BadAdapter: a tensor holds values that are not numbers.
    """
    at = {place.site.in_file: path for path, place in places.items()}
    sites, origin, foreign = sort_by_site(tensors, at.keys(), shared.keys())
    given: dict[str, Tensors] = {}
    loaded, missing, wrong, unfit = [], [], [], set()

    def take(path: str, found: Tensors, specs: Mapping[str, TensorSpec]) -> None:
        for name, spec in specs.items():
            if name not in found:
                missing.extend([file_key(path, spec.file or name)] if spec.saved else [])
            elif tuple(found[name].shape) != tuple(spec.shape):
                wrong.append(f"{path}.{name}: {tuple(found[name].shape)} in the file, {tuple(spec.shape)} in the model")
                unfit.add((path, spec.file or name))
            else:
                given.setdefault(path, {})[name] = found[name] if spec.dtype.is_floating_point else found[name].to(spec.dtype)

    take("", sites.get("", {}), shared)
    for path in at:
        place, in_file = places[at[path]], sites.get(path, {})
        before = list(in_file)
        plain = type(place.method).decode is Method.decode    # it would ask for the same table once more
        take(path, taken(in_file, place.specs) if plain else place.method.decode(in_file, place.config, place.site), place.specs)
        loaded += [origin[path, name] for name in before if name not in in_file]
    loaded += [origin["", name] for name in sites.pop("", {})]
    unused = {origin.get(place) for place in unfit}
    loaded = [key for key in loaded if key not in unused]
    if wrong and not ignore_mismatched_sizes:
        raise WrongBase("The adapter does not fit this model.", f"{len(wrong)} of its tensors have other sizes (size mismatch).",
                        "It was made for another model (or another size of it): choose that one.", details="\n".join(wrong))
    if not loaded:
        raise WrongBase("Nothing of the adapter fits this model.", "Not one of its tensors belongs to a layer of the model.",
                        "Choose the model that it was made for.", details="\n".join(list(tensors)[:50]))
    check_finite({key: tensors[key] for key in loaded})
    unexpected = foreign + [origin[path, name] for path, rest in sites.items() for name in rest]
    renamed = {key: proper for (path, name), key in origin.items() if key != (proper := file_key(path, name))}
    given = {at.get(path, path): tensors for path, tensors in given.items()}
    return given, LoadReport(loaded, missing, unexpected, renamed, list(unknown_settings), wrong)
