"""Settings that nobody should have to choose: what a method starts from unless its own settings say otherwise."""

from __future__ import annotations

from engine.errors import InvalidSpec
from engine.specs import TrainSpec

METHOD_DEFAULTS: dict[str, dict] = {       # of all that are not here: every linear layer learns, as the method itself has it
    "LORA": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},   # alpha 32: see `engine.train.optim.learning_rate`
    "IA3": {"target_modules": "all-linear", "feedforward_modules": []},
    "C3A": {"target_modules": "all-linear", "block_size": 64},             # a length that divides the layers of most models
    "VBLORA": {"target_modules": "all-linear", "vector_length": 64},
    **dict.fromkeys(("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE"), {"num_virtual_tokens": 16}),
    "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 2},           # the paper's ten tokens; two blocks are there in any model
    **dict.fromkeys(("CPT", "MULTITASK_PROMPT_TUNING", "XLORA", "SHADOW", "LN_TUNING", "OSF", "TRAINABLE_TOKENS"), {}),   # choose by themselves
}
_TASKS = "It has to be told of which task each example is, and files of examples do not say so."
_NEEDED: dict[str, tuple[str, str]] = {    # method → what its settings must name, and why a file of examples is not enough
    "CPT": ("cpt_token_ids", "It begins with the tokens of worked examples."),
    "XLORA": ("adapters", "It weighs finished skills against one another."),
    "TRAINABLE_TOKENS": ("token_indices", "It teaches single words only."),
}
_BY_TASK = ("MULTITASK_PROMPT_TUNING", "POLY")
ANY_LENGTH = 10 ** 9                       # steps, where the settings are looked at before the examples are counted


def method_settings(spec: TrainSpec) -> dict:
    """The adapter's settings by PEFT's names: the defaults of its method, then what the spec says."""
    return {**METHOD_DEFAULTS.get(spec.method.upper(), {"target_modules": "all-linear"}), **spec.method_config, "task_type": "CAUSAL_LM"}


def adapter_config(spec: TrainSpec, steps: int = ANY_LENGTH):
    """The method's own config object, for a training of so many steps. Raises `InvalidSpec` with one sentence."""
    from engine.methods.registry import config_class

    method, settings = spec.method.upper(), method_settings(spec)
    needed, why = _NEEDED.get(method, ("", ""))
    if method in _BY_TASK or needed and not settings.get(needed):
        raise InvalidSpec(f"{method} cannot be taught from examples alone.", _TASKS if method in _BY_TASK else why,
                          f"Say it in the advanced settings (`{needed}`), or choose another method." if needed else "Choose another method.",
                          fields={"method": why or _TASKS})
    if method == "ADALORA" and not settings.get("total_step"):             # a tenth to begin with, three tenths with what is left
        settings = {"tinit": steps // 10, "tfinal": steps * 3 // 10, **settings, "total_step": steps}
    try:
        return config_class(method)(**settings)
    except (TypeError, ValueError) as problem:
        raise unusable(problem) from problem


def unusable(problem: Exception) -> InvalidSpec:
    """What is said of settings that the method, or this model, cannot have."""
    return InvalidSpec("The settings of the method cannot be used.", str(problem), "Change them in the advanced settings.",
                       fields={"method_config": str(problem)})
