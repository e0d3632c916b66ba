"""EVA: LoRA whose A begins at the main directions of each layer's inputs, with ranks spread to where most of the variance is.

Paischer et al. 2024 (arXiv 2410.07170). The base is not touched, and the file is an ordinary LoRA's. Functions by PEFT's names.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.adapted import Adapted
from engine.law import by_pattern
from engine.methods.lora import LoraConfig
from engine.methods.registry import law
from engine.model.targets import modules, plan, shortest_names

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel

WRAPPED = "base_model.model."              # before the path of a layer in a `PeftModel`
PATIENCE = 1000                            # rounds over the data after which directions that do not settle never will


def forward_fn_dict(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """How a batch is run by default."""
    return model(**inputs)


def prepare_model_inputs_fn_language_modeling(model_input: Any, peft_config: LoraConfig) -> Tensor:
    """Places ``(n, 2)`` of the tokens that count: not padding, and learned ones only if ``use_label_mask`` says so."""
    if not isinstance(model_input, Mapping):
        raise TypeError("When using `prepare_model_inputs_fn_language_modeling` inputs must be a dictionary")
    mask = model_input.get("attention_mask", torch.ones_like(model_input["input_ids"])).bool()
    if peft_config.eva_config.use_label_mask and "labels" in model_input:
        mask = mask & (model_input["labels"] != peft_config.eva_config.label_mask_value)
    return mask.nonzero()


def prepare_layer_inputs_fn_language_modeling(layer_input: Any, model_input: Tensor, layer_name: str) -> Tensor:
    """A layer's inputs ``(batch, seq, in)`` at those places: ``(n, in)``."""
    return _tensor(layer_input, layer_name)[model_input.T.unbind()]


def prepare_layer_inputs_fn_default(layer_input: Any, model_input: Any, layer_name: str) -> Tensor:
    """All of a layer's inputs, as rows."""
    x = _tensor(layer_input, layer_name)
    return x.reshape(-1, x.shape[-1])


def _tensor(layer_input: Any, layer_name: str) -> Tensor:
    x = layer_input[0] if isinstance(layer_input, (tuple, list)) else layer_input
    if not isinstance(x, Tensor):
        raise TypeError(f"unsupported input type {type(layer_input)} for prepare_layer_inputs_fn in layer {layer_name}, "
                        "please provide a custom prepare_layer_inputs_fn")
    return x


class Directions:
    """The main directions of rows that arrive in batches: incremental PCA (Ross et al. 2008), each update by a randomised SVD.

    Attributes:
        components: ``(n, features)``, orthonormal. values: their singular values. ratio: share of the variance that each explains.
        settled: which of them hardly turned in the last update, ``(n,)``.
    """

    def __init__(self, n: int, similar: float):
        self.n, self.similar = n, similar
        self.components: Tensor | None = None
        self.settled = torch.zeros(n, dtype=torch.bool)
        self._mean = self._variance = None
        self._seen = 0

    def add(self, X: Tensor) -> None:
        """Take in rows ``(m, features)``; ignored if they are fewer than the directions wanted."""
        m, X = len(X), X.float()
        if m < self.n:
            return
        seen, mean, variance = self._moments(X)
        rows = X - (mean if self.components is None else X.mean(0))
        rows = rows.float()
        if self.components is not None:
            shift = (self._seen / seen * m) ** 0.5 * (self._mean - X.mean(0))
            rows = torch.vstack([self.values[:, None] * self.components, rows, shift])
        with torch.random.fork_rng():
            torch.manual_seed(42)
            _, S, V = torch.svd_lowrank(rows, q=min(2 * self.n, *rows.shape), niter=4)
        Vh = V.T * V.gather(0, V.abs().argmax(0)[None]).sign().T       # signs do not jump from one update to the next
        before, self.components, self.values = self.components, Vh[: self.n], S[: self.n]
        self.ratio = (S ** 2 / (variance * seen).sum())[: self.n]
        self._seen, self._mean, self._variance = seen, mean, variance
        if before is not None:
            self.settled = (F.cosine_similarity(self.components, before) >= self.similar).cpu()

    def _moments(self, X: Tensor) -> tuple[int, Tensor, Tensor]:
        """(rows seen, their mean, their variance), old and new together, in float64."""
        m, X = len(X), X.double()
        variance, mean = X.var(0, correction=0), X.mean(0)
        if not self._seen:
            return m, mean, variance
        seen = self._seen + m
        between = self._seen * m / seen ** 2 * (self._mean - mean) ** 2
        return seen, (self._seen * self._mean + m * mean) / seen, (self._seen * self._variance + m * variance) / seen + between


@torch.no_grad()
def get_eva_state_dict(model: nn.Module, dataloader: Iterable, peft_config: LoraConfig | None = None, forward_fn: Callable = forward_fn_dict,
                       prepare_model_inputs_fn: Callable | None = prepare_model_inputs_fn_language_modeling,
                       prepare_layer_inputs_fn: Callable | Mapping[str, Callable] | None = prepare_layer_inputs_fn_language_modeling,
                       adapter_name: str = "default", gather_distributed_inputs: bool = True, show_progress_bar: bool = True) -> dict[str, Tensor]:
    """Module name → directions ``(rank, in)`` for A, ranks spread over the layers (PEFT function of the same name).

    Args:
        model: a `PeftModel`, whose adapter's linear layers are looked at with all adapters off, or a plain model with ``peft_config``.
        prepare_model_inputs_fn: (batch, config) → what ``prepare_layer_inputs_fn`` gets beside (layer's input, …, layer's name).
        gather_distributed_inputs: with `torch.distributed`, look at the inputs of all processes.

    Raises:
        ValueError: no data, no config, or directions that do not settle in a thousand rounds over the data.
    """
    wrapped = hasattr(model, "peft_config")
    if peft_config is None and not wrapped:
        raise ValueError("peft_config is required if model is not a PeftModel")
    if len(dataloader) == 0:
        raise ValueError("dataloader is empty")
    config = peft_config or model.peft_config[adapter_name]
    layers = ({WRAPPED + path: layer for path, layer in _layers(model, adapter_name).items() if layer.site.kind == "linear"}
              if wrapped else {t.path: t.layer for t in plan(model, law(config), config).targets if t.site.kind == "linear"})
    search = _Search(model, layers, config, forward_fn, prepare_model_inputs_fn, prepare_layer_inputs_fn, gather_distributed_inputs)
    training = model.training
    model.eval()
    try:
        with model.disable_adapter() if wrapped else nullcontext():
            return search.run(dataloader, show_progress_bar)
    finally:
        model.train(training)


class _Search:
    """One run over the data. Layers that see the same input share one `Directions`."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], config: LoraConfig, forward: Callable, prepare_batch: Callable | None,
                 prepare_layer: Callable | Mapping[str, Callable] | None, gather: bool):
        self.model, self.layers, self.config, self.forward, self.prepare_batch, self.gather = model, layers, config, forward, prepare_batch, gather
        each = prepare_layer if isinstance(prepare_layer, Mapping) else dict.fromkeys(layers, prepare_layer)
        if unknown := each.keys() - layers.keys():
            raise ValueError(f"prepare_layer_inputs_fn is a mapping but the following module names were not found in the model: {sorted(unknown)}")
        self.prepare = {name: each.get(name) or prepare_layer_inputs_fn_default for name in layers}
        ranks = {name: by_pattern(name, config.rank_pattern, config.r) for name in layers}
        self.budget, self.most = sum(ranks.values()), {name: round(rank * config.eva_config.rho) for name, rank in ranks.items()}

    def run(self, dataloader: Iterable, progress: bool) -> dict[str, Tensor]:
        from transformers.utils.logging import tqdm

        self._find_twins(next(iter(dataloader)))
        found = {name: Directions(self.most[name], self.config.eva_config.tau) for name in self.layers if self.twin[name] == name}
        ranks = dict(self.most)
        with tqdm(disable=not progress, leave=False) as bar:
            for round_, batch in enumerate(cycle(dataloader)):
                open_ = {name for name, d in found.items() if not d.settled[: ranks[name]].all()}
                bar.set_description(f"{sum(self.twin[n] not in open_ for n in self.layers)}/{len(self.layers)} layers have converged")
                if not open_:
                    break
                if round_ > PATIENCE * len(dataloader):
                    raise ValueError(f"The directions of {sorted(open_)[0]} do not settle: give larger batches (at least {max(self.most.values())} "
                                     "tokens that count), or lower `tau`.")
                self._look(batch, open_, lambda name, X: found[name].add(X))
                bar.update()
                if all(d.components is not None for d in found.values()):
                    ranks = self._spread(found)
        return {name: self._start(found[self.twin[name]], rank) for name, rank in ranks.items()}

    def _find_twins(self, batch: Any) -> None:
        """``twin``: layer → the first layer with the same input, itself perhaps; twins may get equally many directions."""
        first: dict[bytes, str] = {}
        twin: dict[str, str] = {}

        def note(name: str, X: Tensor) -> None:
            twin[name] = first.setdefault(hashlib.sha256(X.float().cpu().numpy().tobytes()).digest(), name)
            self.most[name] = min(self.most[name], X.shape[1])

        self._look(batch, self.layers, note)
        self.twin = {name: twin[name] for name in self.layers}
        for name in first.values():
            most = max(self.most[n] for n in self.layers if self.twin[n] == name)
            self.most.update({n: most for n in self.layers if self.twin[n] == name})

    def _look(self, batch: Any, names: Iterable[str], use: Callable[[str, Tensor], None]) -> None:
        """Run a batch; ``use`` gets what these layers see, prepared: ``(rows, in)`` each, one at a time."""
        batch = _to(batch, next((p.device for p in self.model.parameters() if not p.is_meta), torch.device("cpu")))
        about = self.prepare_batch(batch, self.config) if self.prepare_batch else copy.deepcopy(batch)

        def hook(name: str) -> Callable[[nn.Module, tuple], None]:
            return lambda module, args: use(name, self._gathered(self.prepare[name](args, about, name)))

        handles = [self.layers[name].register_forward_pre_hook(hook(name)) for name in names]
        try:
            self.forward(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _gathered(self, X: Tensor) -> Tensor:
        if not (self.gather and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return X
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, X.cpu())
        return torch.cat(parts).to(X.device)

    def _spread(self, found: Mapping[str, Directions]) -> dict[str, int]:
        """The whole budget of ranks goes to the directions that explain most, wherever they are."""
        pairs = [(share, name) for name in [*found, *(n for n in self.layers if n not in found)]
                 for share in found[self.twin[name]].ratio[: self.most[name]]]
        order = torch.stack([share for share, _ in pairs]).argsort(descending=True)[: self.budget]
        counts = Counter(pairs[i][1] for i in order)
        ranks = {name: counts[name] for name in dict.fromkeys(name for _, name in pairs)}
        for name in ranks:                 # the layer whose inputs were analysed has the most of its twins
            if ranks[name] > ranks[self.twin[name]]:
                ranks[name], ranks[self.twin[name]] = ranks[self.twin[name]], ranks[name]
        return ranks

    def _start(self, directions: Directions, rank: int) -> Tensor:
        u = directions.components[:rank]
        return u / directions.values[:rank].sqrt()[:, None] if self.config.eva_config.whiten else u


def _layers(model: "PeftModel", name: str) -> dict[str, Adapted]:
    """Module path → layer, of those on which the adapter has an A and a B (not of what it learns whole)."""
    return {path: layer for path, layer in model.adapted.items() if name in layer.tenants and any(k.startswith("lora_") for k in layer.tensors(name))}


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_to(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


@torch.no_grad()
def initialize_lora_eva_weights(model: "PeftModel", dataloader: Iterable | None = None, eva_state_dict: Mapping[str, Tensor] | None = None,
                                forward_fn: Callable = forward_fn_dict,
                                prepare_model_inputs_fn: Callable | None = prepare_model_inputs_fn_language_modeling,
                                prepare_layer_inputs_fn: Callable | Mapping[str, Callable] | None = prepare_layer_inputs_fn_language_modeling,
                                adapter_name: str = "default", gather_distributed_inputs: bool = True, show_progress_bar: bool = True) -> None:
    """Start an adapter anew from EVA's directions, with EVA's ranks; layers of rank 0 lose it (PEFT function of the same name).

    Layers that ``eva_state_dict`` (see `get_eva_state_dict`) does not name keep the usual start. Raises `ValueError` if there is neither that
    nor data, if the adapter's start is not “eva”, or if other adapters are active too.
    """
    if not hasattr(model, "peft_config"):
        raise ValueError("model must be a PeftModel")
    if len(model.active_adapters) > 1:
        raise ValueError("`initialize_lora_eva_weights` currently only works with a single active adapter")
    old = model.peft_config[adapter_name]
    if old.init_lora_weights != "eva":
        raise ValueError("`initialize_lora_eva_weights` can only be used with `init_lora_weights='eva'`")
    if eva_state_dict is None:
        if dataloader is None:
            raise ValueError("dataloader is required if eva_state_dict is not provided")
        eva_state_dict = get_eva_state_dict(model, dataloader, None, forward_fn, prepare_model_inputs_fn, prepare_layer_inputs_fn, adapter_name,
                                            gather_distributed_inputs, show_progress_bar)
    config, starts = _redistributed(old, model, adapter_name, {name.removeprefix(WRAPPED): w for name, w in eva_state_dict.items()})
    tuner, active = model.base_model, model.stack.entries
    trains = adapter_name in tuner.trained
    dtype = next(t.dtype for layer in _layers(model, adapter_name).values() for k, t in layer.tensors(adapter_name).items() if k.startswith("lora_"))
    tuner.delete_adapter(adapter_name)
    tuner.admit(adapter_name, config, trainable=trains, autocast=dtype == torch.float32,
                given={path: {"lora_A.weight": w.to(dtype, copy=True)} for path, w in starts.items()})
    model.stack.arrange(dict(active))


def _redistributed(old: LoraConfig, model: "PeftModel", name: str, found: Mapping[str, Tensor]) -> tuple[LoraConfig, dict[str, Tensor]]:
    """(the config with EVA's ranks and targets, module path → A) of an adapter."""
    config = copy.copy(old)
    config.rank_pattern, config.alpha_pattern = {}, {}
    kept: list[str] = []
    for path in _layers(model, name):
        rank, alpha = by_pattern(path, old.rank_pattern, old.r), by_pattern(path, old.alpha_pattern, old.lora_alpha)
        new = len(found[path]) if path in found else rank
        if new == 0:
            continue
        if old.eva_config.adjust_scaling_factors:
            alpha *= new / rank
        kept.append(path)
        config.rank_pattern |= {path: new} if new != old.r else {}
        config.alpha_pattern |= {path: alpha} if alpha != old.lora_alpha else {}
    others = (path for path, module in modules(model.get_base_model()) if path not in kept)
    config.target_modules, config.layers_to_transform, config.layers_pattern = shortest_names(kept, others), None, None
    config.exclude_modules = None
    return config, {path: found[path] for path in kept if path in found}
