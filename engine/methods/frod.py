"""FRoD: ``W ← U · (S + diag(l)) · Vᵀ``, U and V from one decomposition of all layers of a kind, S sparse and learned like l.

Zhu et al. 2026 (AAAI, doi 10.1609/aaai.v40i31.39813). PEFT class ``FrodConfig``. Since ``W0 = U · diag(l₀) · Vᵀ``, the delta is
``U · (S + diag(l − l₀)) · Vᵀ``: exactly nothing at the start, and W0 is not needed to run it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import UnsupportedLayer
from engine.configs import QV_OF_PHI
from engine.law import Method, Run, Site, TargetedConfig, Tensors, TensorSpec
from engine.numerics.frames import Spread, common_frame, off_diagonal
from engine.specs.fields import knob

ROUNDING = 1e-5                            # what of W0, as a share, may lie outside of the frame where training runs without W0
SPARSE = 0.05                              # up to which share of entries S is quicker as a sparse matrix


@dataclass
class FrodConfig(TargetedConfig):
    """Settings of FRoD, by PEFT's names and defaults.

    Raises:
        ValueError: a sparse rate that is no share, or ``runtime_offload_base_weight``.
    """

    peft_type: ClassVar[str] = "FROD"

    projection_prng_key: int = knob(0, label="Seed", term="projection_prng_key", advanced=True, help="Decides which entries of S are learned.")
    save_projection: bool = knob(True, label="Save the frame", term="save_projection", advanced=True,
                                 help="Larger files, which do not depend on making V again from the base model.")
    frod_dropout: float = knob(0.0, label="Forgetfulness", term="frod_dropout", low=0, high=0.9, advanced=True,
                               help="Share of inputs dropped while training; a little helps with very few examples.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"
    sparse_rate: float = knob(0.01, label="Capacity", term="sparse_rate", low=0, high=1,
                              help="Share of S that is learned: more holds more and makes larger files.")
    regularization_alpha: float = knob(1e-3, label="Steadiness", term="regularization_alpha", low=0, high=1, advanced=True,
                                       help="Keeps the common frame sound where layers resemble each other.")
    progressbar: bool = True               # kept for the file format; nothing is printed
    runtime_offload_base_weight: bool = False
    init_weights: bool = knob(True, label="Start without effect", term="init_weights", advanced=True, help="Otherwise it starts at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparse_rate <= 1:
            raise ValueError(f"`sparse_rate` should be between 0 and 1, got {self.sparse_rate}.")
        if self.runtime_offload_base_weight:
            raise ValueError("`runtime_offload_base_weight` is not offered: the base model stays where you put it.")


class Frod(Method):
    """Full-rank adaptation in a frame that all layers of a kind share."""

    title = "FRoD"
    help = "Changes a layer in full with few learned numbers. Slow to start on large models; the frame makes files large."
    config = FrodConfig
    prefix = "frod_"
    layers = QV_OF_PHI
    begins_at_base = True
    dropped = "frod_dropout"

    def refuses(self, cfg: FrodConfig, site: Site) -> str:
        if site.kind == "embedding":
            return "FRoD needs a square matrix as large as the vocabulary to sit on an embedding."
        return ""

    def shared(self, cfg: FrodConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        widths = {category(site.path): site.columns for site in sites}
        for site in sites:
            if site.columns != widths[category(site.path)]:
                raise UnsupportedLayer(f"FRoD cannot sit on {site.path}.", f"All layers called “{category(site.path)}” share one frame, "
                                       "but their widths differ.", "Leave it out of `target_modules`.")
        places: dict[str, Tensor] = {}

        def spec(shape: tuple[int, ...], init: Callable[[Tensor], object], dtype: torch.dtype = torch.long) -> TensorSpec:
            return TensorSpec(shape, init, trainable=False, dtype=dtype, saved=cfg.save_projection)

        def place(name: str) -> Callable[[Tensor], object]:
            def fill(t: Tensor) -> None:
                if not places:             # one generator for all kinds, so all are drawn at once
                    generator = torch.Generator("cpu").manual_seed(cfg.projection_prng_key)
                    places.update({n: off_diagonal(widths[n], count(cfg, widths[n]), generator) for n in sorted(widths)})
                t.copy_(places[name])
            return fill

        table: dict[str, TensorSpec] = {}
        for name, width in sorted(widths.items()):
            table[f"frod_V.{name}"] = spec((width, width), torch.nn.init.eye_, torch.float32)
            table[f"frod_s_indices.{name}"] = spec((2, count(cfg, width)), place(name))
            table[f"frod_s_size.{name}"] = spec((2,), lambda t, width=width: t.fill_(width))
        return table

    def start_shared(self, p: Tensors, cfg: FrodConfig, sites: Sequence[Site], weight: Callable[[Site], Tensor], fresh: Set[str]) -> None:
        kinds: dict[str, dict[int, Site]] = {}
        for index, site in enumerate(sites):                  # a second layer of a kind at the same depth takes the first one's place, as in PEFT
            kinds.setdefault(category(site.path), {})[depth(site.path, index)] = site
        for name, by_depth in kinds.items():
            if f"frod_V.{name}" in fresh:
                weights = [weight(site).to("cpu", torch.float32) for _, site in sorted(by_depth.items())]
                p[f"frod_V.{name}"].copy_(common_frame(weights, cfg.regularization_alpha))

    def tensors(self, cfg: FrodConfig, site: Site) -> dict[str, TensorSpec]:
        width, zeros = site.columns, torch.nn.init.zeros_
        return {"frod_lambda_s_values": TensorSpec((count(cfg, width),), zeros if cfg.init_weights else _noise),
                "frod_lambda_l": TensorSpec((width,), zeros if cfg.init_weights else _noise),
                "frod_lambda_l_init": TensorSpec((width,), zeros, trainable=False, saved=False),
                "frod_rest": TensorSpec((), zeros, trainable=False, saved=False),
                "frod_U": TensorSpec((site.out, width), zeros, trainable=False, saved=False)}

    def start(self, p: Tensors, cfg: FrodConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        V, W = p[f"frod_V.{category(site.path)}"].double().cpu(), W0.double().cpu()
        try:
            B = torch.linalg.solve(V, W.T).T
        except RuntimeError:               # V is singular
            B = W @ torch.linalg.pinv(V, rtol=1e-6).T
        lengths = torch.linalg.norm(B, dim=0)
        p["frod_U"].copy_(torch.where(lengths > 1e-12, B / lengths, 0))
        p["frod_lambda_l_init"].copy_(lengths)
        p["frod_rest"].copy_(torch.linalg.norm(W - (p["frod_U"].double().cpu() * lengths) @ V.T) / torch.linalg.norm(W).clamp(min=1e-30))
        if "frod_lambda_l" in fresh:
            p["frod_lambda_l"].add_(p["frod_lambda_l_init"])

    def middle(self, p: Tensors, site: Site) -> Tensor:
        """``S + diag(l − l₀)``, ``(columns, columns)``."""
        rows, columns = p[f"frod_s_indices.{category(site.path)}"]
        shift = p["frod_lambda_l"] - p["frod_lambda_l_init"]
        return torch.diag(shift).index_put((rows, columns), p["frod_lambda_s_values"])

    def whole(self, p: Tensors, cfg: FrodConfig, site: Site) -> Callable[[Tensor], Tensor] | None:
        """``x ↦ U · (S + diag(l)) · Vᵀ · x``, as PEFT runs it, where that is W0 at the start."""
        places, V, l = p[f"frod_s_indices.{category(site.path)}"], p[f"frod_V.{category(site.path)}"], p["frod_lambda_l"]
        if site.kind != "linear" or p["frod_rest"] > ROUNDING or cfg.sparse_rate > SPARSE:
            return None

        def run(x: Tensor) -> Tensor:
            z = V.T.to(x.dtype) @ x.reshape(-1, site.columns).T
            z = Spread.apply(p["frod_lambda_s_values"].to(x.dtype), places, z) + l.to(x.dtype)[:, None] * z
            return F.linear(z.T, p["frod_U"].to(x.dtype)).view(*x.shape[:-1], site.out)

        return run

    def delta(self, p: Tensors, cfg: FrodConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        middle = self.middle(p, site)
        return p["frod_U"].to(middle.dtype) @ middle @ p[f"frod_V.{category(site.path)}"].T.to(middle.dtype)

    def apply(self, p: Tensors, cfg: FrodConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        if site.kind != "linear":
            return None
        z = F.linear(x, p[f"frod_V.{category(site.path)}"].T.to(x.dtype))
        return F.linear(F.linear(z, self.middle(p, site).to(x.dtype)), p["frod_U"].to(x.dtype))


def _noise(t: Tensor) -> None:
    torch.nn.init.normal_(t, std=0.1)


def category(path: str) -> str:
    """The kind of layer that shares a frame: the last one or two names of its path, e.g. ``self_attn_q_proj``."""
    parts = path.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:        # in BERT, not to be taken for the MLP's output.dense
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"


def depth(path: str, otherwise: int) -> int:
    """The number of the block that a layer is in: that after ``layers``, else the first number in its path."""
    parts = path.split(".")
    after = parts[parts.index("layers") + 1:][:1] if "layers" in parts else []
    return next((int(part) for part in (*after, *parts) if part.isdigit()), otherwise)


def count(cfg: FrodConfig, width: int) -> int:
    """How many entries of S are learned: the chosen share of all, but no more than there are off the diagonal, and at least one."""
    free = width * (width - 1)
    return min(free, max(int(width * width * cfg.sparse_rate), int(cfg.sparse_rate > 0)))


METHOD = Frod()
