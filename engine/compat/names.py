"""Which of our things stands for which of PEFT's names."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import engine
from engine.methods.enumerations import PeftType, TaskType

_METHODS = [kind.value for kind in PeftType]

# --- classes of methods, as PEFT calls them ---

_CONFIGS = dict(zip(_METHODS, """PromptTuningConfig MultitaskPromptTuningConfig PromptEncoderConfig PrefixTuningConfig LoraConfig AdaLoraConfig
AdamssConfig BOFTConfig AdaptionPromptConfig IA3Config BeftConfig LilyConfig LoHaConfig LoKrConfig OFTConfig PolyConfig LNTuningConfig
VeraConfig FrodConfig PveraConfig FourierFTConfig GloraConfig XLoraConfig HRAConfig VBLoRAConfig UniLoraConfig CPTConfig MissConfig
RandLoraConfig RoadConfig TrainableTokensConfig HiraConfig ShiraConfig C3AConfig WaveFTConfig OSFConfig DeloraConfig GraloraConfig
CartridgeConfig TinyLoraConfig PsoftConfig PeanutConfig ShadowConfig SupertuningConfig DeftConfig""".split()))
_PROMPT_MODELS = {"PROMPT_TUNING": "PromptEmbedding", "MULTITASK_PROMPT_TUNING": "MultitaskPromptEmbedding", "P_TUNING": "PromptEncoder",
                  "PREFIX_TUNING": "PrefixEncoder", "CPT": "CPTEmbedding", "CARTRIDGE": "CartridgeEncoder"}
_MODELS = {_PROMPT_MODELS.get(kind, config.removesuffix("Config") + "Model"): kind for kind, config in _CONFIGS.items()}
_LAYERS = {config.removesuffix("Config") + "Layer": kind for kind, config in _CONFIGS.items() if kind not in _PROMPT_MODELS}
_MIXED = ("LORA", "ADALORA", "LOHA", "LOKR", "SHIRA", "IA3", "BEFT", "ROAD", "HIRA", "OFT")

_PREFIXES = {"LN_TUNING": "ln_tuning_", "VERA": "vera_lambda_", "PVERA": "pvera_lambda_", "XLORA": "xlora_"}       # where ours is another

# --- everything else: name → module of ours ---

_HERE = {name: module for module, names in {
    "engine.compat.functions": """infer_device _get_submodules register_peft_method convert_to_lora save_as_lora shift_tokens_right transpose
        id_tensor_storage set_peft_model_state_dict fsdp_auto_wrap_policy build_peft_weight_mapping _freeze_adapter _get_batch_size
        get_layer_status get_model_status preprocess_loraga""",
    "engine.checkpoint.state": "get_peft_model_state_dict get_base_model_state_dict set_base_model_state_dict",
    "engine.compat.families": "_get_module_names_tied_with_embedding _get_no_split_modules",
    "engine.checkpoint.load": "load_peft_weights", "engine.methods.registry": "get_peft_config",
    "engine.model.kbit": "prepare_model_for_kbit_training cast_mixed_precision_params",
    "engine.model.direct": "inject_adapter_in_model delete_adapter set_adapter set_requires_grad cast_adapter_dtype",
    "engine.model.helpers": "disable_input_dtype_casting update_forward_signature update_generate_signature update_signature",
    "engine.compat.optimizers": "create_lorafa_optimizer LoraFAOptimizer", "engine.compat.blocks": "BlockDiagonalLinear",
    "engine.compat.xlora": "XLoraLayer",
    "engine.compat.helpers": "check_if_peft_model rescale_adapter_scale DoraCaching MontecloraTrainerMixin MontecloraSampler",
    "accelerate.utils.imports": "is_bf16_available",
    "engine.model.status": "TunerLayerStatus TunerModelStatus",
    "engine.train.lora_optim": "create_loraplus_optimizer create_riemannian_optimizer",
    "engine.compat.kinds": """BaseTuner BaseTunerLayer ModulesToSaveWrapper AuxiliaryTrainingWrapper TrainableTokensWrapper TrainableTokensLayer
        BufferDict PeftError PeftWarning""",
}.items() for name in names.split()}
_CONSTANTS = {"CONFIG_NAME": "adapter_config.json", "WEIGHTS_NAME": "adapter_model.bin", "SAFETENSORS_WEIGHTS_NAME": "adapter_model.safetensors",
              "INCLUDE_LINEAR_LAYERS_SHORTHAND": "all-linear", "TOKENIZER_CONFIG_NAME": "tokenizer_config.json",
              "DUMMY_TARGET_MODULES": "dummy-target-modules", "DUMMY_MODEL_CONFIG": {"model_type": "custom"},
              "MIN_TARGET_MODULES_FOR_OPTIMIZATION": 20}
_PACKAGES = ("bnb", "bnb_4bit", "aqlm", "auto_awq", "eetq", "gptqmodel", "hqq", "optimum", "torchao", "diffusers", "xpu", "torch_tpu", "te", "inc")
PUBLIC = """ArrowConfig AutoPeftModel AutoPeftModelForCausalLM AutoPeftModelForFeatureExtraction AutoPeftModelForQuestionAnswering
AutoPeftModelForSeq2SeqLM AutoPeftModelForSequenceClassification AutoPeftModelForTokenClassification BdLoraConfig EvaConfig KasaConfig
LoftQConfig LoraGAConfig LoraRuntimeConfig MODEL_TYPE_TO_PEFT_MODEL_MAPPING MontecloraConfig MultitaskPromptTuningInit
NoMatchingPeftModuleError PEFT_TYPE_TO_CONFIG_MAPPING PEFT_TYPE_TO_MIXED_MODEL_MAPPING PEFT_TYPE_TO_TUNER_MAPPING PeftConfig PeftError
PeftMixedModel PeftModel PeftModelForCausalLM PeftModelForFeatureExtraction PeftModelForQuestionAnswering PeftModelForSeq2SeqLM
PeftModelForSequenceClassification PeftModelForTokenClassification PeftType PeftWarning PromptEncoderReparameterizationType
PromptLearningConfig PromptTuningInit TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING TaskType VeloraConfig
bloom_model_postprocess_past_key_value cast_mixed_precision_params compose_cartridge_adapters convert_to_lora create_arrow_model
find_kappa_target_modules get_base_model_state_dict get_eva_state_dict get_layer_status get_model_status get_peft_config get_peft_model
get_peft_model_state_dict initialize_kv_prefix_from_past_key_values initialize_kv_prefix_from_text initialize_lora_eva_weights
inject_adapter_in_model load_peft_weights prepare_model_for_kbit_training preprocess_loraga prompt_embeddings_from_past_key_values
replace_lora_weights_loftq save_as_lora set_base_model_state_dict set_peft_model_state_dict shift_tokens_right""".split()
_INSIDE = "CordaConfig preprocess_corda hotswap_adapter prepare_model_for_compiled_hotswap".split()


def public() -> list[str]:
    """What `from peft import *` gives: the names of PEFT's ``__all__``."""
    return sorted({*PUBLIC, *_CONFIGS.values(), *_MODELS})


def lookup(name: str, asked_of: str = "peft") -> Any:
    """Our thing of PEFT's ``name``. Raises `AttributeError` (as a module does) for names that are none of PEFT's.

    A public name of PEFT's for something that this engine does not have is given as a class that refuses when it is used, so that
    programs which merely import it run.
    """
    found = _find(name, asked_of)
    if found is None:
        raise AttributeError(f"module {asked_of!r} has no attribute {name!r}")
    return found


def _find(name: str, asked_of: str) -> Any:
    from engine.compat.kinds import kind, refusing

    if name.startswith("PEFT_TYPE_TO_") or name == "MODEL_TYPE_TO_PEFT_MODEL_MAPPING":
        return _table(name)
    if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
        from engine.model.targets import DEFAULT_TARGETS

        return DEFAULT_TARGETS
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name in _HERE:
        return getattr(import_module(_HERE[name]), name)
    if name in engine.__all__:
        return getattr(engine, name)
    if name.startswith("is_transformers_ge_v5"):
        return True
    if name.startswith("is_") and name.endswith("_available") and name[3:-10] in _PACKAGES:
        from engine.compat.functions import availability

        return availability(name[3:-10])
    if name in _MODELS or name in _LAYERS:
        return kind(name, {**_MODELS, **_LAYERS}[name])
    if asked_of.startswith("peft.tuners.") and name in ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d", "MultiheadAttention", "ParamWrapper"):
        return kind(name, asked_of.split(".")[2].upper(), layer=name)
    if found := _native(name):
        return found
    return refusing(name) if name in PUBLIC or name in _CONFIGS.values() or name in _INSIDE else None


def _native(name: str) -> Any:
    """What the engine has under the same name without showing it at its head."""
    modules = [f"engine.model.{m}" for m in ("mixed", "eva", "lora_calibrate", "prompt_learning", "auto", "tasks")] + [
        "engine.methods.lora_settings", "engine.methods.prompt", *(
        f"engine.methods.{kind.lower()}" for kind in _METHODS)]
    for module in modules:
        try:
            found = getattr(import_module(module), name, None)
        except ModuleNotFoundError:
            continue
        if found is not None and not name.startswith("_"):
            return found
    return None


@cache
def _table(name: str) -> dict[Any, Any]:
    from engine.methods.registry import method, names

    there = [PeftType[n] for n in _METHODS if n in names()]
    if name == "PEFT_TYPE_TO_CONFIG_MAPPING":
        return {kind: lookup(_CONFIGS[kind]) for kind in PeftType}
    if name == "PEFT_TYPE_TO_PREFIX_MAPPING":
        return {kind: _PREFIXES.get(kind, getattr(method(kind), "prefix", f"{kind.lower()}_")) for kind in there}
    if name == "PEFT_TYPE_TO_TUNER_MAPPING":
        return {PeftType[kind]: lookup(model) for model, kind in _MODELS.items()}
    if name == "PEFT_TYPE_TO_MIXED_MODEL_MAPPING":
        return {PeftType[kind]: lookup(model) for model, kind in _MODELS.items() if kind in _MIXED}
    if name == "MODEL_TYPE_TO_PEFT_MODEL_MAPPING":
        from engine.model.tasks import task_class

        return {str(task.value): task_class(task.value) for task in TaskType if _has_class(task.value)}
    raise AttributeError(name)


def _has_class(task: str) -> bool:
    from engine.model.tasks import task_class

    try:
        return task_class(task) is not None
    except ValueError:
        return False
