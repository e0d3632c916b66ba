"""Starts of LoRA that look at data first: CorDA's covariances, LoRA-GA's gradients, LoftQ on a quantized base; and what makes any of them plain.

`preprocess_corda` and `preprocess_loraga` run the plain model before it is wrapped and leave what they found in ``config.calibration``, never
on the model; the config is then given to `get_peft_model`. EVA, which looks at a model that is wrapped already, is in `engine.model.eva`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.errors import BadModel
from engine.hosts.adapted import Adapted
from engine.law import by_pattern
from engine.methods.lora import LoraConfig
from engine.numerics.quantize import nearest
from engine.methods.registry import law
from engine.model.targets import Target, plan
from engine.store.atomic import replacing

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel

DAMPING, TOLERANCE = 0.01, 0.05            # CorDA: what is added to a covariance, and how well its inverse must fit


def _targets(model: nn.Module, config: LoraConfig) -> list[Target]:
    """The linear layers that an adapter with this config would sit on."""
    return [t for t in plan(model, law(config), config).targets if t.site.kind == "linear"]


def _plain(layer: nn.Module) -> nn.Module:
    return layer.base_layer if isinstance(layer, Adapted) else layer


# --- CorDA ---

@torch.no_grad()
def preprocess_corda(model: nn.Module, lora_config: LoraConfig, run_model: Callable[[], None] | None = None,
                     hooked_model: nn.Module | None = None) -> None:
    """Find out which directions of each layer's weight the data uses (PEFT function of the same name).

    Args:
        lora_config: of the adapter that is to come, with its ``corda_config``.
        run_model: runs ``hooked_model`` (by default ``model``) over some data; not needed if a file of the config exists already.

    The covariance of each layer's inputs ``(in, in)`` and the directions found are also written to the config's ``covariance_file`` and
    ``cache_file`` (safetensors), if these are set, and read from there if they exist. Raises `ValueError` for inputs that are not numbers.
    """
    settings, targets = lora_config.corda_config, _targets(model, lora_config)
    if settings is None:
        raise ValueError("`corda_config` must be set, and `init_lora_weights` be 'corda', before `preprocess_corda`.")
    if (known := _read_cache(settings.cache_file)) is None:
        covariances = _read_cache(settings.covariance_file)
        if covariances is None:
            covariances = _covariances(model if hooked_model is None else hooked_model, lora_config, run_model)
            _write_cache(settings.covariance_file, covariances)
        known = {}
        for target in targets:
            if settings.verbose:
                print(f"CorDA: {target.path}")
            rank = by_pattern(target.path, lora_config.rank_pattern, lora_config.r)
            directions = _used_directions(_weight(target), covariances[target.path].float(), rank, settings.corda_method)
            known.update({f"{target.path}.{name}": tensor for name, tensor in directions.items()})
        _write_cache(settings.cache_file, known)
    lora_config.calibration = {t.path: {name: known[f"{t.path}.{name}"].to(_weight(t).device) for name in "USV"} for t in targets}


def _weight(target: Target) -> Tensor:
    """Canonical, float32."""
    layer = target.layer
    return (layer.canonical() if isinstance(layer, Adapted) else target.host.canonical(target.host.weight(layer).detach())).float()


def _covariances(model: nn.Module, config: LoraConfig, run_model: Callable[[], None] | None) -> dict[str, Tensor]:
    """Module path → mean over all passes of XᵀX ``(in, in)``, where a pass's inputs X are scaled by their largest value."""
    if run_model is None:
        raise ValueError("run_model must be specified when covariance file and cache file aren't built.")
    sums: dict[str, tuple[int, Any]] = {}
    dtype = torch.float16 if config.corda_config.use_float16_for_covariance else torch.float32

    def look(path: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0].detach().flatten(0, -2).to(dtype)
            x = x / x.max().abs()
            product = x.T @ x
            if not torch.isfinite(product).all():
                raise ValueError(f"Invalid value found in the input of {path}, please check your input data.")
            count, total = sums.get(path, (0, 0))
            sums[path] = count + 1, total + product

        return hook

    model.eval()
    handles = [_plain(t.layer).register_forward_pre_hook(look(t.path)) for t in _targets(model, config)]
    try:
        run_model()
    finally:
        for handle in handles:
            handle.remove()
    return {path: total / count for path, (count, total) in sums.items()}


def _used_directions(W: Tensor, covariance: Tensor, rank: int, method: str) -> dict[str, Tensor]:
    """``rank`` triples U ``(out, rank)``, S, V ``(in, rank)`` of the SVD of W·C, with C taken out of V again: U·diag(S)·Vᵀ is a part of W."""
    identity, damping = torch.eye(len(covariance), device=covariance.device), DAMPING
    while True:                            # the more is added the better can it be inverted
        damped = covariance + identity * covariance.diagonal().mean() * damping
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < TOLERANCE:
            break
        damping *= 2
    U, S, Vh = torch.linalg.svd(W @ damped, full_matrices=False)
    V = (Vh @ inverse).T
    part = slice(rank) if method == "ipm" else slice(-rank, None)
    return {"U": U[:, part].contiguous(), "S": S[part].contiguous(), "V": V[:, part].contiguous()}


# --- LoRA-GA ---

def preprocess_loraga(model: nn.Module, lora_config: LoraConfig, train_step: Callable[[], None], cache_file: str | None = None) -> None:
    """Find out in which directions full training would move each layer's weight (PEFT function of the same name).

    Args:
        train_step: runs ``model`` forward and backward on some data, once or several times; the gradients' mean counts.
        cache_file: where gradients are kept (safetensors), and read from if it exists.

    Raises:
        ValueError: the config is for another start, there is no linear layer, a weight is quantized, or the cache lacks one.

    The gradients, as large as the layers' weights, stay in ``lora_config.calibration`` until the adapter has started.
    """
    if lora_config.lora_ga_config is None:
        raise ValueError("If you want to use LoRA-GA, please initialize the LoraConfig with init_lora_weights='lora_ga' and "
                         "lora_ga_config=LoraGAConfig(...).")
    targets = _targets(model, lora_config)
    if not targets:
        raise ValueError("No supported layers found for LoRA-GA initialization: it works on linear layers.")
    gradients = _read_cache(cache_file)
    if gradients is None and (packed := next((t.path for t in targets if t.site.quantized), None)):
        raise ValueError(f"LoRA-GA needs the gradient of each weight, and that of {packed} is quantized: run `preprocess_loraga` on the model in "
                         "16 bits with a `cache_file`, and give that here.")
    if gradients is None:
        gradients = _gradients(model, targets, train_step)
        _write_cache(cache_file, gradients)
    if missing := [t.path for t in targets if t.path not in gradients]:
        raise ValueError(f"No gradient reached {missing[0]}: `train_step` must run the model and call `backward`.")
    lora_config.calibration = {t.path: {"gradient": gradients[t.path].to(_weight(t).device)} for t in targets}


def _gradients(model: nn.Module, targets: list[Target], train_step: Callable[[], None]) -> dict[str, Tensor]:
    """Module path → mean gradient, canonical. Only the targets' weights record gradients meanwhile."""
    passes = dict.fromkeys((t.path for t in targets), 0)

    def count(path: str) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            passes[path] += 1

        return hook

    with _only_these_learn(model, [_plain(t.layer).weight for t in targets]):
        handles = [_plain(t.layer).weight.register_post_accumulate_grad_hook(count(t.path)) for t in targets]
        try:
            with torch.enable_grad():
                train_step()
        finally:
            for handle in handles:
                handle.remove()
        return {t.path: t.host.canonical(_plain(t.layer).weight.grad / passes[t.path]).contiguous() for t in targets if passes[t.path]}


@contextmanager
def _only_these_learn(model: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block the model is in training mode and only ``weights`` record gradients, from zero; afterwards all is as before."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    training = model.training
    model.train()
    for p, _, _ in before:
        p.requires_grad, p.grad = False, None
    for weight in weights:
        weight.requires_grad = True
    try:
        yield
    finally:
        for p, learned, grad in before:
            p.requires_grad, p.grad = learned, grad
        model.train(training)


# --- LoftQ ---

@torch.no_grad()
def replace_lora_weights_loftq(peft_model: "PeftModel", model_path: str | None = None, adapter_name: str = "default",
                               callback: Callable[[nn.Module, str], bool] | None = None) -> None:
    """Let an adapter on a quantized base begin at what the quantization lost (PEFT function of the same name).

    Any base will do whose layers' weights differ from those in the files of ``model_path``.

    Args:
        model_path: folder with the unquantized model's safetensors, or such a file; by default where the base came from.
        callback: called with (model, module path) after each layer; if it says False, that layer's factors are put back.

    Raises:
        ValueError: no layer of the adapter differs from the files. BadModel: they are not there, or lack a layer.
    """
    read, replaced = _weights_of(peft_model, model_path), False
    for path, layer in peft_model.adapted.items():
        if adapter_name not in layer.tenants or "lora_A.weight" not in layer.tensors(adapter_name) or layer.site.kind != "linear":
            continue
        now = layer.canonical().float()
        lost = layer.host.canonical(read(f"{path}.weight").to(now)) - now
        if not lost.any():
            continue
        replaced, tenant = True, layer.tenants[adapter_name]
        p = layer.tensors(adapter_name)
        before = {key: p[key].clone() for key in ("lora_A.weight", "lora_B.weight")}
        factors = tenant.method.factors(p, tenant.config, tenant.site)
        left, right = nearest(lost, factors.A.shape[0])
        p["lora_A.weight"].copy_(right)
        p["lora_B.weight"].copy_(left / factors.scale)
        peft_model.stack.changed()
        if callback is not None and not callback(peft_model, path):
            for key, tensor in before.items():
                p[key].copy_(tensor)
            peft_model.stack.changed()
    if not replaced:
        raise ValueError("No bnb LoRA module found on the model: no layer's weight differs from the unquantized one, so there is nothing to make up.")


def _weights_of(model: "PeftModel", place: str | None) -> Callable[[str], Tensor]:
    """A function that reads a weight of the unquantized model by its name."""
    base = model.get_base_model()
    root = Path(place or getattr(base, "name_or_path", "") or "")
    files = [root] if root.is_file() else sorted(root.glob("*.safetensors")) if root.is_dir() else []
    if not files:
        raise BadModel(f"There are no safetensors of the unquantized model at “{root}”.", do="Say where they are with `model_path`.")
    homes = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            homes.update(dict.fromkeys(opened.keys(), file))

    def read(name: str) -> Tensor:
        short = name.removeprefix(f"{getattr(base, 'base_model_prefix', '')}.")
        found = name if name in homes else short
        if found not in homes:
            raise BadModel(f"The files at “{root}” hold no {name}.", do="Choose the model that the base was quantized from.")
        with safe_open(homes[found], "pt") as opened:
            return opened.get_tensor(found)

    return read


# --- plain again ---

def as_plain_lora(model: "PeftModel", folder: Path | str, adapter_name: str = "default") -> None:
    """Write an adapter into ``folder`` as an ordinary LoRA that any program can load onto the base: nothing of its start or variant
    has to be repeated.

    An adapter that starts from the base gets twice its rank (PEFT: ``save_pretrained(path_initial_model_for_weight_conversion=…)``).
    Raises `ValueError` if it has no low-rank form: `engine.to_lora` finds the nearest one.
    """
    from engine.mix.to_lora import to_lora

    to_lora(model, adapter_name).save(folder)


# --- caches ---

def _read_cache(file: str | None) -> dict[str, Tensor] | None:
    return load_file(file) if file is not None and Path(file).exists() and Path(file).stat().st_size else None


def _write_cache(file: str | None, tensors: dict[str, Tensor]) -> None:
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(file)) as temporary:
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
