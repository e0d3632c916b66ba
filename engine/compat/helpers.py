"""PEFT's module ``peft.helpers``, as far as it differs from `engine.model.helpers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.compat.configs import PeftConfig
from engine.compat.kinds import Told
from engine.errors import StudioError
from engine.hosts.shelves import Slot
from engine.methods.monteclora import SAMPLER
from engine.model.helpers import rescale_adapter_scale as rescale
from engine.model.tuner import tuner_of


def check_if_peft_model(model_name_or_path: Path | str) -> bool:
    """Whether there is an adapter whose settings can be read; what cannot be found, reached or understood is none (PEFT: any error means no)."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (StudioError, OSError, ValueError, TypeError, KeyError):
        return False
    return True


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """As `engine.rescale_adapter_scale`; the layers' ``scaling`` shows it, as in PEFT, where it is all that changes."""
    from engine.compat.names import lookup

    layers = [layer for layer in model.modules() if isinstance(layer, lookup("LoraLayer"))]
    if not layers:                         # what is wrong is said there
        with rescale(model, multiplier):
            yield
        return
    if not isinstance(multiplier, (int, float)):
        raise TypeError(f"Argument multiplier should be of type float, got {type(multiplier)}")
    before = {layer: dict(layer.scaling) for layer in layers}
    for layer, scaling in before.items():
        layer.scaling = {name: scale * multiplier for name, scale in scaling.items()}
    try:
        yield
    finally:
        for layer, scaling in before.items():
            layer.scaling = scaling


class DoraCaching:
    """PEFT's switch for keeping DoRA's norms at inference. Here they are always kept then, and forgotten when anything changes: it does nothing.

    Args:
        enabled: whatever it says, the results are the same.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *raised: Any) -> None:
        """Nothing to do."""

    def __call__(self, enabled: bool = True) -> None:
        self.enabled = enabled


class MontecloraSampler(metaclass=Told):
    """Where MonteCLoRA keeps what it has learned of one layer's noise."""

    holds = staticmethod(lambda thing: isinstance(thing, Slot) and "std_prior" in thing._parameters)


class MontecloraTrainerMixin:
    """For transformers' ``Trainer``: what MonteCLoRA adds to the loss (see `engine.methods.monteclora`), in training."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Tensor | tuple[Tensor, Any]:
        """The task's loss and MonteCLoRA's, a scalar; with ``return_outputs`` also what the model said."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        tuner = tuner_of(model)
        for _, law, config, layers in tuner._training_laws() if tuner is not None and model.training else ():
            if any(key.startswith(SAMPLER) for tensors in layers.values() for key in tensors):
                loss = loss + law.extra_loss(config, layers)
        return (loss, outputs) if return_outputs else loss
