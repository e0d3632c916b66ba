"""Adapters of every method on layers that bitsandbytes has quantized: the laws of the house, and what bitsandbytes does to its own weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitsandbytes

from bitsandbytes.functional import _convert_weight_packed_for_cpu  # noqa: E402

from engine import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from engine.errors import UnsupportedLayer  # noqa: E402
from engine.hosts.host import host_of  # noqa: E402
from engine.hosts.quantized.protocol import backend_of, settle  # noqa: E402
from engine.methods.registry import law  # noqa: E402
from tests.engine.test_laws import METHODS, One, close, is_map, make_config, trained_tensors  # noqa: E402

COLUMNS, OUT = 64, 32
KINDS = ("nf4", "nf4-double", "fp4", "int8")
# what is between the layer's own kernel and the product with its weight as numbers: eight bits round the inputs, too, where nothing learns
KERNEL = {"nf4": 1e-5, "nf4-double": 1e-5, "fp4": 1e-5, "int8": 2e-2}


def quantized(kind: str, bias: bool = True, dtype: torch.dtype = torch.float32, columns: int = COLUMNS, out: int = OUT) -> nn.Module:
    """A layer as bitsandbytes makes it, on the processor."""
    dense = nn.Linear(columns, out, bias=bias, dtype=dtype)
    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(columns, out, bias=bias, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(columns, out, bias=bias, compress_statistics=kind.endswith("double"), quant_type=kind[:3])
    layer.load_state_dict(dense.state_dict())
    layer.weight.data = dense.weight.data if kind != "int8" else layer.weight.data
    if bias:
        layer.bias = nn.Parameter(dense.bias.data, requires_grad=False)
    return layer.to("cpu")


def stored(layer: nn.Module) -> list[torch.Tensor]:
    """Every byte that a quantized layer consists of, copied."""
    state = [t for key, t in layer.state_dict().items() if isinstance(t, torch.Tensor)]
    return [t.detach().clone() for t in state]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return len(before) == len(after) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(before, after))


def rig(method: str, kind: str, dtype: torch.dtype = torch.float32, bias: bool = True, adapters: int = 1):
    """(peft model with adapters a0, a1 … of random, non-zero effect; input; the layer; its dense weight before anything happened)."""
    torch.manual_seed(3)
    layer = quantized(kind, bias, dtype)
    W0 = backend_of(layer).weight(layer)
    model = One(layer)
    peft = get_peft_model(model, make_config(method), "a0")
    for i in range(1, adapters):
        peft.add_adapter(f"a{i}", make_config(method))
    with torch.no_grad():
        for name in peft.peft_config:
            for tensor in trained_tensors(peft, name):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    peft.stack.changed()
    return peft.eval(), torch.randn(2, 5, COLUMNS, dtype=dtype), layer, W0


def carried(method: str) -> bool:
    config, layer = make_config(method), quantized("nf4")
    return not law(config).refuses(config, host_of(layer).site("first", layer))


CARRIED = [m for m in METHODS if carried(m)]
methods = pytest.mark.parametrize("method", CARRIED)
kinds = pytest.mark.parametrize("kind", KINDS)


def near(a: torch.Tensor, b: torch.Tensor, share: float) -> None:
    assert float((a - b).detach().norm()) <= share * float(b.norm())


def test_only_what_looks_at_the_lost_digits_is_refused():
    assert set(METHODS) - set(CARRIED) <= {"lora-loftq"}


# --- laws ---

@methods
@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
def test_running_equals_merging_and_the_base_stays_bit_for_bit(method, kind):
    peft, x, layer, W0 = rig(method, kind, adapters=2)
    before = stored(layer)
    peft.set_adapter({"a1": 0.7, "a0": -1.3})
    learning = peft(x)
    with torch.no_grad():
        running = peft(x)
    near(learning, running, KERNEL[kind])
    peft.merge_adapter()
    near(peft(x), running, KERNEL[kind])
    peft.unmerge_adapter()
    assert peft.adapted["first"].base_layer is layer and same(stored(layer), before)
    with torch.no_grad():
        assert torch.equal(peft(x), running)
    merged = peft.merge_and_unload()
    near(merged(x), running, KERNEL[kind])
    assert isinstance(merged.first, nn.Linear) and merged.first.weight.dtype == torch.float32
    assert same(stored(layer), before)


@pytest.mark.parametrize("method", [m for m in CARRIED if "monteclora_config" not in METHODS[m].settings])    # it draws noise in training
def test_training_gives_the_gradients_of_the_dense_weight(method):
    peft, x, layer, W0 = rig(method, "nf4")
    torch.manual_seed(3)
    twin = get_peft_model(One(nn.Linear(COLUMNS, OUT)), make_config(method), "a0")
    with torch.no_grad():
        twin.adapted["first"].base_layer.weight.copy_(W0)
        twin.adapted["first"].base_layer.bias.copy_(layer.bias)
        for name, tensor in peft.adapted["first"].all_tensors("a0").items():
            twin.adapted["first"].all_tensors("a0")[name].copy_(tensor)
    twin.stack.changed()
    gradients = []
    for model in (peft, twin):
        torch.manual_seed(5)
        seen = x.clone().requires_grad_()
        model.train()(seen).pow(2).sum().backward()
        gradients.append([seen.grad] + [t.grad for t in trained_tensors(model, "a0") if t.requires_grad])
    for ours, dense in zip(*gradients, strict=True):
        assert (ours is None) == (dense is None)
        if dense is not None:
            close(ours, dense, torch.float32)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["lora", "dora", "oft", "loha"])
def test_a_merged_layer_has_the_number_format_of_before_the_quantization(method, kind, dtype):
    peft, x, layer, _ = rig(method, kind, dtype)
    with torch.no_grad():
        running = peft(x)
        peft.merge_adapter()
        standing = peft.adapted["first"].base_layer
        assert standing.weight.dtype == dtype
        near(peft(x).float(), running.float(), {torch.float32: 0, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype] + KERNEL[kind])
        assert peft(x.float()).dtype == torch.float32         # as indifferent to its input's format as the quantized layer


@kinds
def test_only_what_needs_the_weight_makes_it_readable(kind, monkeypatch):
    peft, x, layer, _ = rig("lora", kind, adapters=2)
    backend = backend_of(layer)
    monkeypatch.setattr(type(backend), "weight", lambda *a: pytest.fail("made the weight readable"))
    peft.set_adapter(["a0", "a1"])
    peft.train()(x).sum().backward()
    with torch.no_grad():
        peft.eval()(x)
    peft.add_adapter("a2", LoraConfig(r=2, target_modules=["first"]))


@kinds
def test_a_bias_is_left_as_it_was(kind):
    peft, x, layer, _ = rig("lora", kind, torch.float32)
    bias = layer.bias.detach().clone()
    peft(x.bfloat16())
    assert layer.bias.dtype == torch.float32 and torch.equal(layer.bias, bias)


def test_saved_adapters_come_back_on_quantized_layers(tmp_path):
    for method in ("lora", "dora", "oft", "vera", "lora-pissa"):
        peft, x, layer, _ = rig(method, "nf4")
        with torch.no_grad():
            expected = peft(x)
        peft.save_pretrained(tmp_path / method, selected_adapters=["a0"])
        again = PeftModel.from_pretrained(peft.unload(), tmp_path / method / "a0")
        with torch.no_grad():
            near(again(x), expected, 1e-6)
        assert again.load_report.complete


@pytest.mark.parametrize("method", [m for m in CARRIED if law(make_config(m)).starts_from_base(make_config(m)) and not m.startswith("lora-loftq")])
def test_what_began_at_a_quantized_weight_can_be_merged_into_the_original_one(method, tmp_path):
    """The change that was learned is the same on a base in 16 bits, as far as it does not read W0 itself. (LoftQ is refused on packed weights.)"""
    peft, x, layer, W0 = rig(method, "nf4")
    tenant = peft.adapted["first"].tenants["a0"]
    change = peft.adapted["first"].compose() - W0
    peft.save_pretrained(tmp_path, selected_adapters=["a0"])
    original = One(nn.Linear(COLUMNS, OUT))
    with torch.no_grad():
        original.first.weight.copy_(W0 + torch.randn_like(W0) * 0.02)
    whole = PeftModel.from_pretrained(original, tmp_path / "a0").adapted["first"]
    if not is_map(method) and not tenant.method.needs_base:
        near(whole.compose() - original.first.weight.detach(), change, 1e-3)
    else:
        assert whole.compose().isfinite().all()


# --- into the codes ---

@kinds
def test_requantizing_states_its_error_and_then_makes_exactly_that(kind):
    peft, x, layer, W0 = rig("lora", kind)
    before = stored(layer)
    W = peft.adapted["first"].compose()
    error = peft.requantization_error()
    assert same(stored(layer), before) and not peft.merged_adapters
    with pytest.raises(ValueError, match="of what they change"):
        peft.merge_adapter(requantize=error.total * 0.99)
    assert not peft.merged_adapters and peft.adapted["first"].base_layer is layer
    peft.merge_adapter(requantize=error.total)
    written = peft.adapted["first"].base_layer
    assert type(written) is type(layer) and same(stored(layer), before)
    got = backend_of(written).weight(written)
    assert float((got - W).norm() / (W - W0).norm()) == pytest.approx(error.total, rel=1e-4) == error.of("first")
    with torch.no_grad():
        near(peft(x), nn.functional.linear(x, got, layer.bias), KERNEL[kind])
    peft.unmerge_adapter()
    assert peft.adapted["first"].base_layer is layer


def test_a_small_change_is_lost_in_four_bits_and_kept_in_sixteen():
    peft, x, layer, W0 = rig("lora", "nf4")
    peft.stack.set_strength("a0", 0.02 * float(W0.norm() / (peft.adapted["first"].compose() - W0).norm()))
    error = peft.requantization_error()
    assert error.total > 0.9 and "off by" in error.sentence()
    with torch.no_grad():
        base, running = layer(x), peft(x)
        peft.merge_adapter()
        near(peft(x) - base, running - base, 1e-3)


# --- a processor's own order (AVX512-BF16) ---

def repack(layer: nn.Module) -> None:
    """What bitsandbytes does in place when such a layer first runs in eval mode, by its own function."""
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double", "fp4"])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=str)
def test_a_repacked_weight_is_read_and_brought_back(kind, storage):
    torch.manual_seed(0)
    dense = nn.Linear(COLUMNS * 2, OUT * 2)
    layer = bitsandbytes.nn.Linear4bit(COLUMNS * 2, OUT * 2, compress_statistics=kind.endswith("double"), quant_type=kind[:3], quant_storage=storage)
    layer.load_state_dict(dense.state_dict())
    layer = layer.to("cpu")
    backend = backend_of(layer)
    exact, codes = backend.weight(layer), layer.weight.data.clone()
    repack(layer)
    assert not torch.equal(layer.weight.data.flatten().view(torch.uint8), codes.flatten().view(torch.uint8))
    read = backend.weight(layer)
    near(read, exact, 2 ** -8)             # its scales are in bfloat16 now; the codes are the same
    assert layer.weight.quant_state.packing_format_for_cpu    # reading changed nothing
    settle(layer)
    assert same([layer.weight.data.view(torch.uint8)], [codes.view(torch.uint8)]) and not layer.weight.quant_state.packing_format_for_cpu
    assert torch.equal(backend.weight(layer), read)
    x = torch.randn(3, COLUMNS * 2, requires_grad=True)
    near(layer(x), nn.functional.linear(x, read, layer.bias), 1e-5)
    state = layer.state_dict()             # bitsandbytes finds nothing to bring back any more, which it would do wrongly
    assert torch.equal(state["weight"].view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("kind", ["nf4", "nf4-double", "fp4"])
def test_evaluating_repacks_nothing_and_gradients_still_come_through(kind):
    torch.manual_seed(1)
    model = nn.Sequential(quantized(kind, columns=64, out=64), quantized(kind, columns=64, out=32))     # the second has no adapter
    for layer in model:
        layer.support_avx512bf16_for_cpu = True               # as on a processor that has it
    repack(model[1])                       # and somebody has evaluated the model before
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    before = [stored(layer) for layer in (model[0].base_layer, model[1])]
    x = torch.randn(4, 64)
    peft.train()(x).sum().backward()
    expected = [p.grad.clone() for p in peft.parameters() if p.requires_grad]
    for _ in range(2):
        with torch.no_grad():
            peft.eval()(x)
        peft.zero_grad()
        peft.train()(x).sum().backward()
        assert all(torch.equal(p.grad, e) and e.any() for p, e in zip((p for p in peft.parameters() if p.requires_grad), expected, strict=True))
    assert all(same(stored(layer), b) for layer, b in zip((model[0].base_layer, model[1]), before))


# --- finding them ---

def test_all_linear_finds_quantized_layers_and_parameters_count_as_what_they_stand_for():
    model = nn.ModuleDict({"a": quantized("nf4"), "b": quantized("int8"), "c": nn.Linear(COLUMNS, OUT), "d": nn.LayerNorm(4)})
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert set(peft.adapted) == {"a", "b", "c"}
    trainable, total = peft.get_nb_trainable_parameters()
    assert trainable == 3 * 2 * (COLUMNS + OUT) and total == trainable + 3 * (COLUMNS * OUT + OUT) + 8


def test_looking_for_them_imports_nobodys_package():
    from tests.test_architecture import run_python

    assert run_python("import sys, torch\nfrom torch import nn\nfrom engine import LoraConfig, get_peft_model\n"
                      "m = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(r=1, target_modules='all-linear'))\n"
                      "m.merge_adapter(); m.unmerge_adapter()\n"
                      "print([n for n in ('bitsandbytes', 'hqq', 'torchao', 'gptqmodel', 'awq') if n in sys.modules])") == "[]"


def test_kinds_can_be_mixed_on_quantized_layers():
    torch.manual_seed(3)
    layer = quantized("nf4")
    peft = get_peft_model(One(layer), make_config("lora"), "a0", mixed=True)
    peft.add_adapter("b", make_config("oft"))
    peft.set_adapter(["a0", "b"])
    x = torch.randn(3, COLUMNS)
    with torch.no_grad():
        running = peft(x)
        near(peft.merge_and_unload()(x), running, 1e-5)


def test_a_format_that_cannot_be_written_is_refused_before_anything_is_merged():
    from engine.hosts.quantized.protocol import Backend

    class ReadOnly(Backend):
        name = "carved in stone"

        def weight(self, layer):
            return layer.weight

        def dtype(self, layer):
            return layer.weight.dtype

    with pytest.raises(UnsupportedLayer, match="carved in stone"):
        ReadOnly().write(nn.Linear(2, 2), torch.zeros(2, 2))
