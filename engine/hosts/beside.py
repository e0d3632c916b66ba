"""Laws that go beside an adapter's own: modules learned whole, biases, and layers that share another one's tensors.

What an adapter brings along (``modules_to_save``, ``bias``, ``trainable_token_indices``) is the same adapter under another law at another
layer, so that strengths, merging, files and batches of many adapters mean the same for it. Where it is at the same layer, it is mixed
into the class of the method there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from engine.law import Factors, Method, Run, Site, TargetedConfig, Tensors, TensorSpec, Whole

BIAS, WEIGHT = "own.bias", "own.weight"


# --- whole modules ---

class WholeBias(Whole):
    """Of a module without a place for adapters (a norm), only the bias."""

    title = "Learned biases"
    prefix = "own"


SAVED, WHOLE_BIAS = Whole(), WholeBias()


# --- biases ---

class Still(Method):
    """No change at all; what is mixed into it may make one."""

    title = "Learned biases"
    help = "Only the layers' biases learn."
    config = TargetedConfig
    prefix = "own"
    only_bias = True

    def refuses(self, cfg: Any, site: Site) -> str:
        return ""

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return {}

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        return next(iter(p.values())).new_zeros(1, 1).expand(site.out, site.columns)


_Mixin = Method if TYPE_CHECKING else object


class OwnBias(_Mixin):
    """Mixed into a method: the adapter has a bias of its own, ``b ← b + strength · (b' − b0)``, where the layer has one (PEFT: ``bias``)."""

    bias_file: ClassVar[str] = "base_layer.bias"

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        found = super().tensors(cfg, site)
        return {**found, BIAS: TensorSpec((site.out,), torch.nn.init.zeros_, file=self.bias_file)} if site.has_bias else found

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        bias = found.pop(self.bias_file, None) if site.has_bias else None
        p = super().decode(found, cfg, site)
        return p if bias is None else {**p, BIAS: bias}

    def encode(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        return super().encode(p, cfg, site) | ({self.bias_file: p[BIAS]} if BIAS in p else {})

    def bias_delta(self, p: Tensors, cfg: Any, site: Site, b0: Tensor | None = None, W0: Tensor | None = None) -> Tensor | None:
        more = super().bias_delta(p, cfg, site, p.get(BIAS, b0), W0)        # a law that looks at the bias sees the learned one
        if BIAS not in p:
            return more
        return own_bias(p, b0) if more is None else more + own_bias(p, b0)


class PlainBias(OwnBias):
    """The same at a layer that the adapter's method does not sit on."""

    bias_file = "bias"


class AttentionBias(OwnBias):
    """The same of attention's stacked projections."""

    bias_file = "base_layer.in_proj_bias"


def own_bias(p: Tensors, b0: Tensor | None) -> Tensor:
    """``b' − b0``."""
    return p[BIAS] if b0 is None else p[BIAS] - b0


# --- a weight of the base that comes with the adapter ---

class OwnWeight(_Mixin):
    """Mixed into a method: the adapter's file has another weight for its layer, ``W ← W + strength · (W' − W0 + ΔW)``, as when a vocabulary
    was enlarged before it was trained (PEFT: ``save_embedding_layers``, which writes it over the base). Linear layers and embeddings."""

    needs_base: ClassVar[bool] = True
    only_bias: ClassVar[bool] = False
    weight_file: ClassVar[str] = "base_layer.weight"
    plain: Method

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        shape = (site.columns, site.out) if site.kind == "embedding" else (site.out, site.columns)
        return {**super().tensors(cfg, site), WEIGHT: TensorSpec(shape, torch.nn.init.zeros_, trainable=False, file=self.weight_file)}

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        weight = found.pop(self.weight_file, None)
        p = super().decode(found, cfg, site)
        return p if weight is None else {**p, WEIGHT: weight}

    def encode(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        return super().encode(p, cfg, site) | {self.weight_file: p[WEIGHT]}

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        own = p[WEIGHT].T if site.kind == "embedding" else p[WEIGHT]
        return self.plain.delta(p, cfg, site, own.to(W0)) + (own.to(W0) - W0)     # which may use its factors: ours has none

    def factors(self, p: Tensors, cfg: Any, site: Site) -> None:
        return None

    def gain(self, p: Tensors, cfg: Any, site: Site, W0: Tensor) -> None:
        return None

    def apply(self, p: Tensors, cfg: Any, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> None:
        return None


class PlainWeight(OwnWeight):
    """The same at a layer that the adapter's method does not sit on."""

    weight_file = "weight"


class TiedWeight(OwnWeight):
    """The same at a layer whose weight is that of another one, which has the tensor."""

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return self.plain.tensors(cfg, site)

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        return self.plain.decode(found, cfg, site)

    def encode(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        return self.plain.encode(p, cfg, site)


# --- layers that share a weight ---

class Tied(_Mixin):
    """Mixed into a method at a layer whose weight is that of another one: it has the other one's tensors, and none of its own."""

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return {}

    def shared(self, cfg: Any, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        return {}

    def starts_from_base(self, cfg: Any) -> bool:
        return False

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        return {}

    def encode(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        return {}


class TiedModule(Tied):
    """The same for a module that is replaced as a whole: of its tensors only the weight is the other one's."""

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return {key: spec for key, spec in Whole.tensors(self, cfg, site).items() if key != f"{self.prefix}.weight"}

    def starts_from_base(self, cfg: Any) -> bool:
        return True

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        found.pop(self.in_file("weight"), None)
        return Method.decode(self, found, cfg, site)

    def encode(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        return {self.in_file(leaf.name): p[f"{self.prefix}.{leaf.name}"] for leaf in site.leaves}


class Mirrored(Tied):
    """The same where an embedding's weight is an output layer's, which is the transpose of its matrix: ``ΔW = (s·B·A)ᵀ``.

    The first of the site's peers is the one whose tensors these are.
    """

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors:
        f = super().factors(p, cfg, site.peers[0])
        return Factors(f.B.T, f.A.T, f.scale)

    def encode(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        f = self.factors(p, cfg, site)
        return super().from_factors(Factors(f.A, f.B, 1.0), site)

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        for name in super(Tied, self).tensors(cfg, site):
            found.pop(name, None)
        return {}


@cache
def mixed(mixin: type, inner: Method) -> Method:
    """The law ``inner`` with ``mixin`` in front of its class: it stays of the kind (delta or map) that it is."""
    law = object.__new__(type(f"{mixin.__name__}{type(inner).__name__}", (mixin, type(inner)), {}))
    law.__dict__.update(vars(inner), plain=inner)
    if "needs_base" in vars(mixin):
        law.needs_base = mixin.needs_base
    return law


STILL = mixed(PlainBias, Still())
