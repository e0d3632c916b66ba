"""MonteCLoRA: LoRA that trains with noise on A of a learned size, a Monte Carlo view of many adapters at once.

In training ``A ← A + Σₙ wₙ · εₙ``: noise εₙ of learned covariance, weights w of a learned (approximate) Dirichlet distribution. It merges and
runs as LoRA. PEFT: ``LoraConfig(monteclora_config=MontecloraConfig(…))`` with ``MontecloraTrainerMixin``; here `variational_loss` is the term
that is added to the task's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Run, Site, Tensors, TensorSpec, Variant

SAMPLER = "lora_monteclora_sampler"
SPREAD, SHARES = f"{SAMPLER}.std_prior", f"{SAMPLER}.expert_weights_prior"      # both as logarithms
FLOOR = 1e-3                               # of a variance


class Monteclora(Variant):
    """A law round LoRA; of the sampler's four tensors two are learned, and two stand in PEFT's files."""

    title = "MonteCLoRA"
    help = "LoRA that learns under noise of the right size: steadier results, and less sensitive to its settings."

    def refuses(self, cfg: Any, site: Site) -> str:
        return "MonteCLoRA sits on linear layers only." if site.kind != "linear" else self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        rank, n = self.inner.rank(cfg, site), cfg.monteclora_config.num_samples
        return {**self.inner.tensors(cfg, site),
                SPREAD: TensorSpec((rank,), torch.nn.init.uniform_), SHARES: TensorSpec((n,), torch.nn.init.uniform_),
                f"{SAMPLER}.gaussian_var_prior": TensorSpec((rank, rank), torch.nn.init.eye_, trainable=False),
                f"{SAMPLER}.expert_weights": TensorSpec((n,), lambda w: torch.nn.init.constant_(w, 1 / n), trainable=False)}

    def apply(self, p: Tensors, cfg: Any, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor:
        f = self.inner.factors(p, cfg, site)
        A = f.A + noise(p, Draw.new(p, site.columns), cfg.monteclora_config) if run.training else f.A
        return f.scale * F.linear(F.linear(x, A.to(x.dtype)), f.B.to(x.dtype))

    def extra_loss(self, cfg: Any, layers: Mapping[str, Tensors]) -> Tensor:
        return torch.stack([variational_loss(p, cfg.monteclora_config) for p in layers.values()]).mean()


@dataclass(frozen=True)
class Draw:
    """What chance says of one layer in one step."""

    normal: Tensor                         # (samples, columns, rank)
    wishart: Tensor                        # (rank,): the diagonal of a standard Wishart matrix with `rank` degrees of freedom
    dirichlet: Tensor                      # (samples,), normal

    @staticmethod
    def new(p: Tensors, columns: int) -> "Draw":
        rank, n = p[SPREAD].numel(), p[SHARES].numel()
        like = {"dtype": p[SPREAD].dtype, "device": p[SPREAD].device}
        # the diagonal's entries are independent of one another, each a χ² of `rank` degrees
        return Draw(torch.randn(n, columns, rank, **like), torch.randn(rank, rank, **like).square().sum(0), torch.randn(n, **like))


def variances(p: Tensors, draw: Draw) -> Tensor:
    """Of the noise on each of A's rows, ``(rank,)``, sampled."""
    return (p[SPREAD].exp().square() * draw.wishart).clamp_min(FLOOR)


def shares(p: Tensors, draw: Draw) -> Tensor:
    """Weights of the samples, ``(samples,)``, sampled from a Dirichlet distribution's approximation in the logarithm (MacKay's)."""
    alpha = p[SHARES].exp().clamp_min(1e-6)
    n = alpha.numel()
    spread = (1 / alpha * (1 - 2 / n) + (1 / alpha).sum() / n ** 2).clamp_min(1e-6) + 1e-6
    return torch.softmax(spread.sqrt() * draw.dirichlet + alpha.log() - alpha.log().mean(), -1)


def noise(p: Tensors, draw: Draw, settings: Any) -> Tensor:
    """What training adds to A ``(rank, columns)`` in one step; differentiable by both learned tensors."""
    sizes = settings.sample_scaler * variances(p, draw).sqrt()
    return torch.einsum("n,nij->ji", shares(p, draw), draw.normal) * sizes[:, None]


def variational_loss(p: Tensors, settings: Any, draw: Draw | None = None) -> Tensor:
    """One layer's term of the loss, a scalar: KL divergences of the learned distributions from their priors, and the entropy's stand-in.

    The mean of it over all layers is added to the task's loss, in training only (PEFT: ``LoraModel._get_monteclora_loss``). PEFT's Dirichlet
    term has one sum with the wrong sign and is no divergence; this one is (`torch.distributions` agrees).
    """
    draw = draw or Draw.new(p, 0)
    alpha, prior, rank = p[SHARES].exp(), torch.full_like(p[SHARES], settings.dirichlet_prior), p[SPREAD].numel()
    dirichlet = (alpha.sum().lgamma() - prior.sum().lgamma() - alpha.lgamma().sum() + prior.lgamma().sum()
                 + ((alpha - prior) * (alpha.digamma() - alpha.sum().digamma())).sum())
    wishart = 0.5 * rank * (p[SPREAD].mul(2).exp() - 2 * p[SPREAD] - 1).sum()
    var = variances(p, draw)
    normal = 0.5 * alpha.numel() * (var - var.log() - 1).sum()
    entropy = shares(p, draw).square().sum() if settings.use_entropy else 0
    return settings.kl_loss_weight * (dirichlet + wishart + normal) + entropy


def wanted(cfg: Any) -> bool:
    return cfg.monteclora_config is not None


VARIANT = Monteclora
