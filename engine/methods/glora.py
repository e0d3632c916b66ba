"""GLoRA: ``W ← W + W ∘ A + B`` and ``b ← b + b ∘ D + E + W · C``, with A … E each low-rank, a vector, a number or absent.

Chavan et al. 2023 (arXiv 2306.07967). PEFT class ``GloraConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.law import Init, Method, Site, TargetedConfig, Tensors, TensorSpec, kaiming_uniform
from engine.specs.fields import knob

_FORMS = {"config_A_B": ("lora", "vector", "constant", "none"), "config_C": ("lora", "vector", "none"),
          "config_D_E": ("vector", "constant", "none")}


@dataclass
class GloraConfig(TargetedConfig):
    """Settings of GLoRA, by PEFT's names and defaults.

    Raises:
        ValueError: a rank below one, or a form that is not known.
    """

    peft_type: ClassVar[str] = "GLORA"
    positive = ("r",)

    r: int = knob(8, label="Capacity", term="r", low=1, high=1024, help="Rank of the parts that are “lora”. Larger files, slower.")
    config_A_B: str = knob("lora", label="Change of the weight", term="config_A_B", choices=_FORMS["config_A_B"], advanced=True,
                           help="How freely the weight is scaled and shifted: in full (lora), by output, by one number, or not.")
    config_C: str = knob("lora", label="Change of the bias by the weight", term="config_C", choices=_FORMS["config_C"], advanced=True,
                         help="How freely the weight may shift the bias; only where a layer has one.")
    config_D_E: str = knob("constant", label="Change of the bias", term="config_D_E", choices=_FORMS["config_D_E"], advanced=True,
                           help="How freely the bias is scaled and shifted; only where a layer has one.")
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in _FORMS.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Invalid {name} value: {getattr(self, name)!r}. Valid values are: {', '.join(sorted(known))}.")


class Glora(Method):
    """Generalised LoRA: one form for scaling, shifting and re-biasing a layer."""

    title = "GLoRA"
    help = "Scales and shifts weight and bias at once. Flexible; files twice LoRA's, and slower to teach."
    config = GloraConfig
    prefix = "glora_"
    begins_at_base = False
    needs_base = True

    def refuses(self, cfg: GloraConfig, site: Site) -> str:
        if not site.has_bias and cfg.config_A_B == "none":
            return "With `config_A_B` none only the bias learns, and this layer has none."
        return ""

    def tensors(self, cfg: GloraConfig, site: Site) -> dict[str, TensorSpec]:
        table: dict[str, TensorSpec] = {}
        start: Init = torch.nn.init.zeros_ if cfg.init_weights else kaiming_uniform

        def part(letter: str, form: str, rows: int, columns: int) -> None:
            if form == "lora":
                table[f"glora_{letter}.Xu"] = TensorSpec((cfg.r, columns), kaiming_uniform)
                table[f"glora_{letter}.Xd"] = TensorSpec((rows, cfg.r), start)
            elif form == "vector":
                flat = letter in "DE"
                table[f"glora_{letter}.X"] = TensorSpec((rows,) if flat else (rows, 1), (lambda X: start(X.unsqueeze(0))) if flat else start)
            elif form == "constant":
                table[f"glora_{letter}.X"] = TensorSpec((1,), torch.nn.init.zeros_ if cfg.init_weights else _small)

        part("A", cfg.config_A_B, site.out, site.columns)
        part("B", cfg.config_A_B, site.out, site.columns)
        if site.has_bias:
            part("C", cfg.config_C, site.columns, 1)
            part("D", cfg.config_D_E, site.out, 1)
            part("E", cfg.config_D_E, site.out, 1)
        return table

    def decode(self, found: Tensors, cfg: GloraConfig, site: Site) -> Tensors:
        for letter in "ABCDE":                                # PEFT stores an absent part as a tensor of zeros
            found.pop(f"glora_{letter}.zeros", None)
        return super().decode(found, cfg, site)

    def delta(self, p: Tensors, cfg: GloraConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        A, B = _part(p, "A"), _part(p, "B")
        if A is None:
            return torch.zeros_like(W0)
        return W0.to(A.dtype) * A + B

    def bias_delta(self, p: Tensors, cfg: GloraConfig, site: Site, b0: Tensor | None = None, W0: Tensor | None = None) -> Tensor | None:
        if not site.has_bias:
            return None
        C, D, E = (_part(p, letter) for letter in "CDE")
        total = None if C is None else (W0.to(C.dtype) @ C).squeeze(-1)
        if D is None:
            return total
        shift = b0.to(D.dtype) * D + E
        return shift if total is None else total + shift


def _small(X: Tensor) -> None:
    torch.nn.init.normal_(X, std=0.02)


def _part(p: Tensors, letter: str) -> Tensor | None:
    """One of A … E, to be broadcast; None if it is absent."""
    if (X := p.get(f"glora_{letter}.X")) is not None:
        return X
    down = p.get(f"glora_{letter}.Xd")
    return None if down is None else down @ p[f"glora_{letter}.Xu"]


METHOD = Glora()
