"""The laws of the house, for every method × layer kind × dtype × stack. A new method is one row in `tests/support/methods.py`."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import engine
from engine import LoraConfig, PeftModel, get_peft_model
from engine.hosts.attention import projections
from engine.hosts.host import host_of
from engine.hosts.parameter import cannot_be_read
from engine.law import MapMethod
from engine.methods.registry import law
from tests.support.dense import DenseConfig
from tests.support.methods import METHODS, Row

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (5, 12)),
    "linear-3d-input": (lambda: nn.Linear(8, 12), (2, 5, 8)),
    "linear-no-bias": (lambda: nn.Linear(12, 8, bias=False), (5, 12)),
    "conv1D-transposed": (lambda: Conv1D(8, 12), (2, 5, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, padding_mode="reflect"), (2, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding="valid"), (2, 4, 7, 6)),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, padding=1, padding_mode="circular"), (1, 2, 4, 4, 4)),
    "embedding": (lambda: nn.Embedding(10, 8), None),
    "attention": (lambda: nn.MultiheadAttention(12, 2, batch_first=True), (2, 5, 12)),       # two weights, which are read and never called
    "attention-by-step": (lambda: nn.MultiheadAttention(12, 3, add_zero_attn=True), (5, 2, 12)),
    "attention-no-bias": (lambda: nn.MultiheadAttention(12, 2, bias=False, batch_first=True), (2, 5, 12)),
    "attention-one-more": (lambda: nn.MultiheadAttention(12, 4, add_bias_kv=True), (5, 2, 12)),
}
ATTENTION = [layer for layer in LAYERS if layer.startswith("attention")]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2}


class One(nn.Module):
    """A model of one layer, after which comes nothing."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.first, self.attends = layer, isinstance(layer, nn.MultiheadAttention)

    def forward(self, x):
        return self.first(x, x, x)[0] if self.attends else self.first(x)


def rig(method: str, layer: str, dtype: torch.dtype, adapters: int = 2, seed: int = 0):
    """(peft model with adapters a0, a1 … of random, non-zero effect; input; untouched copy of the base)."""
    torch.manual_seed(seed)
    make, shape = LAYERS[layer]
    model = One(make()).to(dtype)
    before = copy.deepcopy(model).eval()   # attention has a way of its own there
    x = torch.randint(0, 10, (3, 4)) if shape is None else torch.randn(shape, dtype=dtype)
    peft = None
    for i in range(adapters):
        config = make_config(method)
        if peft is None:
            peft = get_peft_model(model, config, f"a{i}", autocast_adapter_dtype=dtype != torch.float64)
        else:
            peft.add_adapter(f"a{i}", config, autocast_adapter_dtype=dtype != torch.float64)
    with torch.no_grad():
        for name in peft.peft_config:      # also what starts at zero has an effect now
            for tensor in trained_tensors(peft, name):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    peft.stack.changed()
    return peft.eval(), x, before


def make_config(method: str):
    row = METHODS[method]
    return getattr(engine, row.config)(**{"target_modules": ["first", "second"], **row.settings, **row.heard}) if row.config else DenseConfig(
        target_modules=["first"], **row.settings)


def trained_tensors(peft, name: str) -> list[torch.Tensor]:
    """What an adapter learns, whether it trains just now or not; what layers share once."""
    found = {}
    for layer in peft.adapted.values():
        tenant = layer.tenants[name]
        sites = [each.tenants[name].site for each in peft.adapted.values()]
        specs = {**tenant.method.shared(tenant.config, sites), **tenant.method.tensors(tenant.config, tenant.site)}
        found |= {id(t): t for key, t in layer.all_tensors(name).items() if specs[key].trainable and t.is_floating_point()}
    return list(found.values())


def carries(method: str, layer: str) -> bool:
    """By the method's own word; what it refuses is not a row."""
    config, module = make_config(method), LAYERS[layer][0]()
    sites = projections("first", module) if layer in ATTENTION else [host_of(module).site("first", module)]
    return not any(law(config).refuses(config, site) for site in sites) and not (layer in ATTENTION and cannot_be_read(law(config)))


def is_map(method: str) -> bool:
    return isinstance(law(make_config(method)), MapMethod)


METHODS = {**METHODS, "outsider": Row("", {"start": 0.1})}
READ = [m for m in METHODS if "-" not in m and carries(m, "attention")]        # there all forms of a method are read by the same few lines
ROWS = [(m, layer) for m in METHODS for layer in LAYERS if layer not in ATTENTION and carries(m, layer)] + [
    (m, layer) for i, m in enumerate(READ) for layer in ATTENTION                # attention's own forms: all with LoRA, with the others in turn
    if carries(m, layer) and (m == "lora" or layer in (ATTENTION[0], ATTENTION[1 + i % (len(ATTENTION) - 1)]))]
rows = pytest.mark.parametrize(("method", "layer"), ROWS, ids=["·".join(r) for r in ROWS])
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(a.double(), b.double(), atol=TOLERANCE[dtype] * max(1.0, b.abs().max().item()), rtol=0)


@rows
@dtypes
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_running_equals_merging(method, layer, dtype, grad):
    peft, x, _ = rig(method, layer, dtype)
    peft.set_adapter({"a1": 0.7, "a0": -1.3})
    with torch.set_grad_enabled(grad):
        running = peft(x)
        peft.merge_adapter()
        close(peft(x), running, dtype)
    close(peft.merge_and_unload()(x), running, dtype)


@rows
def test_a_layer_that_is_run_again_for_the_backward_pass_learns_the_same(method, layer):
    peft, x, _ = rig(method, layer, torch.float64, adapters=1)
    learned = []
    for run in (lambda x: checkpoint(peft, x, use_reentrant=False), peft):         # the first of them is the layer's first at all
        torch.manual_seed(0)
        peft.train().zero_grad()
        run(x).square().sum().backward()
        learned.append([tensor.grad for tensor in peft.parameters() if tensor.requires_grad])
    assert learned[0]
    for again, once in zip(*learned, strict=True):
        assert (again is None) == (once is None)
        if once is not None:
            close(again, once, torch.float64)


@rows
def test_running_fused_equals_running_with_gradients(method, layer):
    peft, x, _ = rig(method, layer, torch.float64, adapters=3)
    peft.set_adapter({"a0": 0.5, "a1": 1.0, "a2": 2.0})
    expected = peft(x)
    peft.set_requires_grad(["a0", "a1", "a2"], False)
    with torch.no_grad():
        close(peft(x), expected, torch.float64)


@rows
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(w0=st.floats(-2, 2), w1=st.floats(-2, 2))
def test_sliders_mean_what_they_say(method, layer, w0, w1):
    peft, x, _ = rig(method, layer, torch.float64)

    def heard():                           # of attention its weights, which add as ever; what it makes of them is not linear in them
        return peft(x) if layer not in ATTENTION else torch.cat([part.compose().flatten() for part in peft.adapted.values()])

    with peft.disable_adapter():
        base = peft(x) if layer not in ATTENTION else torch.cat([part.pristine_weight.flatten() for part in peft.adapted.values()])
    alone = []
    for name in ("a0", "a1"):
        peft.set_adapter(name)
        alone.append(heard() - base)
    peft.set_adapter(["a1", "a0"])
    peft.stack.set_strength("a0", w0)
    if is_map(method):                     # maps go round what lies below: alone they interpolate, in a stack the order counts
        peft.stack.set_strength("a1", 0.0)
        close(heard(), base + w0 * alone[0], torch.float64)
    else:
        peft.stack.set_strength("a1", w1)
        close(heard(), base + w0 * alone[0] + w1 * alone[1], torch.float64)


@rows
@dtypes
def test_strength_zero_is_exactly_the_base_and_one_exactly_the_adapter(method, layer, dtype):
    peft, x, before = rig(method, layer, dtype)
    peft.set_adapter("a0")
    before.requires_grad_(layer not in ATTENTION)                # torch multiplies there in another order where a weight learns
    with torch.set_grad_enabled(layer not in ATTENTION):
        one = peft(x)
        peft.stack.set_strength("a0", 0.0)
        assert torch.equal(peft(x), before(x))
        peft.stack.set_strength("a0", 1.0)
        assert torch.equal(peft(x), one)
        assert not torch.equal(one, before(x))


@rows
@dtypes
def test_the_base_is_never_changed(method, layer, dtype):
    peft, x, before = rig(method, layer, dtype)
    weights = [layer.pristine_weight for layer in peft.adapted.values()]
    peft.set_adapter(["a0", "a1"])
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=0.1)
    peft(x).float().pow(2).sum().backward()
    optimizer.step()
    for _ in range(10):
        peft.merge_adapter(["a0"])
        peft.merge_adapter(["a1", "a0"])
        peft.unmerge_adapter()
    assert all(layer.pristine_weight is weight for layer, weight in zip(peft.adapted.values(), weights, strict=True))
    before.requires_grad_(layer not in ATTENTION)
    with peft.disable_adapter(), torch.set_grad_enabled(layer not in ATTENTION):
        assert torch.equal(peft(x), before(x))
    plain = peft.unload()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), before.state_dict().values(), strict=True))
    assert list(plain.state_dict()) == list(before.state_dict())
    assert all(p.requires_grad for p in plain.parameters())


@rows
def test_merging_some_leaves_the_others_running(method, layer):
    peft, x, _ = rig(method, layer, torch.float64)
    peft.set_adapter({"a0": 0.5, "a1": 1.5})
    both = peft(x)
    peft.merge_adapter(["a0"])
    close(peft(x), both, torch.float64)
    peft.stack.set_strength("a1", 0.0)     # the one that still runs can be turned down
    running = peft(x)
    peft.unmerge_adapter()
    peft.set_adapter({"a0": 0.5})
    close(peft(x), running, torch.float64)


@rows
def test_active_trainable_merged_and_enabled_are_independent(method, layer, tmp_path):
    peft, x, _ = rig(method, layer, torch.float32)

    def trains():
        return {name for name in peft.peft_config for part in peft.adapted.values() if any(t.requires_grad for t in part.all_tensors(name).values())}

    assert trains() == {"a0"}
    peft.merge_adapter()
    peft.unmerge_adapter()
    with peft.disable_adapter():
        assert trains() == {"a0"}
    assert trains() == {"a0"}
    peft.save_pretrained(tmp_path)
    peft.load_adapter(tmp_path / "a0", "loaded")
    peft.set_adapter("loaded")             # chosen for listening …
    assert trains() == set()               # … is not chosen for training
    peft.set_requires_grad("loaded", True)
    assert trains() == {"loaded"}
    assert not any(layer.pristine_weight.requires_grad for layer in peft.adapted.values())


@rows
@dtypes
def test_a_saved_adapter_comes_back_bit_for_bit(method, layer, dtype, tmp_path):
    peft, x, before = rig(method, layer, dtype)
    peft.set_adapter("a1")
    expected = peft(x)
    peft.save_pretrained(tmp_path)
    tensors = {(path, k): t.clone() for path, layer in peft.adapted.items() for k, t in layer.all_tensors("a1").items()}
    again = PeftModel.from_pretrained(before, tmp_path / "a1")
    if METHODS[method].exact_file:
        assert all(torch.equal(t, tensors[path, k]) for path, layer in again.adapted.items() for k, t in layer.all_tensors("default").items())
    close(again(x), expected, dtype if METHODS[method].exact_file or layer in ATTENTION else torch.float32)
    assert again.load_report.complete
    said = {"inference_mode": 0, "auto_mapping": 0}            # of the file: of which class its base was
    assert again.peft_config["default"].to_dict() | said == peft.peft_config["a1"].to_dict() | said


def test_the_cost_of_a_switch_walks_no_module(monkeypatch):
    peft, x, _ = rig("lora", "linear", torch.float32)
    monkeypatch.setattr(nn.Module, "named_modules", lambda *a, **k: pytest.fail("walked the modules"))
    monkeypatch.setattr(nn.Module, "modules", lambda *a, **k: pytest.fail("walked the modules"))
    peft.stack.arrange({"a0": 0.5, "a1": 2.0})
    peft.stack.set_strength("a1", 1.0)
    peft(x)


def test_injection_looks_at_each_module_once_however_many_adapters_there_are(monkeypatch):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])
    looks = []
    from engine.model import targets

    chooser = targets._chooser

    def watched(*args):
        choose = chooser(*args)
        return lambda path, module: looks.append(path) or choose(path, module)

    monkeypatch.setattr(targets, "_chooser", watched)
    config = lambda: LoraConfig(r=1, target_modules="all-linear")  # noqa: E731
    peft = get_peft_model(model, config(), "a0")
    counts = []
    for i in range(1, 6):
        looks.clear()
        peft.add_adapter(f"a{i}", config())
        counts.append(len(looks))
    assert counts == [50] * 5


# --- stacks of kinds ---

MIXES = [("lora", "dora"), ("lora", "oft"), ("oft", "lora"), ("dora", "oft"), ("hira", "ia3"), ("ia3", "loha"), ("boft", "hra"), ("oft", "ia3"),
         ("road", "vera"), ("c3a", "hra"), ("lora-bias", "ia3"), ("lora-bias", "road"),
         ("beft", "road"), ("frod", "boft"), ("miss-bat", "oft"), ("glora", "hra")]
mixes = pytest.mark.parametrize(("first", "second"), [m for m in MIXES if set(m) <= METHODS.keys()], ids=lambda m: m)


def mixed_rig(first: str, second: str, dtype: torch.dtype = torch.float64):
    torch.manual_seed(2)
    model = One(nn.Linear(12, 12)).to(dtype)
    before = copy.deepcopy(model)
    peft = get_peft_model(model, make_config(first), "a", autocast_adapter_dtype=dtype != torch.float64)
    peft.add_adapter("b", make_config(second), autocast_adapter_dtype=dtype != torch.float64)
    with torch.no_grad():
        for name in ("a", "b"):
            for tensor in trained_tensors(peft, name):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    peft.stack.changed()
    return peft.eval(), torch.randn(5, 12, dtype=dtype), before


@mixes
@pytest.mark.parametrize("order", [{"a": 0.7, "b": 1.0}, {"b": 1.0, "a": -0.5}, {"b": 0.3, "a": 1.0}], ids=["ab", "ba", "ba-weak"])
def test_a_stack_of_kinds_runs_in_its_own_order_and_merges_to_what_it_runs(first, second, order):
    peft, x, before = mixed_rig(first, second)
    peft.set_adapter(order)
    learning = peft(x)
    with torch.no_grad():
        close(peft(x), learning, torch.float64)
    layer, W, b = peft.adapted["first"], before.first.weight.detach(), before.first.bias.detach()
    W0, b0 = W, b
    for name, strength in order.items():   # the definition, by dense arithmetic
        tenant, p = layer.tenants[name], {k: t.detach() for k, t in layer.all_tensors(name).items()}
        arguments = (p, tenant.config, tenant.site)
        if isinstance(tenant.method, MapMethod):
            W = W + strength * (tenant.method.turned(*arguments, W) - W)
            if tenant.method.acts_out(*arguments[1:]) and tenant.method.turns_bias(*arguments[1:]):
                b = b + strength * (tenant.method.turn_out(*arguments, b) - b)
        else:
            W = W + strength * tenant.method.delta(*arguments, W0)
            more = tenant.method.bias_delta(*arguments, b0, W0)
            b = b if more is None else b + strength * more
    close(learning, torch.nn.functional.linear(x, W, b), torch.float64)
    peft.merge_adapter()
    close(peft(x), learning, torch.float64)
    peft.unmerge_adapter()
    assert torch.equal(peft.adapted["first"].base_layer.weight, before.first.weight)


@mixes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_stack_of_kinds_merges_to_what_it_runs_in_every_number_format(first, second, dtype):
    peft, x, before = mixed_rig(first, second, dtype)
    peft.set_adapter({"b": 0.8, "a": 1.0})
    running = peft(x)
    peft.merge_adapter()
    close(peft(x), running, dtype)
    peft.unmerge_adapter()
    peft.set_adapter({"a": 0.0, "b": 0.0})
    assert torch.equal(peft(x), before(x))


@rows
def test_each_sample_of_a_batch_may_hear_its_own_adapter(method, layer):
    peft, x, before = rig(method, layer, torch.float64)
    peft.eval()
    names = (["a1", "__base__", "a0", "a1", "a0"] * 2)[:x.shape[0]]
    if layer in ATTENTION:
        with pytest.raises(ValueError, match="its weight is one for the whole batch"):
            peft(x, adapter_names=names)
        return
    together = peft(x, adapter_names=names)
    for i, name in enumerate(names):
        if name == "__base__":
            expected = before(x[i:i + 1])
        else:
            peft.set_adapter(name)
            expected = peft(x[i:i + 1])
        close(together[i:i + 1], expected, torch.float64)
