"""VB-LoRA: ``ΔW = B · A``, with A and B put together of short pieces, each a mixture of the k likeliest vectors of one bank for all layers.

Li et al. 2024 (arXiv 2405.15179). PEFT class ``VBLoRAConfig``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engine.configs import MANY_LAYERS
from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, check_places
from engine.specs.fields import knob


@dataclass
class VBLoRAConfig(TargetedConfig):
    """Settings of VB-LoRA, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "VBLORA"
    positive = ("r", "topk", "num_vectors", "vector_length")

    r: int = knob(4, label="Capacity", term="r", low=1, high=1024, help="How much each layer can hold.")
    num_vectors: int = knob(256, label="Vectors in the bank", term="num_vectors", low=1, high=65_536,
                            help="How many pieces all layers share; more for larger models.")
    vector_length: int = knob(256, label="Length of the vectors", term="vector_length", low=1, high=65_536, advanced=True,
                              help="Must divide both sides of every layer.")
    topk: int = knob(2, label="Vectors in a mixture", term="topk", low=1, high=64, advanced=True, help="How many vectors each piece is mixed of.")
    save_only_topk_weights: bool = knob(False, label="Small file", term="save_only_topk_weights", advanced=True,
                                        help="Stores the chosen vectors only: a tiny file, which cannot be taught further.")
    vblora_dropout: float = knob(0.0, label="Forgetfulness", term="vblora_dropout", low=0, high=0.9, advanced=True,
                                 help="Share of inputs dropped while training; a little helps with very few examples.")
    init_vector_bank_bound: float = knob(0.02, label="First size of the vectors", term="init_vector_bank_bound", advanced=True,
                                         help="The bank starts at random within these bounds; never at zero.")
    init_logits_std: float = knob(0.1, label="First spread of the choices", term="init_logits_std", advanced=True,
                                  help="How strongly each piece prefers some vectors at the start.")
    fan_in_fan_out: bool = False           # kept for the file format; the host knows the layout by itself
    bias: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.topk > self.num_vectors:
            raise ValueError(f"`topk` is {self.topk}, but the bank holds only {self.num_vectors} vectors (`num_vectors`).")


class VBLora(Method):
    """A vector bank for the whole model; a layer learns which of its vectors to mix."""

    title = "VB-LoRA"
    help = "Very small files, as all layers share their building blocks. For styles rather than facts."
    config = VBLoRAConfig
    prefix = "vblora_"
    layers = MANY_LAYERS
    dropped = "vblora_dropout"

    def refuses(self, cfg: VBLoRAConfig, site: Site) -> str:
        if site.groups > 1:
            return "VB-LoRA mixes all channels, which a grouped convolution cannot."
        for name, size in (("in_features", site.columns), ("out_features", site.out)):
            if size % cfg.vector_length:
                return f"`{name}` {size} must be divisible by `vector_length` {cfg.vector_length}."
        return ""

    def shapes(self, cfg: VBLoRAConfig, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the logits of A and B: a row of choices for each piece."""
        return (cfg.r, site.columns // cfg.vector_length, cfg.num_vectors), (site.out // cfg.vector_length, cfg.r, cfg.num_vectors)

    def shared(self, cfg: VBLoRAConfig, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        def start(bank: Tensor) -> None:
            """PEFT draws a bank before the logits of each layer and keeps the last one: here the stream is run ahead and set back."""
            state = torch.get_rng_state()
            for site in sites[:-1]:
                self._draw_bank(bank, cfg)
                for shape in self.shapes(cfg, site):
                    torch.empty(shape).normal_()
            self._draw_bank(bank, cfg)
            torch.set_rng_state(state)

        return {"vblora_vector_bank": TensorSpec((cfg.num_vectors, cfg.vector_length), start)}

    @staticmethod
    def _draw_bank(bank: Tensor, cfg: VBLoRAConfig) -> None:
        bank.uniform_(-cfg.init_vector_bank_bound, cfg.init_vector_bank_bound)

    def tensors(self, cfg: VBLoRAConfig, site: Site) -> dict[str, TensorSpec]:
        shape_a, shape_b = self.shapes(cfg, site)

        def start_a(logits: Tensor) -> None:
            self._draw_bank(torch.empty(cfg.num_vectors, cfg.vector_length), cfg)
            logits.normal_(0, cfg.init_logits_std)

        return {"vblora_logits_A": TensorSpec(shape_a, start_a),
                "vblora_logits_B": TensorSpec(shape_b, lambda t: t.normal_(0, cfg.init_logits_std))}

    def decode(self, found: Tensors, cfg: VBLoRAConfig, site: Site) -> Tensors:
        """Of the small form, too: the chosen vectors and their weights less the last, which is the rest to one."""
        tensors = super().decode(found, cfg, site)
        for name in ("vblora_logits_A", "vblora_logits_B"):
            chosen, shares = f"{name}_topk_indices", f"{name}_topk_weights"
            if chosen in found and shares in found:
                places, weights = check_places(found.pop(chosen).long(), cfg.num_vectors), found.pop(shares)
                weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1).clamp_min(0)
                never = weights.new_full((*weights.shape[:-1], cfg.num_vectors), -torch.inf)
                tensors[name] = never.scatter(-1, places, weights.log())
        return tensors

    def encode(self, p: Tensors, cfg: VBLoRAConfig, site: Site) -> Tensors:
        if not cfg.save_only_topk_weights:
            return super().encode(p, cfg, site)
        small = torch.uint8 if cfg.num_vectors < 2**8 else torch.int16 if cfg.num_vectors < 2**15 else torch.int32
        tensors: Tensors = {}
        for name in ("vblora_logits_A", "vblora_logits_B"):
            logits, places = p[name].topk(cfg.topk)
            tensors |= {f"{name}_topk_indices": places.to(small), f"{name}_topk_weights": logits.softmax(-1)[..., :-1]}
        return tensors

    def mixed(self, p: Tensors, cfg: VBLoRAConfig, name: str) -> Tensor:
        """Each piece as the mixture of its likeliest vectors ``(…, vector_length)``."""
        logits = p[name]
        if torch.is_grad_enabled() and logits.requires_grad and logits[0, 0].isinf().any():
            raise RuntimeError("Found infinity values in VB-LoRA logits: an adapter stored with `save_only_topk_weights` cannot be trained further.")
        likeliest, places = logits.topk(cfg.topk, dim=-1)
        return (likeliest.softmax(-1)[..., None] * p["vblora_vector_bank"][places]).sum(-2)

    def factors(self, p: Tensors, cfg: VBLoRAConfig, site: Site) -> Factors:
        A, B = self.mixed(p, cfg, "vblora_logits_A"), self.mixed(p, cfg, "vblora_logits_B")
        return Factors(A.flatten(1), B.transpose(1, 2).flatten(0, 1), 1.0)

    def delta(self, p: Tensors, cfg: VBLoRAConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.factors(p, cfg, site)
        return f.B @ f.A


METHOD = VBLora()
