"""The engine: PEFT's Models API, training, mixing, merging and exporting. Knows no screen; importing it is instant.

The public names resolve on first use (PEP 562), so that `import engine` costs nothing and needs no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "engine.law": ("PeftConfig",),
    "engine.methods.lora": ("LoraConfig",),
    "engine.methods.lora_settings": ("ArrowConfig", "BdLoraConfig", "CordaConfig", "EvaConfig", "KasaConfig", "LoftQConfig", "LoraGAConfig",
                                     "LoraRuntimeConfig", "MontecloraConfig", "VeloraConfig"),
    "engine.methods.oft": ("OFTConfig",),
    "engine.methods.boft": ("BOFTConfig",),
    "engine.methods.hra": ("HRAConfig",),
    "engine.methods.road": ("RoadConfig",),
    "engine.methods.ia3": ("IA3Config",),
    "engine.methods.vera": ("VeraConfig",),
    "engine.methods.pvera": ("PveraConfig",),
    "engine.methods.randlora": ("RandLoraConfig",),
    "engine.methods.fourierft": ("FourierFTConfig",),
    "engine.methods.shira": ("ShiraConfig",),
    "engine.methods.waveft": ("WaveFTConfig",),
    "engine.methods.supertuning": ("SupertuningConfig",),
    "engine.methods.vblora": ("VBLoRAConfig",),
    "engine.methods.unilora": ("UniLoraConfig",),
    "engine.methods.tinylora": ("TinyLoraConfig",),
    "engine.methods.adamss": ("AdamssConfig",),
    "engine.methods.hira": ("HiraConfig",),
    "engine.methods.glora": ("GloraConfig",),
    "engine.methods.deft": ("DeftConfig",),
    "engine.methods.osf": ("OSFConfig",),
    "engine.methods.psoft": ("PsoftConfig",),
    "engine.methods.peanut": ("PeanutConfig",),
    "engine.methods.frod": ("FrodConfig",),
    "engine.methods.ln_tuning": ("LNTuningConfig",),
    "engine.methods.trainable_tokens": ("TrainableTokensConfig",),
    "engine.methods.loha": ("LoHaConfig",),
    "engine.methods.lokr": ("LoKrConfig",),
    "engine.methods.c3a": ("C3AConfig",),
    "engine.methods.miss": ("MissConfig",),
    "engine.methods.gralora": ("GraloraConfig",),
    "engine.methods.delora": ("DeloraConfig",),
    "engine.methods.beft": ("BeftConfig",),
    "engine.methods.adalora": ("AdaLoraConfig",),
    "engine.methods.poly": ("PolyConfig",),
    "engine.methods.lily": ("LilyConfig",),
    "engine.methods.xlora": ("XLoraConfig",),
    "engine.methods.shadow": ("ShadowConfig",),
    "engine.model.arrow": ("create_arrow_model",),
    "engine.methods.prompt": ("PromptLearningConfig",),
    "engine.methods.prompt_tuning": ("PromptTuningConfig", "PromptEmbedding"),
    "engine.methods.p_tuning": ("PromptEncoderConfig", "PromptEncoder"),
    "engine.methods.prefix_tuning": ("PrefixTuningConfig", "PrefixEncoder"),
    "engine.methods.multitask_prompt_tuning": ("MultitaskPromptTuningConfig",),
    "engine.methods.cpt": ("CPTConfig", "CPTEmbedding"),
    "engine.methods.cartridge": ("CartridgeConfig", "CartridgeEncoder"),
    "engine.methods.adaption_prompt": ("AdaptionPromptConfig",),
    "engine.methods.registry": ("get_peft_config", "register_method"),
    "engine.methods.enumerations": ("MultitaskPromptTuningInit", "PeftType", "PromptEncoderReparameterizationType", "PromptTuningInit", "TaskType"),
    "engine.model.peft_model": ("PeftModel", "get_peft_model"),
    "engine.model.auto": ("AutoPeftModel", "AutoPeftModelForCausalLM", "AutoPeftModelForFeatureExtraction", "AutoPeftModelForQuestionAnswering",
                          "AutoPeftModelForSeq2SeqLM", "AutoPeftModelForSequenceClassification", "AutoPeftModelForTokenClassification"),
    "engine.model.direct": ("cast_adapter_dtype", "delete_adapter", "inject_adapter_in_model", "set_adapter", "set_requires_grad"),
    "engine.model.status": ("TunerLayerStatus", "TunerModelStatus", "get_layer_status", "get_model_status"),
    "engine.model.kbit": ("cast_mixed_precision_params", "prepare_model_for_kbit_training"),
    "engine.model.helpers": ("check_if_peft_model", "disable_input_dtype_casting", "rescale_adapter_scale", "update_forward_signature",
                             "update_generate_signature", "update_signature"),
    "engine.model.kappa": ("KappaTuneSelector", "find_kappa_target_modules"),
    "engine.model.cartridge": ("compose_cartridge_adapters", "initialize_kv_prefix_from_past_key_values", "initialize_kv_prefix_from_text",
                               "prompt_embeddings_from_past_key_values"),
    "engine.model.tasks": ("PeftModelForCausalLM", "PeftModelForFeatureExtraction", "PeftModelForQuestionAnswering", "PeftModelForSeq2SeqLM",
                           "PeftModelForSequenceClassification", "PeftModelForTokenClassification"),
    "engine.model.mixed": ("PeftMixedModel",),
    "engine.model.eva": ("get_eva_state_dict", "initialize_lora_eva_weights"),
    "engine.model.lora_calibrate": ("as_plain_lora", "preprocess_corda", "preprocess_loraga", "replace_lora_weights_loftq"),
    "engine.mix.to_lora": ("convert_to_lora", "save_as_lora", "to_lora"),
    "engine.model.targets": ("NoMatchingPeftModuleError",),
    "engine.checkpoint.state": ("get_base_model_state_dict", "get_peft_model_state_dict", "set_base_model_state_dict", "set_peft_model_state_dict"),
    "engine.checkpoint.load": ("load_peft_weights",),
    "engine.checkpoint.hotswap": ("hotswap_adapter", "hotswap_adapter_from_state_dict", "prepare_model_for_compiled_hotswap"),
    "engine.checkpoint.report": ("LoadReport",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
