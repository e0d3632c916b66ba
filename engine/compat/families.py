"""What PEFT asks of models of transformers: which modules hold the words' weight, which must stay whole."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from engine.hosts.adapted import unwrapped
from engine.hosts.replaced import Replaced


def _get_module_names_tied_with_embedding(model: nn.Module) -> list[str]:
    """Paths of the modules whose weight is the input embedding's, where the config does not say that none is.

    Raises:
        ValueError: the model says what is tied to what, but not which is its embedding.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    keys = getattr(model, "_tied_weights_keys", None)
    if keys is None or getattr(getattr(model, "config", None), "tie_word_embeddings", True) is False:
        return []
    if not isinstance(keys, dict):
        return _modules(keys)
    if not hasattr(model, "get_input_embeddings"):
        raise ValueError("The model's `_tied_weights_keys` is a dict, but without 'get_input_embeddings' nobody knows which of it are words.")
    words = _bare(model.get_input_embeddings()).weight
    tied: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(own := getattr(module, "_tied_weights_keys", None), dict):
            tied |= {f"{path}.{k}".lstrip("."): f"{path}.{v}".lstrip(".") for k, v in own.items()}
    return _modules(name for name, source in tied.items() if _tensor(model, source) is words)


def _modules(tensors: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[0] for name in tensors})


def _bare(module: nn.Module) -> nn.Module:
    return module.bare if isinstance(module, Replaced) else unwrapped(module)


def _tensor(model: nn.Module, name: str) -> object:
    path, _, leaf = name.rpartition(".")
    return getattr(_bare(model.get_submodule(path)), leaf, None)


def _get_no_split_modules(model: nn.Module) -> set[str]:
    """Classes of modules that must lie on one device."""
    return set(getattr(model, "_no_split_modules", None) or ())
