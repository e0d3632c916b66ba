"""Settings that nobody should have to choose: what a method starts from unless its own settings say otherwise."""

from __future__ import annotations

from engine.errors import InvalidSpec
from engine.specs import TrainSpec

METHOD_DEFAULTS: dict[str, dict] = {
    "LORA": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},   # alpha 32: see `engine.train.optim.learning_rate`
}


def method_settings(spec: TrainSpec) -> dict:
    """The adapter's settings by PEFT's names: the defaults of its method, then what the spec says."""
    return {**METHOD_DEFAULTS.get(spec.method.upper(), {"target_modules": "all-linear"}), **spec.method_config, "task_type": "CAUSAL_LM"}


def adapter_config(spec: TrainSpec):
    """The method's own config object. Raises `InvalidSpec` with one sentence."""
    from engine.methods.registry import config_class

    try:
        return config_class(spec.method.upper())(**method_settings(spec))
    except (TypeError, ValueError) as problem:
        raise InvalidSpec("The settings of the method cannot be used.", str(problem), "Change them in the advanced settings.",
                          fields={"method_config": str(problem)}) from problem
