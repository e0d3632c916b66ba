"""torchao: an ordinary ``nn.Linear`` whose weight is a tensor of another class, package ``torchao``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.errors import UnsupportedLayer
from engine.hosts.quantized.protocol import Backend


class Torchao(Backend):
    """Weights that inherit from ``TorchAOBaseTensor``, in any of its formats."""

    name = "torchao"
    tensors = frozenset({("torchao", "TorchAOBaseTensor")})

    def weight(self, layer: nn.Module) -> Tensor:
        try:
            return layer.weight.detach().dequantize().float()
        except NotImplementedError as problem:
            raise UnsupportedLayer("The weight of this layer cannot be read.", f"torchao does not say how to read a {type(layer.weight).__name__}.",
                                   "Use a method that does not look at the weight, such as LoRA, and do not merge it.") from problem

    def write(self, layer: nn.Module, W: Tensor) -> nn.Module:
        from torchao.quantization import quantize_

        if (settings := layer.__dict__.get("made_by")) is None:
            raise UnsupportedLayer("Nothing can be written into this layer.", "The model does not say by which settings torchao quantized it.",
                                   "Load it with a `TorchAoConfig`, or merge without `requantize`.")
        new = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        new.weight = nn.Parameter(W.to(self.dtype(layer)), requires_grad=False)
        quantize_(new, settings)
        new.bias = layer.bias
        return new

    def size(self, layer: nn.Module) -> tuple[int, int]:
        return tuple(layer.weight.shape)

    def settle(self, layer: nn.Module, model: nn.Module) -> None:
        config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
        layer.made_by = config.get_apply_tensor_subclass() if hasattr(config, "get_apply_tensor_subclass") else None

    def dtype(self, layer: nn.Module) -> torch.dtype:
        return layer.weight.dtype


BACKENDS = (Torchao(),)
