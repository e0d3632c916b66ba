"""What a method of adaptation says of itself; everything else about adapters is written once, elsewhere.

A method file holds its config dataclass (PEFT's names and defaults) and its law. It never sees a layer class, a model
or another method: it sees a `Site` (a weight described canonically) and a dict of tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.configs import PeftConfig as PeftConfig
from engine.configs import TargetedConfig
from engine.configs import by_pattern as by_pattern
from engine.errors import BadAdapter, CannotMerge

# --- sites and tensors -------------------------------------------------------------------------

SiteKind = Literal["linear", "conv", "embedding", "parameter", "module"]


@dataclass(frozen=True)
class Leaf:
    """One tensor of a module that is replaced as a whole."""

    name: str                              # in the module's state dict
    shape: tuple[int, ...]
    dtype: torch.dtype
    learns: bool                           # a parameter; otherwise a buffer


@dataclass(frozen=True)
class Site:
    """One weight, described once for all methods.

    The canonical weight is the matrix ``(out, columns)`` with ``y = W x``: a convolution's kernel is flattened to
    ``columns = in / groups · k₁ · k₂ …``, an embedding is ``(dim, vocabulary)``, GPT-2's Conv1D is already transposed;
    a parameter with three axes holds its experts' matrices one below the other, each ``(out / experts, columns)``.
    """

    path: str                              # module path in the user's model
    kind: SiteKind
    out: int
    columns: int
    kernel: tuple[int, ...] = ()           # spatial sizes of a convolution
    groups: int = 1
    has_bias: bool = False
    leaves: tuple[Leaf, ...] = ()          # of a "module", which is no matrix: all its tensors
    peers: tuple["Site", ...] = field(default=(), compare=False, repr=False)    # all sites of the adapter, in the model's order
    index: int = field(default=0, compare=False)              # the place of this one among them
    experts: int = 1
    file: str = ""                         # module path in the adapter's file, where it is another one there
    quantized: bool = field(default=False, compare=False)     # the weight is stored in fewer bits than its numbers have

    @property
    def in_file(self) -> str:
        """Module path in the adapter's file."""
        return self.file or self.path

    def among(self, peers: tuple["Site", ...], index: int) -> "Site":
        """The same site with its peers: `dataclasses.replace` in a tenth of the time, for thousands of layers."""
        placed = object.__new__(Site)
        placed.__dict__.update(self.__dict__, peers=peers, index=index)
        return placed


Init = Callable[[Tensor], None]


class TensorSpec(NamedTuple):
    """One tensor of an adapter. Its name in the table is the one in PEFT's module tree less the adapter, e.g. ``"lora_A.weight"``."""

    shape: tuple[int, ...]
    init: Init                             # fills a tensor of `dtype` in place
    trainable: bool = True
    file: str = ""                         # its name in the file, where that differs from the one in the module tree
    dtype: torch.dtype = torch.float32     # of positions and masks, another one
    saved: bool = True                     # False: made again from the seed or from W0 when the file is read


Tensors = dict[str, Tensor]


def taken(found: Tensors, specs: Mapping[str, TensorSpec]) -> Tensors:
    """What a file holds of these, popped out of ``found``: by their names in memory, and there by those in the file."""
    return {name: found.pop(spec.file or name) for name, spec in specs.items() if (spec.file or name) in found}


@dataclass(frozen=True)
class Factors:
    """``ΔW = scale · B · A`` with A ``(rank, columns)`` and B ``(out, rank)``; ``bias`` ``(out,)`` is scaled as well."""

    A: Tensor
    B: Tensor
    scale: float
    bias: Tensor | None = None

    @staticmethod
    def of(learned: "Factors", still: "Factors") -> "Factors":
        """The sum of two without biases."""
        scale, own = (learned.scale, learned.B) if learned.scale else (1.0, learned.B * 0.0)
        A, B = still.A.to(learned.A.dtype), still.B.to(learned.B.dtype)
        return Factors(torch.cat([learned.A, A]), torch.cat([own, B * (still.scale / scale)], dim=1), scale)


@dataclass(frozen=True)
class Run:
    """What a forward pass knows beside its input."""

    training: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)   # arguments of the call that are meant for adapters, e.g. ``task_ids``


# --- the law of a method -----------------------------------------------------------------------

class Method(ABC):
    """One method of adaptation. Stateless: everything it knows comes in as arguments.

    A method is a *delta*, ``W ← W + strength · ΔW(p, W0)``, always from the pristine W0, so that several add up in any order; or it is a
    `MapMethod`. ``p`` holds the tensors of `tensors` and of `shared` together. W0 comes as the canonical matrix if ``needs_base`` is set.
    """

    title: ClassVar[str]                   # plain words for a card
    help: ClassVar[str]                    # good for … / cannot …
    config: ClassVar[type[TargetedConfig]]
    prefix: ClassVar[str]                  # what all its tensor names begin with
    needs_base: ClassVar[bool] = False     # ΔW depends on W0
    begins_at_base: ClassVar[bool | None] = None               # `start` has something to do; by default, if ΔW depends on W0
    dropped: ClassVar[str] = ""            # name of the setting that says which share of its inputs training drops
    sees_bias: ClassVar[bool] = False      # what `start` gets as W0 has the bias as a further column, where the layer has one
    light: ClassVar[bool] = False          # `apply` costs far less than the layer itself: then nothing dense is ever made to run it
    only_bias: ClassVar[bool] = False      # ΔW is always zero, `bias_delta` is all there is
    thrifty: ClassVar[bool] = False        # `apply` costs less than the products of `factors`; without rounding one weight may cost less still
    adds_to_loss: ClassVar[bool] = False   # `extra_loss` belongs to the loss that the model's own forward gives out, too, as in PEFT
    layers: ClassVar[Mapping[str, list[str]]] = {}             # by family (`config.model_type`): what learns by default, where not LoRA's layers
    why_unmerged: ClassVar[str] = ""       # why no weight can say what it does, in a sentence: then it never merges
    hears: ClassVar[tuple[str, ...]] = ()  # arguments of the model's call that are meant for it: it finds them in `Run.extras`

    def settle(self, cfg: Any, model_type: str | None) -> None:
        """Fill in settings of ``cfg`` that were left open and that this method chooses by the model's family (``config.model_type``).

        Raises `ValueError` if one is needed and the family is not known.
        """
        if cfg.target_modules is None and model_type in self.layers:
            cfg.target_modules = sorted(self.layers[model_type])

    # --- what it holds ---

    def refuses(self, cfg: Any, site: Site) -> str:
        """Why this method cannot sit on this site, in a sentence; empty if it can."""
        return ""

    @abstractmethod
    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        """The tensors of an adapter at this site."""

    def shared(self, cfg: Any, sites: Sequence[Site]) -> dict[str, TensorSpec]:
        """Tensors that all sites of the adapter have in common; in the file they are ``base_model.<name>``."""
        return {}

    def borrowed(self, cfg: Any, site: Site) -> dict[str, Site]:
        """Tensors that this site has from an earlier one of its peers, by name → that peer; they come in ``p`` beside its own."""
        return {}

    def starts_from_base(self, cfg: Any) -> bool:
        """Whether `start` has something to do."""
        return self.needs_base if self.begins_at_base is None else self.begins_at_base

    def start(self, p: Tensors, cfg: Any, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        """Fill in place those tensors of ``fresh`` that begin at a value which depends on W0 ``(out, columns)``, float32 or better.

        Called without gradients after every `TensorSpec.init`; ``fresh`` names what did not come from a file.
        """

    def start_shared(self, p: Tensors, cfg: Any, sites: Sequence[Site], weight: Callable[[Site], Tensor], fresh: Set[str]) -> None:
        """As `start`, for the tensors of `shared` and before it; ``weight(site)`` gives a site's W0."""

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        """Take (pop) this site's tensors out of what a file holds for it, by their names in memory; what stays behind is reported."""
        return taken(found, self.tensors(cfg, site))

    def encode(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        """This site's tensors by their names in the file: the inverse of `decode`."""
        return {spec.file or name: p[name] for name, spec in self.tensors(cfg, site).items() if spec.saved}

    # --- what it does ---

    @abstractmethod
    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        """ΔW at strength 1, canonical ``(out, columns)``, differentiable, in the dtype of ``p``."""

    def bias_delta(self, p: Tensors, cfg: Any, site: Site, b0: Tensor | None = None, W0: Tensor | None = None) -> Tensor | None:
        """What is added to the layer's bias ``b0`` ``(out,)`` at strength 1, or None; W0 comes if ``needs_base`` is set."""
        return None

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors | None:
        """The low-rank form of ΔW where there is one: then the adapter fuses with its neighbours and runs in two thin products."""
        return None

    def parts(self, p: Tensors, cfg: Any, site: Site) -> tuple[Factors, Factors | Tensor] | None:
        """ΔW in two, where a part of it never learns: (what learns, the rest, which may be dense). Training takes the rest into the weight."""
        return None

    def whole(self, p: Tensors, cfg: Any, site: Site) -> Callable[[Tensor], Tensor] | None:
        """``x ↦ (W0 + ΔW)·x`` without W0, where the adapter's tensors make up all of the weight, to rounding: training runs that alone."""
        return None

    def entries(self, p: Tensors, cfg: Any, site: Site) -> tuple[Tensor, Tensor] | None:
        """Where ΔW is a few of its entries: (that tensor of ``p`` which holds them, their places in the flattened ΔW). Training runs those alone."""
        return None

    def gain(self, p: Tensors, cfg: Any, site: Site, W0: Tensor) -> tuple[Tensor, Factors] | None:
        """``ΔW = (g − 1) ∘ W0 + g ∘ scale · B · A`` with g ``(out,)``, where ΔW has that form: then it runs on the base's own output."""
        return None

    def apply(self, p: Tensors, cfg: Any, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor | None:
        """``ΔW·x`` without ever forming ΔW, or None if this site has no such way; ``x`` as the layer gets it (an embedding: token ids).

        Tensors of ``p`` keep their dtype; the result is in that of ``p`` or of ``x``. In training it may be noisy, with `delta` as its mean.
        """
        return None

    def applies(self, cfg: Any, site: Site) -> bool:
        """Whether there is such a way; without one, a lone learner runs as one product with ``W0 + ΔW``."""
        return type(self).apply is not Method.apply

    def dropout(self, cfg: Any) -> float:
        """Share of the adapter's inputs that training drops."""
        return getattr(cfg, self.dropped) if self.dropped else 0.0

    # --- what training asks for; see `engine.model.training` ---

    def extra_loss(self, cfg: Any, layers: Mapping[str, Tensors]) -> Tensor | None:
        """What training adds to the error on the examples, once a step: a scalar of an adapter's tensors (module path → its tensors there)."""
        return None

    def schedule(self, cfg: Any, layers: Mapping[str, Tensors]) -> "Schedule | None":
        """What follows the training from step to step and changes these live tensors, or which of them learn."""
        return None

    def kept_outputs(self, cfg: Any, site: Site) -> Tensor | None:
        """What one training step multiplies the outputs of ΔW by, ``(out,)``: rows, or all of it, dropped at random. None: nothing is."""
        return None


class Schedule(Protocol):
    """Called in every step, after the optimizer's and before the gradients are cleared; its state is plain named tensors."""

    def update_and_allocate(self, global_step: int) -> None:
        """Steps count from 1."""

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""


class Routed(Method):
    """What it does depends on more than the layer's input vector by vector, so that no weight can say it: it runs by `apply`, and never merges."""

    light = True

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors | None:
        return None

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        raise CannotMerge(f"{self.title} does not support merging.", self.why_unmerged, "Keep it beside the model.")


class Router(Routed):
    """Mixes other low-rank adapters of the same layer, its experts, anew for each input vector. They need not be in the stack."""

    @abstractmethod
    def route(self, p: Tensors, cfg: Any, site: Site, beside: Mapping[str, Factors]) -> tuple[dict[str, Factors], "Gate"]:
        """(the experts among the adapters ``beside`` it, as they are to run; how strong each is heard). Asked again when a tensor has changed."""

    def apply(self, p: Tensors, cfg: Any, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> None:
        return None


# the layer's input ``(…, columns)`` (an embedding: token ids) → strengths ``(…, experts)``, or None: none is heard in this pass
Gate = Callable[[Tensor, Run], Tensor | None]


class Whole(Method):
    """Another module in the place of the whole one: ``W ← W + strength · (W' − W)`` for each of its tensors. Begins as its copy.

    Its site names the module's tensors (`Site.leaves`). There is no matrix and so no `delta`; see `engine.hosts.replaced.Replaced`.
    """

    title = "Layers learned whole"
    help = "Whole layers are copied and learn completely: right for new output layers and norms, large files."
    config = TargetedConfig
    prefix = "modules_to_save"

    def refuses(self, cfg: Any, site: Site) -> str:
        return "" if site.leaves else "It has nothing that could learn."

    def in_file(self, leaf: str) -> str:
        """The name in the file of one of the module's tensors: its own, as if the module were the base's."""
        return leaf

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return {f"{self.prefix}.{leaf.name}": TensorSpec(leaf.shape, torch.nn.init.zeros_, leaf.learns, self.in_file(leaf.name), leaf.dtype)
                for leaf in site.leaves}

    def starts_from_base(self, cfg: Any) -> bool:
        return True

    def decode(self, found: Tensors, cfg: Any, site: Site) -> Tensors:
        for leaf in site.leaves:           # PEFT writes the biases of these modules more than once with ``bias="all"``
            if leaf.name.endswith("bias"):
                for again in {f"original_module.{leaf.name}", f"{self.prefix}.{leaf.name}"} - {self.in_file(leaf.name)}:
                    found.pop(again, None)
        return super().decode(found, cfg, site)

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        raise NotImplementedError(f"{site.path} is replaced as a whole: there is no ΔW.")


class Variant(Method):
    """A law round the law ``inner``; in all that it does not say itself it is the inner one. See ``_VARIANTS`` in the registry."""

    def __init__(self, inner: Method):
        self.inner, self.config, self.prefix, self.needs_base = inner, inner.config, inner.prefix, type(self).needs_base or inner.needs_base

    def settle(self, cfg: Any, model_type: str | None) -> None:
        self.inner.settle(cfg, model_type)

    def refuses(self, cfg: Any, site: Site) -> str:
        return self.inner.refuses(cfg, site)

    def tensors(self, cfg: Any, site: Site) -> dict[str, TensorSpec]:
        return self.inner.tensors(cfg, site)

    def starts_from_base(self, cfg: Any) -> bool:
        return self.inner.starts_from_base(cfg)

    def start(self, p: Tensors, cfg: Any, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        self.inner.start(p, cfg, site, W0, fresh)

    def factors(self, p: Tensors, cfg: Any, site: Site) -> Factors | None:
        return self.inner.factors(p, cfg, site)

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.factors(p, cfg, site)
        return self.inner.delta(p, cfg, site, W0) if f is None else f.scale * (f.B @ f.A)

    def bias_delta(self, p: Tensors, cfg: Any, site: Site, b0: Tensor | None = None, W0: Tensor | None = None) -> Tensor | None:
        return self.inner.bias_delta(p, cfg, site, b0, W0)

    def dropout(self, cfg: Any) -> float:
        return self.inner.dropout(cfg)


class MapMethod(Method):
    """A map round whatever lies below it in the stack: ``W ← W + strength · (T_out · W · T_in − W)``. Order matters.

    Override `turn_in` or `turn_out`, and say where they act: `acts_in`, `acts_out`.
    """

    def acts_in(self, cfg: Any, site: Site) -> bool:
        """Whether T_in is there."""
        return False

    def acts_out(self, cfg: Any, site: Site) -> bool:
        """Whether T_out is there."""
        return False

    def turns_bias(self, cfg: Any, site: Site) -> bool:
        """Whether T_out takes the layer's bias along."""
        return False

    def turn_in(self, p: Tensors, cfg: Any, site: Site, x: Tensor, transposed: bool = False) -> Tensor:
        """``x · T_inᵀ`` for row vectors ``(…, columns)``: what the layer is to see; ``transposed``: ``x · T_in``, for rows of a weight."""
        return x

    def turn_out(self, p: Tensors, cfg: Any, site: Site, y: Tensor) -> Tensor:
        """``y · T_outᵀ`` for row vectors ``(…, out)``: what becomes of the layer's output."""
        return y

    def in_training(self, p: Tensors, cfg: Any, site: Site) -> Tensors:
        """The live tensors ``p`` as one training step sees them: parts dropped, or (in place) brought back within bounds. As they are by default."""
        return p

    def turned(self, p: Tensors, cfg: Any, site: Site, W: Tensor) -> Tensor:
        """``T_out · W · T_in`` for a canonical matrix."""
        W = self.turn_in(p, cfg, site, W, transposed=True) if self.acts_in(cfg, site) else W
        return self.turn_out(p, cfg, site, W.T).T if self.acts_out(cfg, site) else W

    def delta(self, p: Tensors, cfg: Any, site: Site, W0: Tensor | None = None) -> Tensor:
        """What the map changes of ``W0`` when nothing lies between."""
        return self.turned(p, cfg, site, W0) - W0


def kaiming_uniform(tensor: Tensor) -> None:
    """The init of `torch.nn.Linear` (a = √5); consumes the global random stream exactly as PEFT does."""
    if 0 in tensor.shape:
        return
    std = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(math.prod(tensor.shape[1:]))
    bound = math.sqrt(3.0) * std           # as torch rounds it, without its checks, which cost more than the numbers
    (tensor.detach() if tensor.requires_grad else tensor).uniform_(-bound, bound)


# --- what is random but frozen: made again from a seed, the same as in PEFT ---

def seeded(shapes: Mapping[str, tuple[int, ...]], seed: int, draw: Callable[[Tensor, torch.Generator], object],
           saved: bool = True) -> dict[str, TensorSpec]:
    """Frozen tensors that ``draw`` fills one after the other, in the order of ``shapes``, from one private random stream."""
    def init(name: str) -> Init:
        def fill(tensor: Tensor) -> None:
            generator = torch.Generator().manual_seed(seed)
            for each, shape in shapes.items():
                if each == name:
                    draw(tensor, generator)
                    return
                draw(torch.empty(shape), generator)

        return fill

    return {name: TensorSpec(shape, init(name), trainable=False, saved=saved) for name, shape in shapes.items()}


@lru_cache(maxsize=16)                     # layers of one shape have the same places, and shuffling a whole matrix takes its time
def random_places(total: int, count: int, seed: int | None) -> Tensor:
    """``count`` of the numbers below ``total``, each once: int64, shuffled. Without a seed, PyTorch's own default one."""
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count].clone()


def with_entries(values: Tensor, places: Tensor, site: Site) -> Tensor:
    """A ΔW of nothing but these entries; one place may have several."""
    return values.new_zeros(site.out * site.columns).index_add_(0, places, values).view(site.out, site.columns)


def check_places(places: Tensor, below: int) -> Tensor:
    """``places`` as they are. Raises `BadAdapter` if one of them, out of a file, is none of the numbers below ``below``."""
    if places.numel() and (places.min() < 0 or places.max() >= below):
        raise BadAdapter("The adapter is damaged or made for another model.", "It names places that a layer does not have.", "Get it again.")
    return places
