"""AdamW on the adapter's parameters, and two rules: how fast to learn, and how the speed changes through the run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

MAX_NORM = 1.0                             # longer gradients are shortened to this length (the usual guard against a bad batch)
BETAS, EPS = (0.9, 0.999), 1e-8


def learning_rate(method: str, config: dict, hidden_size: int) -> float:
    """Learning speed by rule: ``5e-5 · 10 · (2000 / hidden size)^0.781``, adjusted to the adapter's loudness, at most 2e-3.

    Source: the rule of Thinking Machines Lab's Tinker documentation for LoRA on Llama-like models, which rests on their study
    "LoRA Without Regret" (2025): ten times the speed of full training, independent of the rank while ``alpha`` is 32. What acts is
    ``speed · scale · rank``, so another loudness (alpha; alpha·√r with rank stabilisation) is balanced by the root of its ratio to 32.
    Methods without a loudness are taught at the plain rule's speed.
    """
    speed = 5e-4 * (2000 / max(hidden_size, 1)) ** 0.781
    if method.upper() == "LORA":
        loudness = float(config.get("lora_alpha", 32)) * (math.sqrt(config.get("r", 16)) if config.get("use_rslora") else 1)
        speed *= min(4.0, max(0.25, math.sqrt(32 / max(loudness, 1e-3))))
    return float(f"{min(speed, 2e-3):.2g}")


def speed_at(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning speed at ``step`` (from 0): rises over the first ``warmup`` share, then falls as a cosine to a tenth.

    A pure function of the step: nothing to save, nothing to lose.
    """
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """torch's AdamW whose state is plain named tensors, so that it can be saved without pickle."""

    def __init__(self, parameters: dict[str, nn.Parameter], rate: float, weight_decay: float):
        self.parameters, self.rate = parameters, rate
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
        self._adam = torch.optim.AdamW(list(parameters.values()), lr=rate, betas=BETAS, eps=EPS, weight_decay=weight_decay, fused=fused)

    def step(self, factor: float, after: Callable[[], object] = lambda: None) -> float:
        """One correction at ``factor`` times the learning speed, and what comes after it while the gradients are there.

        Returns the gradients' norm; if it is no number, nothing is changed.
        """
        norm = float(nn.utils.clip_grad_norm_(list(self.parameters.values()), MAX_NORM))
        if math.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = self.rate * factor
            self._adam.step()
            after()
        self.forget()
        return norm

    def forget(self) -> None:
        """Drop the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All state as named tensors: ``<parameter>/exp_avg`` and so on."""
        return {f"{name}/{key}": value for name, p in self.parameters.items() for key, value in self._adam.state.get(p, {}).items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave. Raises `KeyError` when it belongs to other parameters."""
        for name, value in state.items():
            parameter, _, key = name.rpartition("/")
            p = self.parameters[parameter]
            self._adam.state[p][key] = value.clone() if key == "step" else value.to(p.device, copy=True)
