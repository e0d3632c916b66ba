"""LoRA on grouped convolutions: what the file means is a kernel over all channels; running equals merging into a layer without groups."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import IA3Config, LoHaConfig, LoraConfig, OFTConfig
from engine.errors import UnsupportedLayer
from engine.law import Factors, Method, TargetedConfig, TensorSpec
from engine.methods.registry import register_method
from tests.support.one import one


@dataclass
class FactorsConfig(TargetedConfig):
    peft_type: ClassVar[str] = "TEST_FACTORS"


class Plain(Method):
    """Low-rank factors of the weight's own matrix, as somebody else's package would add them."""

    title, help, config, prefix = "Factors", "Two thin matrices.", FactorsConfig, "factors_"

    def refuses(self, cfg, site):
        return ""

    def tensors(self, cfg, site):
        return {"factors_A": TensorSpec((2, site.columns), torch.nn.init.normal_), "factors_B": TensorSpec((site.out, 2), torch.nn.init.normal_)}

    def factors(self, p, cfg, site):
        return Factors(p["factors_A"], p["factors_B"], 1.0)

    def delta(self, p, cfg, site, W0=None):
        return p["factors_B"] @ p["factors_A"]


register_method(Plain())

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LAYERS = {
    "1d": (lambda: nn.Conv1d(6, 9, 3, stride=2, padding=1, groups=3, padding_mode="reflect"), (2, 6, 11)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=1, dilation=(2, 1), groups=2, bias=False), (2, 4, 7, 6)),
    "3d": (lambda: nn.Conv3d(2, 4, 2, groups=2, padding=1, padding_mode="circular"), (1, 2, 4, 4, 4)),
    "depthwise": (lambda: nn.Conv1d(6, 6, 3, padding="same", groups=6), (2, 6, 8)),
}
layers = pytest.mark.parametrize("layer", LAYERS)


def wide(layer: nn.Module) -> torch.Tensor:
    """The grouped kernel as an ungrouped one, entry by entry."""
    out, within = layer.weight.shape[:2]
    kernel = torch.zeros(out, layer.in_channels, *layer.kernel_size, dtype=layer.weight.dtype)
    for o in range(out):
        first = o // (out // layer.groups) * within
        kernel[o, first:first + within] = layer.weight[o]
    return kernel


def lora_kernel(layer: nn.Module, p: dict, scale: float) -> torch.Tensor:
    """ΔW of LoRA's file: A over all channels, B's outputs of one group from A's channels of that group."""
    A, B = p["lora_A.weight"], p["lora_B.weight"].flatten(1)
    delta = torch.zeros(layer.out_channels, *A.shape[1:], dtype=A.dtype)
    for o in range(layer.out_channels):
        first = o // (layer.out_channels // layer.groups) * B.shape[1]
        delta[o] = scale * torch.tensordot(B[o], A[first:first + B.shape[1]], 1)
    return delta


def run(layer: nn.Module, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    else:
        padding = layer.padding
    return CONV[len(layer.kernel_size)](x, kernel, layer.bias, layer.stride, padding, layer.dilation)


@layers
@pytest.mark.parametrize("learning", [True, False])
def test_running_is_dense_arithmetic_and_so_is_merging(layer, learning):
    make, shape = LAYERS[layer]
    module = make()
    r = 2 * module.groups
    peft, adapted = one(module, LoraConfig(r=r, lora_alpha=r), LoraConfig(r=r, lora_alpha=2 * r))
    x = torch.randn(shape, dtype=torch.float64)
    kernel = wide(module) + sum(lora_kernel(module, adapted.tensors(name), scale) for name, scale in (("a0", 1.0), ("a1", 2.0)))
    expected = run(module, x, kernel)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
        peft.set_requires_grad(["a0", "a1"], False)           # fused
        torch.testing.assert_close(peft(x), expected)
    merged = peft.merge_and_unload()
    assert merged.layer.groups == 1 and merged.layer.weight.shape == kernel.shape
    torch.testing.assert_close(merged(x), expected)


def test_a_merge_can_be_undone_and_half_of_it_can_run():
    module = nn.Conv2d(4, 6, 3, groups=2)
    peft, adapted = one(module, LoraConfig(r=4), LoraConfig(r=2), LoHaConfig(r=2))
    x, weight, groups = torch.randn(2, 4, 6, 6, dtype=torch.float64), module.weight, module.groups
    expected = peft(x)
    for names in (["a0"], ["a2"], ["a0", "a2"], ["a1", "a2", "a0"]):
        peft.merge_adapter(names)
        torch.testing.assert_close(peft(x), expected)
        with torch.no_grad():
            torch.testing.assert_close(peft(x), expected)
        peft.unmerge_adapter()
        assert module.weight is weight and module.groups == groups
    with peft.disable_adapter():
        assert torch.equal(peft(x), module(x))


def test_factors_of_the_weights_own_shape_stay_within_the_groups():
    module = nn.Conv1d(6, 4, 3, groups=2)
    peft, adapted = one(module, FactorsConfig(), LoraConfig(r=2))
    x, p = torch.randn(2, 6, 9, dtype=torch.float64), adapted.tensors("a0")
    delta = (p["factors_B"] @ p["factors_A"]).view_as(module.weight)
    peft.set_adapter("a0")
    expected = module(x) + F.conv1d(x, delta, groups=2)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            peft.set_adapter("a0")
            torch.testing.assert_close(peft(x), expected)
            peft.set_adapter(["a0", "a1"])
            both = peft(x)
    peft.merge_adapter()
    assert module.groups == 1
    torch.testing.assert_close(peft(x), both)


def test_what_cannot_be_is_said():
    with pytest.raises(UnsupportedLayer, match="rank is divisible by groups"):
        one(nn.Conv1d(4, 4, 3, groups=2), LoraConfig(r=3))
    with pytest.raises(UnsupportedLayer, match="no start from the weight"):
        one(nn.Conv1d(4, 4, 3, groups=2), LoraConfig(r=2, init_lora_weights="pissa"))
    for above in (OFTConfig(oft_block_size=3), IA3Config(target_modules=["layer"], feedforward_modules=["layer"])):
        peft, _ = one(nn.Conv1d(4, 4, 3, groups=2), LoraConfig(r=2), above)
        with pytest.raises(UnsupportedLayer, match="cannot sit above"):
            peft(torch.randn(1, 4, 5, dtype=torch.float64))
        peft.set_adapter(["a1", "a0"])                        # the other way round it can
        x = torch.randn(1, 4, 5, dtype=torch.float64)
        running = peft(x)
        torch.testing.assert_close(peft.merge_and_unload()(x), running)
    peft, _ = one(nn.Conv1d(4, 4, 3, groups=2), LoraConfig(r=2))
    with pytest.raises(ValueError, match="cannot be combined"):
        peft.add_weighted_adapter(["a0"], [1.0], "mixed")


ALONE = {"lora": LoraConfig(r=6, lora_bias=True), "dora": LoraConfig(r=6, use_dora=True), "loha": LoHaConfig(r=2, init_weights=False),
         "ia3": IA3Config(feedforward_modules=[]), "oft": OFTConfig(oft_block_size=2, init_weights=False)}


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("module, shape", [(nn.Conv1d(6, 6, 3), (6, 9)), (nn.Conv2d(6, 6, (3, 1)), (6, 9, 7)), (nn.Conv3d(6, 6, 1), (6, 3, 4, 2))])
def test_a_sample_without_a_batch_is_one_of_a_batch_of_one(module, shape, kind, learning):
    peft, _ = one(copy.deepcopy(module), ALONE[kind])
    x = torch.randn(shape, dtype=torch.float64)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), peft(x[None])[0])
