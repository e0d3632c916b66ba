"""Adapters on layers that other packages have quantized, as far as those are installed and run on a processor (hqq, torchao, gptqmodel, aqlm)."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from engine import get_peft_model
from engine.errors import UnsupportedLayer
from engine.hosts.quantized.protocol import Backend, backend_of
from tests.engine.test_laws import One, make_config, trained_tensors

COLUMNS, OUT = 128, 64


@pytest.fixture(scope="module", autouse=True)
def loaded_before():
    """Some of them start threads as they are imported, which are nothing that a test has left behind."""
    for name in ("hqq.core.quantize", "torchao.quantization", "gptqmodel.nn_modules.qlinear.torch", "aqlm"):
        with contextlib.suppress(ImportError, OSError, RuntimeError, AttributeError):
            importlib.import_module(name)


def package(name: str):
    """The package, or a skip of the test: it may be missing, or not load on this machine."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as problem:
        pytest.skip(f"{name} cannot be used here: {problem!r}")


def hqq(dense: nn.Linear, bits: int = 4) -> nn.Module:
    core = package("hqq.core.quantize")
    settings = core.BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
    return core.HQQLinear(dense, settings, compute_dtype=torch.float32, device="cpu", del_orig=False)


def torchao(dense: nn.Linear) -> nn.Module:
    quantization = package("torchao.quantization")
    quantization.quantize_(dense, quantization.Int8WeightOnlyConfig())
    return dense


def grouped(dense: nn.Linear, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, zeros) ``(out, groups)`` of rounding to the nearest, as gptqmodel's own packing takes them."""
    groups = dense.weight.data.unflatten(1, (-1, group))
    low, high = groups.amin(2), groups.amax(2)
    scales = (high - low) / (2 ** bits - 1)
    return scales, (-low / scales).round().clamp(0, 2 ** bits - 1)


def gptq(dense: nn.Linear) -> nn.Module:
    kernel = package("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    layer = kernel(bits=4, group_size=32, sym=False, desc_act=False, in_features=COLUMNS, out_features=OUT, bias=True, register_buffers=True)
    scales, zeros = grouped(dense, 4, 32)
    layer.pack(dense, scales, zeros, g_idx=torch.arange(COLUMNS, dtype=torch.int32) // 32)
    layer.optimize = lambda *a, **k: None  # compiling takes minutes
    layer.post_init()
    return layer


def awq(dense: nn.Linear) -> nn.Module:
    kernel = package("gptqmodel.nn_modules.qlinear.torch_awq").AwqTorchLinear
    layer = kernel(bits=4, group_size=32, sym=False, desc_act=False, in_features=COLUMNS, out_features=OUT, bias=True, register_buffers=True)
    layer.pack(dense, *grouped(dense, 4, 32))
    layer.optimize = lambda *a, **k: None
    layer.post_init()
    return layer


def aqlm(dense: nn.Linear) -> nn.Module:
    layer = package("aqlm").QuantizedLinear(COLUMNS, OUT, 8, 1, 2, 4, dtype=torch.float32)
    nn.init.normal_(layer.codebooks, std=0.1), nn.init.ones_(layer.scales)
    layer.codes.data = torch.randint(-8, 8, layer.codes.shape, dtype=layer.codes.dtype)
    layer.bias.data = dense.bias.data
    return layer


MAKERS: dict[str, tuple[Callable[..., nn.Module], torch.dtype, float]] = {     # how, number format, how exactly the kernel runs it
    "hqq": (hqq, torch.float32, 1e-5), "torchao": (torchao, torch.float32, 1e-5), "gptq": (gptq, torch.float16, 5e-3),
    "awq": (awq, torch.float16, 5e-3), "aqlm": (aqlm, torch.float32, 1e-5)}
kinds = pytest.mark.parametrize("kind", MAKERS)


def near(a: torch.Tensor, b: torch.Tensor, share: float) -> None:
    assert float((a.float() - b.float()).detach().norm()) <= share * float(b.float().detach().norm())


def rig(kind: str, method: str = "lora"):
    """(peft model with two adapters of an effect; input; the layer; how exactly its kernel runs it)."""
    torch.manual_seed(0)
    make, dtype, share = MAKERS[kind]
    layer = make(nn.Linear(COLUMNS, OUT, dtype=torch.float32)).eval()
    peft = get_peft_model(One(layer), make_config(method), "a0")
    peft.add_adapter("a1", make_config(method))
    with torch.no_grad():
        for name in ("a0", "a1"):
            for tensor in trained_tensors(peft, name):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    peft.stack.changed()
    return peft.eval(), torch.randn(3, COLUMNS, dtype=dtype), layer, share


@kinds
def test_the_weight_that_is_read_is_the_one_that_is_run(kind):
    _, x, layer, share = rig(kind)
    backend = backend_of(layer)
    assert backend.name == kind and backend.size(layer) == (OUT, COLUMNS)
    W = backend.weight(layer)
    assert W.dtype == torch.float32
    with torch.no_grad():
        near(layer(x), nn.functional.linear(x.float(), W, layer.bias.float()), share)
        near(Backend.weight(backend, layer), W, share)        # unit vectors tell the same


@kinds
@pytest.mark.parametrize("method", ["lora", "dora", "oft", "loha", "hira"])
def test_running_equals_merging_and_the_layer_comes_back(kind, method):
    peft, x, layer, share = rig(kind, method)
    peft.set_adapter({"a1": 0.7, "a0": -1.3})
    before = backend_of(layer).weight(layer)
    with torch.no_grad():
        running = peft(x)
        peft.merge_adapter()
        near(peft(x), running, 2 * share)
        peft.unmerge_adapter()
        assert peft.adapted["first"].base_layer is layer and torch.equal(backend_of(layer).weight(layer), before)
        assert torch.equal(peft(x), running)
        near(peft.merge_and_unload()(x), running, 2 * share)


@kinds
def test_gradients_are_those_of_the_dense_weight(kind):
    peft, x, layer, share = rig(kind)
    W, p = backend_of(layer).weight(layer), peft.adapted["first"].tensors("a0")
    x.requires_grad_()
    peft.train()(x).float().pow(2).sum().backward()
    found = [x.grad, *(t.grad for t in p.values())]
    again, A, B = (t.detach().clone().float().requires_grad_() for t in (x, p["lora_A.weight"], p["lora_B.weight"]))
    tenant = peft.adapted["first"].tenants["a0"]
    scale = tenant.method.factors(p, tenant.config, tenant.site).scale
    (nn.functional.linear(again, W + scale * (B @ A), layer.bias.float())).pow(2).sum().backward()
    for ours, dense in zip(found, (again.grad, A.grad, B.grad), strict=True):
        near(ours, dense, 4 * share)


@kinds
def test_what_can_be_written_says_what_it_loses_and_the_rest_is_refused(kind):
    peft, x, layer, share = rig(kind)
    if kind == "torchao":
        layer.made_by = package("torchao.quantization").Int8WeightOnlyConfig()
    if kind in ("gptq", "awq", "aqlm"):
        with pytest.raises(UnsupportedLayer, match="16 bits"):
            peft.merge_adapter(requantize=1.0)
        assert not peft.merged_adapters
        return
    error = peft.requantization_error()
    peft.merge_adapter(requantize=error.total)
    assert 0 < error.total < 0.5
    with torch.no_grad():
        written = peft.adapted["first"].base_layer
        near(peft(x), nn.functional.linear(x, backend_of(written).weight(written), layer.bias), share)
