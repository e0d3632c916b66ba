"""A base model folder becomes a running model: local files only, safetensors only, no code from the folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import BadModel
from engine.store.library import ModelInfo, read_json, read_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("same", "float32", "bfloat16", "float16")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_model(path: Path | str, *, dtype: str = "same", device: str = "cpu", bits: int = 16) -> "PreTrainedModel":
    """The causal language model in folder ``path``, in eval mode on ``device``.

    Args:
        dtype: ``"same"`` keeps the file's number format; else float32, bfloat16 or float16.
        bits: 16 loads the weights as they are. 8 (LLM.int8()) and 4 (NF4, its scales quantized once more) pack those of the linear layers by
            bitsandbytes as they are read; embeddings, norms and the output layer keep ``dtype``, in which everything is computed.

    Raises:
        BadModel: no weights, damaged files, tensors missing, an unknown architecture, or one that needs its own program code; or fewer
            bits are asked for a model that is packed already.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from engine.hosts.quantized.protocol import settle
    from engine.numerics.kernels import few_kernels

    few_kernels()
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, not {dtype!r}")
    info = check_folder(path)
    wanted = "auto" if dtype == "same" else getattr(torch, dtype)
    packing = {} if bits == 16 else _packing(info, bits, dtype, device)
    with _quiet_transformers():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(info.path, dtype=wanted, local_files_only=True, trust_remote_code=False,
                                                                 use_safetensors=True, output_loading_info=True, **packing)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:          # transformers raises anything from KeyError to RuntimeError for a folder that does not fit together
            raise BadModel(f"The model {info.name} could not be loaded.", "Its description and its weights do not fit together, "
                           f"or its kind ({info.model_type or 'unknown'}) is not a language model that answers in text.",
                           "Get the model again, or choose another one.", details=f"{type(error).__name__}: {error}", path=str(info.path)) from error
    if lost := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        raise BadModel(f"The model {info.name} is not whole.", f"{len(lost)} of its tensors are missing or have the wrong shape.",
                       "Get the model again.", details="\n".join(lost[:50]), path=str(info.path))
    settle(model)                          # packed layers must not repack themselves when they are evaluated
    return (model if packing else model.to(device)).eval()


def _packing(info: ModelInfo, bits: int, dtype: str, device: str) -> dict:
    """Arguments that let transformers pack the weights as it reads them. Raises `BadModel`."""
    import torch
    from transformers import BitsAndBytesConfig

    if info.config.get("quantization_config"):
        raise BadModel(f"The model {info.name} cannot be packed into {bits} bits.", "Its weights are packed already.",
                       "Leave “Model kept in” at 16 bits, which takes it as it is.", path=str(info.path))
    own = info.config.get("dtype") or info.config.get("torch_dtype") or "float32"
    compute = getattr(torch, own if dtype == "same" else dtype)
    settings = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                                               "bnb_4bit_compute_dtype": compute}}[bits]
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)        # it says at every evaluation of every layer that it rounds inputs
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}


def load_tokenizer(path: Path | str) -> "PreTrainedTokenizerBase":
    """The tokenizer in folder ``path``; it always has a padding token. Raises `BadModel`."""
    from transformers import AutoTokenizer

    path = Path(path)
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise BadModel(f"The model {path.name} has no tokenizer.", "The file that cuts text into tokens is missing.", "Get the model again, whole.",
                       path=str(path))
    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise BadModel(f"The tokenizer of {path.name} could not be loaded.", "Its files are damaged or of an unknown kind.",
                           "Get the model again.", details=f"{type(error).__name__}: {error}", path=str(path)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_folder(path: Path | str) -> ModelInfo:
    """`engine.store.library.read_model`, and a refusal of folders that want to run their own program code. Raises `BadModel`."""
    info = read_model(path)
    settings = info.path / "tokenizer_config.json"
    own_code = info.config.get("auto_map") or (settings.exists() and read_json(settings, BadModel).get("auto_map"))
    if own_code and not _known_architecture(info.model_type):
        raise BadModel(f"The model {info.name} cannot be used here.", "It would have to run program code out of its own folder.",
                       "Choose a model of a common kind (Llama, Qwen, Gemma, Mistral, SmolLM …).", path=str(info.path))
    return info


def _known_architecture(model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


class _quiet_transformers:
    """No progress bars and no warnings on stderr while loading; restored afterwards."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._bars, self._level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()

    def __exit__(self, *exc) -> None:
        from transformers.utils import logging

        if self._bars:
            logging.enable_progress_bar()
        logging.set_verbosity(self._level)
