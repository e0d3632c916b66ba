"""`AutoPeftModel`: base and adapter from the adapter alone, whose config names the base."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from engine.errors import BadAdapter
from engine.law import PeftConfig
from engine.model.peft_model import PeftModel
from engine.model.tasks import (PeftModelForCausalLM, PeftModelForFeatureExtraction, PeftModelForQuestionAnswering, PeftModelForSeq2SeqLM,
                                PeftModelForSequenceClassification, PeftModelForTokenClassification)
from engine.store.hub import hub_arguments, locate

IMPORTS = ("transformers", "diffusers", "lerobot", "megatron-core")
_TOKENIZER = "tokenizer_config.json"


class AutoPeftModel:
    """Loads the base that an adapter names, then the adapter (PEFT class of the same name); for adapters without a task.

    The base's class is the one in the config's ``auto_mapping``. For adapters with a ``task_type`` there is a class for each task.
    Raises `OSError` if it is called: models come from `from_pretrained`.
    """

    base_class: ClassVar[str] = ""         # of transformers; empty: the one that the adapter's config names
    model_class: ClassVar[type[PeftModel]] = PeftModel

    def __init__(self, *args: Any, **kwargs: Any):
        raise OSError(f"{type(self).__name__} is made by `{type(self).__name__}.from_pretrained(...)` only.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Path | str, adapter_name: str = "default", is_trainable: bool = False,
                        config: PeftConfig | None = None, revision: str | None = None, import_allowlist: Sequence[str] | None = None,
                        **kwargs: Any) -> PeftModel:
        """The base with the adapter on it, active.

        A tokenizer that lies beside the adapter and knows more words than the base has embeddings enlarges the base's vocabulary first.

        Args:
            pretrained_model_name_or_path: folder or name of the adapter. config: instead of the one there. revision: of the adapter; that of
                the base stands in the config. import_allowlist: packages whose classes an ``auto_mapping`` may name.
            is_trainable: as of `PeftModel.load_adapter`.
            kwargs: what is `PeftModel.from_pretrained`'s goes there, the rest to the base's ``from_pretrained`` (``dtype`` …).

        Raises:
            ValueError: the adapter is for another task, or its config names no class or none that may be imported.
            BadAdapter: it is not there, damaged, or names no base. WrongBase: it does not fit the base that it names.
        """
        place = {"subfolder": kwargs.pop("subfolder", None), **hub_arguments({**kwargs, "revision": revision})}
        found = PeftConfig.from_pretrained(pretrained_model_name_or_path, **place)
        chosen = cls._class_of_base(found, IMPORTS if import_allowlist is None else import_allowlist)
        if not found.base_model_name_or_path:
            raise BadAdapter("The adapter does not say which model it belongs to.", "`base_model_name_or_path` is empty.",
                             "Load that model yourself and use PeftModel.from_pretrained.")
        names = ("torch_device", "autocast_adapter_dtype", "ephemeral_gpu_offload", "low_cpu_mem_usage", "key_mapping", "ignore_mismatched_sizes")
        loading = {name: kwargs.pop(name) for name in names if name in kwargs}
        base = chosen.from_pretrained(found.base_model_name_or_path, revision=found.revision, **kwargs)
        cls._fit_words(base, pretrained_model_name_or_path, place)
        return cls.model_class.from_pretrained(base, pretrained_model_name_or_path, adapter_name, is_trainable, config, **loading, **place)

    @classmethod
    def _class_of_base(cls, config: PeftConfig, allowed: Sequence[str]) -> type[nn.Module]:
        task, named = getattr(config.task_type, "value", config.task_type), config.auto_mapping or {}
        library, name = named.get("parent_library"), named.get("base_model_class")
        if task is None and isinstance(library, str) and not any(library == root or library.startswith(f"{root}.") for root in allowed):
            raise ValueError(f"The auto mapping wants to import '{library}' which is not in the import allowlist. If you are sure that importing "
                             f"this library is safe, specify `import_allowlist=['{library}']` in `from_pretrained()`.")
        if cls.base_class:
            own = next(name for name, model in _TASKS.items() if model is cls.model_class)
            if task is not None and task != own:
                raise ValueError(f"Expected target PEFT class: {_TASKS[task].__name__ if task in _TASKS else task}, but you have asked for: "
                                 f"{cls.model_class.__name__}. Make sure that you are loading the correct model for your task type.")
            import transformers

            return getattr(transformers, cls.base_class)
        if task is not None:
            raise ValueError("Cannot use `AutoPeftModel` with a task type, please use a specific class for your task type. "
                             "(e.g. `AutoPeftModelForCausalLM` for `task_type='CAUSAL_LM'`)")
        if not isinstance(library, str) or not isinstance(name, str):
            raise ValueError("Cannot infer the auto class from the config, please make sure that you are loading the correct model for your task "
                             "type.")
        return getattr(import_module(library), name)

    @staticmethod
    def _fit_words(base: nn.Module, adapter: Path | str, place: dict[str, Any]) -> None:
        if not hasattr(base, "get_input_embeddings") or not (folder := _with_tokenizer(adapter, place)):
            return
        from transformers import AutoTokenizer

        words = len(AutoTokenizer.from_pretrained(folder))
        if words > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(words)


def _with_tokenizer(adapter: Path | str, place: dict[str, Any]) -> Path | None:
    """The folder of the adapter if a tokenizer lies in it; of the Hub, its files are fetched."""
    if Path(adapter).is_dir():
        folder = locate(adapter, place["subfolder"], only_config=True)
    else:
        from huggingface_hub import snapshot_download

        hub = {k: v for k, v in place.items() if k != "subfolder"}
        root = snapshot_download(str(adapter), allow_patterns=[f"{place['subfolder'] or '.'}/{n}".removeprefix("./") for n in (
            "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")], **hub)
        folder = Path(root) / (place["subfolder"] or "")
    return folder if (folder / _TOKENIZER).is_file() else None


class AutoPeftModelForCausalLM(AutoPeftModel):
    """The same for ``CAUSAL_LM`` (PEFT class of the same name)."""

    base_class, model_class = "AutoModelForCausalLM", PeftModelForCausalLM


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """The same for ``SEQ_2_SEQ_LM`` (PEFT class of the same name)."""

    base_class, model_class = "AutoModelForSeq2SeqLM", PeftModelForSeq2SeqLM


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """The same for ``SEQ_CLS`` (PEFT class of the same name)."""

    base_class, model_class = "AutoModelForSequenceClassification", PeftModelForSequenceClassification


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """The same for ``TOKEN_CLS`` (PEFT class of the same name)."""

    base_class, model_class = "AutoModelForTokenClassification", PeftModelForTokenClassification


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """The same for ``QUESTION_ANS`` (PEFT class of the same name)."""

    base_class, model_class = "AutoModelForQuestionAnswering", PeftModelForQuestionAnswering


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """The same for ``FEATURE_EXTRACTION`` (PEFT class of the same name)."""

    base_class, model_class = "AutoModel", PeftModelForFeatureExtraction


_TASKS = {"CAUSAL_LM": PeftModelForCausalLM, "SEQ_2_SEQ_LM": PeftModelForSeq2SeqLM, "SEQ_CLS": PeftModelForSequenceClassification,
          "TOKEN_CLS": PeftModelForTokenClassification, "QUESTION_ANS": PeftModelForQuestionAnswering,
          "FEATURE_EXTRACTION": PeftModelForFeatureExtraction}
