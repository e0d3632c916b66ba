"""How a layer runs its stack: decided once for a state of the stack, then called for every input.

Without maps, a program is the base's own forward and a list of *paths*, each of which adds one adapter, or one fused group of frozen
low-rank neighbours, to the output. When nothing learns and an adapter has no cheap form, the whole stack runs as one composed weight.
When a map learns, the steps are nested: it sees all that lies below it as a function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hosts.basis import versions
from engine.hosts.fused import Group, fused, in_one
from engine.hosts.gated import gated
from engine.hosts.learning import is_watched, learning_entries, learning_in_place, learning_low_rank
from engine.hosts.stack import LiveStack
from engine.law import Factors, MapMethod, Method, Routed, Router, Run, Tensors
from engine.hosts.beside import BIAS, own_bias

if TYPE_CHECKING:
    from engine.hosts.adapted import Adapted

Program = Callable[[Tensor, tuple, dict], Tensor]             # (x, further arguments of the layer) → y
Path = Callable[[Tensor, Tensor, Tensor | None], Tensor]      # (x, y, W0·x) → y with one adapter, or one fused group, added
Inner = Callable[[Tensor], Tensor]                            # x → y of all that lies below in the stack


class Voice:
    """An adapter that is heard in a layer; what is dear to find out about it is found out once."""

    def __init__(self, layer: "Adapted", name: str, learning: bool):
        self.layer, self.name, self.learning, self.tenant = layer, name, learning, layer.tenants[name]
        self.method, self.p = self.tenant.method, layer.all_tensors(name)

    @cached_property
    def factors(self) -> Factors | None:
        return self.method.factors(self.p, self.tenant.config, self.tenant.site)

    @cached_property
    def gain(self) -> tuple[Tensor, Factors] | None:
        """The gain as it is now, in float32 or better, without gradients; see `Method.gain`."""
        if not self.method.needs_base or type(self.method).gain is Method.gain:
            return None
        p = {k: t.detach().to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t for k, t in self.p.items()}
        return self.method.gain(p, self.tenant.config, self.tenant.site, self.layer.canonical())

    @property
    def turns(self) -> bool:
        return isinstance(self.method, MapMethod)

    @property
    def routed(self) -> bool:
        return isinstance(self.method, Routed)

    @property
    def fuses(self) -> bool:
        """Whether it is frozen and has a low-rank form that is the quickest way to run it."""
        if self.learning or self.turns or any(t.requires_grad for t in self.p.values()):
            return False
        if self.factors is None:
            return self.layer._kept is None and self.gain is not None
        return not self.method.thrifty or self.size <= max(self.weight / 16, 2 * self.own)

    @property
    def cheap(self) -> bool:
        """Whether it runs beside the base in far less than the layer's own time; or exactly, where 16 bits would round its numbers off."""
        if self.turns or self.factors is not None:
            return not self.turns and not self.thick
        return self.method.light or self.method.only_bias or self.method.thrifty and not self.precise or self.gain is not None

    @property
    def thick(self) -> bool:
        """Whether its low-rank form is larger than what it holds itself (LoHa: rank r²), and would cost more than an eighth of the layer's time."""
        return self.precise and self.size > max(self.weight / 8, self.own)

    @property
    def size(self) -> int:
        """How many numbers its low-rank form has."""
        return self.factors.A.numel() + self.factors.B.numel()

    @property
    def own(self) -> int:
        """How many it holds here, without what all its layers share."""
        return sum(t.numel() for t in self.layer.tensors(self.name).values())

    @property
    def weight(self) -> int:
        """How many the layer's weight has."""
        return self.tenant.site.out * self.tenant.site.columns

    @property
    def precise(self) -> bool:
        """Whether the layer's weight can take up an adapter's numbers without rounding them off."""
        return not self.layer.packed and self.layer.pristine_weight.dtype in (torch.float32, torch.float64)

    @property
    def dense(self) -> bool:
        """Whether all that it can do is to form ΔW, on a weight precise enough to take it up."""
        method, config = self.method, self.tenant.config
        plain = (not method.applies(config, self.tenant.site) and type(method).kept_outputs is Method.kept_outputs
                 and not method.dropout(config) and not method.only_bias)
        return self.precise and plain and not self.turns and self.factors is None and self.gain is None


def build(layer: "Adapted", stack: LiveStack, learning: bool) -> Program:
    """The program for the present state of ``stack``; ``learning``: gradients are recorded."""
    program, axes = _built(layer, stack, learning), len(layer.site.kernel)
    if layer.site.kind != "conv":
        return program
    return lambda x, args, kwargs: program(x, args, kwargs) if x.dim() > axes + 1 else program(x[None], args, kwargs)[0]    # a lone sample


def _built(layer: "Adapted", stack: LiveStack, learning: bool) -> Program:
    heard = [name for name in stack.heard() if name in layer.tenants]
    voices = [Voice(layer, name, learning) for name in heard]
    if not heard:
        return layer._bare
    if not learning and not layer.packed and not any(v.routed for v in voices) and not all(v.cheap for v in voices):
        return _composed(layer, stack, heard)
    if type(layer.runner) is nn.Linear and all(v.method.only_bias for v in voices):
        return _with_bias(layer, stack, voices)
    if any(v.turns for v in voices):
        return _nested(layer, stack, voices)
    if all(v.fuses and BIAS not in v.p for v in voices):
        return in_one(_group(layer, stack, voices))
    if len(voices) > 1 or not learning:
        return _beside(layer, stack, voices)
    plain = _learning_whole(layer, stack, heard) if voices[0].dense else _beside(layer, stack, voices)
    ways = (learning_low_rank, learning_in_place, *([learning_entries] if voices[0].dense else []))
    return next((program for way in ways if (program := way(layer, stack, heard[0], plain))), plain)


def _beside(layer: "Adapted", stack: LiveStack, voices: list[Voice]) -> Program:
    """The base's own forward, and each path in turn."""
    paths, needs_origin = _paths(layer, stack, voices)
    base = layer.runner
    if needs_origin:
        def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
            y = base(x, *args, **kwargs)
            origin = _origin(layer, x, y)
            for path in paths:
                y = path(x, y, origin)
            return y
    elif len(paths) == 1:
        path, = paths

        def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
            return path(x, base(x, *args, **kwargs), None)
    else:
        def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
            y = base(x, *args, **kwargs)
            for path in paths:
                y = path(x, y, None)
            return y
    return program


def together(layer: "Adapted", stack: LiveStack, names: list[str], learning: bool) -> Group | None:
    """The adapters of a batch whose samples each hear one of them, or none; None where each needs a program of its own."""
    voices = [Voice(layer, name, learning) for name in names]
    fuse = voices and layer.site.kind == "linear" and all(v.fuses and v.factors is not None and BIAS not in v.p for v in voices)
    return _group(layer, stack, voices) if fuse else None


def _group(layer: "Adapted", stack: LiveStack, voices: list[Voice]) -> Group:
    return Group(layer, stack, [(v.name, v.factors, None) if v.factors is not None else (v.name, v.gain[1], v.gain[0]) for v in voices])


def _paths(layer: "Adapted", stack: LiveStack, voices: list[Voice]) -> tuple[list[Path], bool]:
    """The paths in order, and whether any of them asks for the untouched weight's output."""
    group, others = [v for v in voices if v.fuses], [v for v in voices if not v.fuses]
    needs_origin = any(v.gain is not None for v in others)
    paths = [fused(_group(layer, stack, group), own_output=not needs_origin)] if group else []    # first: it may overwrite the base's output
    for v in group:
        paths += _own_bias(layer, stack, v.name)
    for v in others:
        applies = type(v.method).apply is not Method.apply
        if v.factors is not None and not (applies and (layer.training or v.method.thrifty)):
            paths += [_low_rank(layer, stack, v.name), *_own_bias(layer, stack, v.name)]
        elif isinstance(v.method, Router):
            paths += [gated(layer, stack, v.name), *_own_bias(layer, stack, v.name)]
        elif v.gain is not None:
            still = not v.learning and not any(t.requires_grad for t in v.p.values())
            paths += [_gained(layer, stack, v, still), *_own_bias(layer, stack, v.name)]
        else:
            paths.append(_applied(layer, stack, v.name, own_output=layer.site.kind == "linear" and not needs_origin))
    return paths, needs_origin


def _origin(layer: "Adapted", x: Tensor, y: Tensor) -> Tensor:
    """The untouched weight's own output, without bias."""
    if layer._kept is not None:            # a merged weight stands in its place: y is not it
        return layer.host.run(layer.base_layer, x, layer.canonical().to(y.dtype))
    return y if layer.pristine_bias is None else layer.host.bias(y, -layer.pristine_bias)


# --- one weight for the whole stack ---

def _composed(layer: "Adapted", stack: LiveStack, heard: list[str]) -> Program:
    """Run the layer once with everything baked in; composed anew only when a strength or a tensor has changed.

    A tensor that learns may have changed at every pass, but not from word to word of an answer.
    """
    host, base = layer.host, layer.base_layer
    watched = [t for name in heard for t in layer.all_tensors(name).values()]
    learns = any(t.requires_grad or t.is_inference() for t in (*watched, *base.parameters(recurse=False)))
    known: list = [None, None, None]       # [[tick, versions of the tensors …], canonical weight, bias]
    dtype, plain, columns, out = layer.pristine_weight.dtype, type(base) is nn.Linear, layer.site.columns, layer.site.out
    exact, device = plain and dtype in (torch.float32, torch.float64), layer.like.device.type
    mv, addmv, autocast = torch.mv, torch.addmv, torch.is_autocast_enabled

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        stamp = [stack.tick, *versions(watched)]
        if known[0] != stamp or learns and not (x.dim() == 3 and x.shape[1] == 1):
            weight, bias = layer.on_present(heard, stack)
            weight = host.canonical(host.native(weight, layer.pristine_weight).to(dtype).contiguous())
            known[:] = [stamp, weight, bias.to(dtype) if plain and bias is not None else bias]
        if exact and x.numel() == columns == x.shape[-1] and x.dtype is dtype and not autocast(device):
            row, (_, weight, bias) = x.reshape(columns), known                 # a single one, as in a chat
            y = mv(weight, row) if bias is None else addmv(bias, weight, row)
            return y.view(1, 1, out) if x.dim() == 3 else y.view(*x.shape[:-1], out)
        if plain:                          # the bias in the same operation
            return F.linear(x, known[1], known[2])
        y = host.run(base, x, known[1])
        return y if known[2] is None else host.bias(y, known[2].to(y.dtype))

    return program


def _learning_whole(layer: "Adapted", stack: LiveStack, heard: list[str]) -> Program:
    """The same with gradients, for a lone adapter: one product with W0 + ΔW is half the work of two."""
    host, base, dtype = layer.host, layer.base_layer, layer.pristine_weight.dtype
    plain = type(base) is nn.Linear

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        weight, bias = layer.on_present(heard, stack)
        if plain:
            return F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
        y = host.run(base, x, weight.to(dtype))
        return y if bias is None else host.bias(y, bias.to(y.dtype))

    return program


def _with_bias(layer: "Adapted", stack: LiveStack, voices: list[Voice]) -> Program:
    """A plain linear layer of which nothing but the bias is another one: in the same operation."""
    base, beside = layer.base_layer, _beside(layer, stack, voices)
    held = base._parameters
    laws = [(v.name, v.method.bias_delta, v.p, v.tenant.config, v.tenant.site) for v in voices]

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        weight, bias = held["weight"], held["bias"]
        if args or kwargs or x.dtype is not weight.dtype or is_watched(base):
            return beside(x, args, kwargs)
        b0 = bias if layer._kept is None else layer._kept[1]
        for name, more, p, config, site in laws:
            if (change := more(p, config, site, b0)) is not None:
                strength = stack.strength(name)
                change = change if strength == 1 else change * strength
                bias = change if bias is None else bias + change
        return F.linear(x, weight, None if bias is None else bias.to(weight.dtype))

    return program


# --- paths of single adapters ---

def _inputs(layer: "Adapted", x: Tensor, y: Tensor, share: float = 0.0) -> Tensor:
    """What an adapter sees: token ids as they are, anything else in the output's dtype, thinned out by dropout in training."""
    if layer.site.kind == "embedding":
        return x
    return (F.dropout(x, share) if share and layer.training else x).to(y.dtype)


def _thinned(layer: "Adapted", name: str) -> Callable[[Tensor], Tensor]:
    """What training does to an adapter's own outputs (PEFT's rank and module dropout); nothing, mostly."""
    tenant = layer.tenants[name]
    if type(tenant.method).kept_outputs is Method.kept_outputs or not layer.training:
        return lambda added: added

    def thin(added: Tensor) -> Tensor:
        mask = tenant.method.kept_outputs(tenant.config, tenant.site)
        return added if mask is None else layer.host.per_output(added, mask.to(added.device, added.dtype))

    return thin


def _low_rank(layer: "Adapted", stack: LiveStack, name: str) -> Path:
    """One low-rank adapter with gradients: computed in the activations' dtype, master tensors stay as they are."""
    tenant, host, base = layer.tenants[name], layer.host, layer.base_layer
    p, share, kept = layer.all_tensors(name), tenant.method.dropout(tenant.config), _thinned(layer, name)

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        f = tenant.method.factors(p, tenant.config, tenant.site)
        h = host.project(base, _inputs(layer, x, y, share), f.A.to(y.dtype))
        factor = stack.strength(name) * f.scale
        y = y + kept(host.expand(base, h if factor == 1 else h * factor, f.B.to(y.dtype)))
        return y if f.bias is None else host.bias(y, (f.bias * factor).to(y.dtype))

    return path


def _gained(layer: "Adapted", stack: LiveStack, voice: Voice, still: bool) -> Path:
    """A delta that rescales the base's own output rows; when nothing learns, the gains are computed once."""
    name, tenant, host, base = voice.name, voice.tenant, layer.host, layer.base_layer
    p, share = voice.p, tenant.method.dropout(tenant.config)

    def gain() -> tuple[Tensor, Factors]:
        return tenant.method.gain(p, tenant.config, tenant.site, layer.canonical())

    kept = voice.gain if still else None

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        g, f = kept or gain()
        origin = host.run(base, x, layer.canonical().to(y.dtype)) if origin is None else origin
        h = host.project(base, _inputs(layer, x, y, share), f.A.to(y.dtype))
        learned = host.expand(base, h * (stack.strength(name) * f.scale), f.B.to(y.dtype))
        return y + host.per_output(origin, (stack.strength(name) * (g - 1)).to(y.dtype)) + host.per_output(learned, g.to(y.dtype))

    return path


def _own_bias(layer: "Adapted", stack: LiveStack, name: str) -> list[Path]:
    """What a bias of the adapter's own adds, if it has one; where the method runs by its `bias_delta`, that says so already."""
    p, host = layer.all_tensors(name), layer.host
    if BIAS not in p:
        return []

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        return host.bias(y, (stack.strength(name) * own_bias(p, layer.pristine_bias)).to(y.dtype))

    return [path]


def _applied(layer: "Adapted", stack: LiveStack, name: str, own_output: bool) -> Path:
    """Any other delta: by the method's own way of applying it, or the layer's forward with ΔW in place of its weight.

    ``own_output``: as of `fused`.
    """
    tenant, host, base = layer.tenants[name], layer.host, layer.base_layer
    method, config, site = tenant.method, tenant.config, tenant.site
    p, share, kept = layer.all_tensors(name), method.dropout(config), _thinned(layer, name)
    routed, unheard = isinstance(method, Routed), Run(layer.training)
    biased = type(method).bias_delta is not Method.bias_delta

    def path(x: Tensor, y: Tensor, origin: Tensor | None) -> Tensor:
        strength, W0 = stack.strength(name), layer.canonical() if method.needs_base else None
        if not method.only_bias:
            seen = _inputs(layer, x, y, share)
            run = Run(layer.training, stack.arguments(layer.training or torch.is_grad_enabled())) if routed else unheard
            added = method.apply(p, config, site, seen, W0, run)
            if added is None and (f := method.factors(p, config, site)) is not None:
                added = host.expand(base, host.project(base, seen, f.A.to(y.dtype)) * f.scale, f.B.to(y.dtype))
            elif added is None:
                added = host.run(base, seen, method.delta(p, config, site, W0).to(y.dtype))
            added = kept(added.to(y.dtype))
            ours = own_output and not torch.is_grad_enabled() and not base._forward_hooks
            y = y.add_(added, alpha=strength) if ours else torch.add(y, added, alpha=strength)
        bias = method.bias_delta(p, config, site, layer.pristine_bias, W0) if biased else None
        return y if bias is None else host.bias(y, (bias if strength == 1 else bias * strength).to(y.dtype))

    return path


# --- maps that learn ---

def _nested(layer: "Adapted", stack: LiveStack, voices: list[Voice]) -> Program:
    """Steps round one another, in the stack's order."""
    base = layer.runner

    def program(x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return base(x, *args, **kwargs)

        for step in steps:
            inner = step(inner)
        return inner(x)

    def delta(path: Path) -> Callable[[Inner], Inner]:
        return lambda inner: lambda x: path(x, inner(x), None)

    steps: list[Callable[[Inner], Inner]] = []
    for at, voice in enumerate(voices):
        if voice.turns:
            below = [v.name for v in voices[:at]]
            steps += [_mapped(layer, stack, voice.name, below), *map(delta, _own_bias(layer, stack, voice.name))]
        else:
            steps += [delta(path) for path in _paths(layer, stack, [Voice(layer, voice.name, learning=True)])[0]]
    return program


def _mapped(layer: "Adapted", stack: LiveStack, name: str, below: list[str]) -> Callable[[Inner], Inner]:
    """A map round the function ``inner``: ``inner + strength · (T_out ∘ inner ∘ T_in − inner)``."""
    tenant, host, base = layer.tenants[name], layer.host, layer.base_layer
    method, config, site = tenant.method, tenant.config, tenant.site
    acts_in, acts_out, turns_bias = method.acts_in(config, site), method.acts_out(config, site), method.turns_bias(config, site)

    def matrices() -> tuple[Tensor, Tensor | None]:
        """Weight and bias of what lies below. What depends on the input has neither; it sits on linear layers, where only the bias is asked for."""
        return layer.on_present([name for name in below if not isinstance(layer.tenants[name].method, Routed)], stack)

    def out(y: Tensor, p: Tensors) -> Tensor:
        b = None if turns_bias else matrices()[1] if below else host.bias_of(layer.bare)       # alone it asks nobody for the weight
        b = None if b is None else b.to(y.dtype)
        bare = y if b is None else host.bias(y, -b)
        turned = host.on_outputs(bare, lambda rows: method.turn_out(p, config, site, rows))
        return turned if b is None else host.bias(turned, b)

    def dense(x: Tensor, y: Tensor, p: Tensors) -> Tensor:
        """Where the input's channels are not the weight's columns (convolutions, embeddings) it is the weight that is turned."""
        W, b = matrices()
        change = host.run(base, x, (layer.turned(tenant, p, W) - W).to(y.dtype))
        if b is not None and acts_out and turns_bias:
            change = host.bias(change, (method.turn_out(p, config, site, b) - b).to(y.dtype))
        return change

    def step(inner: Inner) -> Inner:
        def mapped(x: Tensor) -> Tensor:
            strength, p = stack.strength(name), layer.all_tensors(name)
            p = method.in_training(p, config, site) if layer.training else p
            if acts_in and site.kind != "linear":
                y = inner(x)
                return y + strength * dense(x, y, p)
            seen = method.turn_in(p, config, site, x.to(wide)).to(x.dtype) if acts_in else x
            if not acts_out:
                return inner(_towards(x, seen, strength))
            turned = inner(seen)
            y = turned if not acts_in else inner(x) if strength != 1 else None
            return _towards(y, out(turned.to(wide), p).to(turned.dtype), strength)

        wide = torch.promote_types(layer.like.dtype, torch.float32)
        return mapped

    return step


def _towards(start: Tensor | None, end: Tensor, strength: float) -> Tensor:
    """``start + strength · (end − start)``; at strength 1, at which adapters learn, ``end`` itself, and then there need be no start."""
    return end if strength == 1 else torch.lerp(start, end, strength)
