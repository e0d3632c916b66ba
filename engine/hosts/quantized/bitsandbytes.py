"""bitsandbytes: weights in 4 bits (NF4, FP4; Dettmers et al. 2023, arXiv 2305.14314) and in 8 (LLM.int8(), arXiv 2208.07339).

On processors with AVX512-BF16 a 4-bit layer repacks its weight in place the first time it runs in eval mode. From then on it lets no gradient
through, what reads the weight in the old order gets nonsense, and the scales have lost half of their digits. `Linear4bit.settle` keeps that
from happening, and undoes it as far as it can be undone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from engine.hosts.quantized.protocol import Backend, number_format

LANES = 32                                 # rows that the repacked order takes together


class Bitsandbytes(Backend):
    """What both have in common."""

    def run(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if layer.bias is None:
            return layer(x, *args, **kwargs)
        before = layer.bias.data           # the layer leaves its bias in the number format of its input
        y = layer(x, *args, **kwargs)
        layer.bias.data = before
        return y

    def device(self, layer: nn.Module) -> torch.device:
        return layer.weight.device


class FourBit(Bitsandbytes):
    """``Linear4bit``: NF4 or FP4, its scales quantized once more or not, packed in any storage type."""

    name = "bnb 4bit"
    layers = frozenset({("bitsandbytes", "Linear4bit")})

    def weight(self, layer: nn.Module) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        codes, state = layer.weight.data, self._state(layer)
        if state is None:                  # not quantized yet: that happens when it is moved to a device
            return codes.clone()
        if _is_repacked(state):
            codes, state = in_order(codes, state)
        exact = copy.copy(state)
        exact.dtype = torch.float32
        return dequantize_4bit(codes, exact)

    def write(self, layer: nn.Module, W: Tensor) -> nn.Module:
        from bitsandbytes.nn import Params4bit

        old, new = layer.weight, _twin(layer)
        state = self._state(layer)
        new.weight = Params4bit(W.to(self.dtype(layer)).contiguous(), requires_grad=False,
                                blocksize=old.blocksize if state is None else state.blocksize, compress_statistics=old.compress_statistics,
                                quant_type=old.quant_type, quant_storage=old.quant_storage, module=new).to(old.device)
        new.quant_state = new.weight.quant_state
        return new

    def dtype(self, layer: nn.Module) -> torch.dtype:
        state = self._state(layer)
        if state is None:
            return layer.weight.dtype
        return state.original_dtype if _is_repacked(state) else state.dtype

    def settle(self, layer: nn.Module, model: nn.Module) -> None:
        layer.support_avx512bf16_for_cpu = False
        state = self._state(layer)
        if state is not None and _is_repacked(state):
            layer.weight.data, layer.weight.quant_state = in_order(layer.weight.data, state)
            layer.quant_state = layer.weight.quant_state

    @staticmethod
    def _state(layer: nn.Module) -> Any:
        state = getattr(layer.weight, "quant_state", None)
        return getattr(layer, "quant_state", None) if state is None else state


class EightBit(Bitsandbytes):
    """``Linear8bitLt``: a scale for each row. Where nothing learns, its kernel rounds the inputs to 8 bits, too."""

    name = "bnb 8bit"
    layers = frozenset({("bitsandbytes", "Linear8bitLt")})

    def weight(self, layer: nn.Module) -> Tensor:
        codes, scale = layer.weight.data, layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
        if codes.dtype != torch.int8 or scale is None:
            return codes.clone()
        return codes.float() * (scale.to(codes.device) / 127)[:, None]

    def write(self, layer: nn.Module, W: Tensor) -> nn.Module:
        from bitsandbytes.nn import Int8Params

        new = _twin(layer)
        new.state = copy.copy(layer.state)
        new.state.reset_grads()
        new.weight = Int8Params(W.to("cpu", torch.float16), requires_grad=False,
                                has_fp16_weights=layer.state.has_fp16_weights).to(layer.weight.device)
        return new

    def dtype(self, layer: nn.Module) -> torch.dtype:
        codes = layer.weight.data
        return codes.dtype if codes.is_floating_point() else layer.__dict__.get("dense_dtype", torch.float16)

    def settle(self, layer: nn.Module, model: nn.Module) -> None:
        layer.dense_dtype = number_format(model)              # which nothing else remembers: quantizing goes by way of float16


def _twin(layer: nn.Module) -> nn.Module:
    """A layer of the same class and settings, whose parameters can be exchanged without the first one's being."""
    new = copy.copy(layer)
    new._parameters = dict(layer._parameters)
    return new


def _is_repacked(state: Any) -> bool:
    return bool(getattr(state, "packing_format_for_cpu", False))


def in_order(codes: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A repacked weight in the order that it had before: new (codes, state); the codes exactly, the scales as bfloat16 has left them.

    (bitsandbytes' own inverse quantizes the scales again, or, where they never were, leaves them transposed.)
    """
    out, half = codes.shape                # every 64 values of [out / 32, columns / 2, 32, 2] share 32 bytes: first half low, second half high
    pieces = codes.reshape(-1, LANES)
    values = torch.cat([pieces & 0xF, pieces >> 4], dim=-1).reshape(out // LANES, half, LANES, 2).transpose(1, 2).reshape(-1)
    before = ((values[::2] << 4) | values[1::2]).to(torch.uint8).reshape(state.original_qshape)
    if (storage := getattr(state, "original_storage_type", None)) is not None:
        before = before.view(storage)
    state = copy.copy(state)
    state.absmax, state.dtype = state.absmax.T.reshape(-1).float(), state.original_dtype
    state.nested, state.state2, state.offset, state.packing_format_for_cpu = False, None, None, False
    return before, state


BACKENDS = (FourBit(), EightBit())
