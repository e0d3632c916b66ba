"""AdamW on the adapter's parameters, and two rules: how fast to learn, and how the speed changes through the run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.errors import InvalidSpec

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

    After the last step it stays there. A pure function of the step: nothing to save, nothing to lose.
    """
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, steps - rise))
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """AdamW whose state is plain named tensors, so that it can be saved without pickle.

    Args:
        kind: ``"adamw"`` is torch's. ``"adamw-8bit"`` keeps its moments in 8 bits, in blocks of 256 (Dettmers et al. 2022, arXiv 2110.02861),
            ``"adamw-paged"`` in memory that a full graphics card may move out; both are bitsandbytes'.

    Raises `InvalidSpec` for the paged one where there is no card.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], rate: float, weight_decay: float, kind: str = "adamw"):
        self.parameters, self.rate = parameters, rate
        settings = {"lr": rate, "betas": BETAS, "eps": EPS, "weight_decay": weight_decay}
        self._packs = kind != "adamw"
        if kind == "adamw":
            fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
            self._adam = torch.optim.AdamW(list(parameters.values()), fused=fused, **settings)
        elif kind == "adamw-paged" and not all(p.is_cuda for p in parameters.values()):
            raise InvalidSpec("The paged optimizer needs a graphics card.", "It moves memory between the card and the computer.",
                              "Choose “adamw” or “adamw-8bit”.", fields={"optimizer": "Needs a graphics card."})
        else:
            from bitsandbytes import optim

            self._adam = {"adamw-8bit": optim.AdamW8bit, "adamw-paged": optim.PagedAdamW}[kind](list(parameters.values()), **settings)

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
        return {f"{name}/{key}": torch.as_tensor(value) for name, p in self.parameters.items() for key, value in self._adam.state.get(p, {}).items()
                if not key.startswith("qmap")}                # the same table for all, and made anew

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave. Raises `KeyError` when it belongs to other parameters."""
        places = {name: place for place, name in enumerate(self.parameters)}
        for name, value in state.items():
            parameter, _, key = name.rpartition("/")
            p = self.parameters[parameter]
            own = self._adam.state[p]
            if not self._packs:
                own[key] = value.clone() if key == "step" else value.to(p.device, copy=True)
                continue
            if not own:                    # its own buffers may be paged: they are filled, not exchanged
                self._adam.init_state(self._adam.param_groups[0], p, 0, places[parameter])
            if key == "step":
                own[key] = int(value)
            else:
                own[key].copy_(value)
