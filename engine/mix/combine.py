"""Several low-rank adapters made into one, site by site, by every combination that PEFT knows.

``cat`` is the exact weighted sum. ``svd`` is the best approximation of it at a given rank, found from thin factors instead of a dense
matrix. The others follow their papers: TIES (arXiv 2306.01708), DARE (arXiv 2311.03099).
As in PEFT, those without ``_svd`` combine A and B separately and are therefore no sum of the adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.law import Factors
from engine.mix.spectrum import dense, thin_each

SEPARATE = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
DENSE = ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
KINDS = ("cat", "svd", *SEPARATE, *DENSE)
AT_ONCE = 64                               # sites whose factors are in memory once more while their sum is decomposed


@dataclass(frozen=True)
class Recipe:
    """How to combine. Raises `ValueError` for a combination that cannot be.

    Args:
        kind: one of `KINDS`. rank: of the result, for ``svd`` and ``…_svd``. clamp: quantile at which the factors of an SVD are cut off.
        density: share of the values that pruning keeps. signs: how TIES elects a sign, by ``"total"`` or by ``"frequency"``.
    """

    kind: str
    rank: int = 0
    clamp: float | None = None
    density: float | None = None
    signs: str = "total"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Invalid combination_type: {self.kind}. Choose one of {', '.join(KINDS)}.")
        if self.kind.removesuffix("_svd") not in ("cat", "svd", "linear") and (self.density is None or not 0 <= self.density <= 1):
            raise ValueError(f"The combination {self.kind} needs a density between 0 and 1, not {self.density}.")
        if self.clamp is not None and not 0 <= self.clamp <= 1:
            raise ValueError(f"svd_clamp must be between 0 and 1, not {self.clamp}.")
        if self.signs not in ("total", "frequency"):
            raise ValueError(f"majority_sign_method must be “total” or “frequency”, not {self.signs}.")


Parts = Sequence[tuple[float, Factors]]                       # of one layer: weight and float factors of each adapter on it


def combine(sites: Sequence[Parts], recipe: Recipe) -> list[Factors]:
    """One pair of factors, at scale 1, for what several adapters have at each site; biases add up.

    Args:
        sites: for the kinds in `SEPARATE` all factors of a site are of the same rank.
    """
    if recipe.kind != "svd":
        return [_combined(site, _pair(site, recipe), recipe) for site in sites]
    found: list[Factors] = []
    for start in range(0, len(sites), AT_ONCE):
        some = sites[start:start + AT_ONCE]
        pairs = [(torch.cat([f.A for _, f in site]), torch.cat([w * f.scale * f.B for w, f in site], dim=1)) for site in some]
        found += [_combined(site, spectrum.cut(recipe.rank), recipe) for site, spectrum in zip(some, thin_each(pairs, recipe.rank))]
    return found


def _combined(site: Parts, pair: tuple[Tensor, Tensor], recipe: Recipe) -> Factors:
    """``pair``, cut off as the recipe says, and the sum of the biases."""
    A, B = pair
    if recipe.clamp is not None and recipe.kind.endswith("svd"):
        values = torch.cat([B.flatten(), A.flatten()])
        limit = _quantile(torch.cat([values, -values]), recipe.clamp)          # which way a direction points is nobody's, and must not count
        A, B = A.clamp(-limit, limit), B.clamp(-limit, limit)
    biases = [w * f.scale * f.bias for w, f in site if f.bias is not None]
    return Factors(A, B, 1.0, sum(biases[1:], biases[0]) if biases else None)


def _quantile(values: Tensor, share: float) -> Tensor:
    """As `torch.quantile`, which takes 16 million values at most."""
    values, place = values.sort().values, share * (len(values) - 1)
    return torch.lerp(values[math.floor(place)], values[math.ceil(place)], place % 1)


def _pair(site: Parts, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """(A, B) by every kind but ``svd``."""
    weights, factors = zip(*site)
    strengths = [w * f.scale for w, f in site]
    if recipe.kind == "cat":
        return torch.cat([s * f.A for s, f in zip(strengths, factors)]), torch.cat([f.B for f in factors], dim=1)
    if recipe.kind in SEPARATE:
        return (arithmetic([f.A for f in factors], [math.copysign(math.sqrt(abs(s)), s) for s in strengths], recipe),
                arithmetic([f.B for f in factors], [math.sqrt(abs(s)) for s in strengths], recipe))
    return dense(arithmetic([f.scale * (f.B @ f.A) for f in factors], list(weights), recipe)).cut(recipe.rank)


# --- arithmetic on whole tensors ---

def arithmetic(tensors: list[Tensor], weights: list[float], recipe: Recipe) -> Tensor:
    """The weighted sum of tensors of one shape, thinned out and elected as the recipe says."""
    kind = recipe.kind.removesuffix("_svd")
    thin: Callable[[Tensor, float], Tensor] | None = {"ties": keep_largest, "magnitude_prune": keep_largest, "dare_linear": keep_random,
                                                      "dare_ties": keep_random}.get(kind)
    if thin is not None and recipe.density < 1:
        tensors = [thin(t, recipe.density) for t in tensors]
    weighted = torch.stack([w * t for w, t in zip(weights, tensors)])
    if not kind.endswith("ties"):
        return weighted.sum(0)
    agrees = elected(torch.stack(tensors), recipe.signs)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """Only the share ``density`` of values with the largest magnitude."""
    flat = tensor.flatten()
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def keep_random(tensor: Tensor, density: float) -> Tensor:
    """Each value with probability ``density``, enlarged so that the expectation stays; draws from the global stream as PEFT does."""
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / density if density else torch.zeros_like(tensor)


def elected(tensors: Tensor, signs: str) -> Tensor:
    """Where each of the stacked tensors has the sign that the majority has: by summed value, or by count."""
    vote = tensors.sum(0) if signs == "total" else tensors.sign().sum(0)
    return tensors.sign() == torch.where(vote >= 0, 1, -1)
