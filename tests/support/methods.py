"""One row for each method and each of its forms: what the laws (`tests/engine/test_laws.py`) and the parity with `peft` run over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A config by the name of its class (the same in both packages) and its settings; ``layers``: where PEFT can do it, rightly, too."""

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ("linear", "linear-no-bias")
    heard: dict[str, Any] = field(default_factory=dict)       # settings with which it starts with an effect (the laws use these)
    exact_start: bool = True               # the same seed gives the same tensors as in PEFT
    atol: float = 1e-5                     # of outputs, gradients and merged weights against PEFT, float32


METHODS: dict[str, Row] = {
    "lora": Row("LoraConfig", {"r": 3, "lora_alpha": 5}, ("linear", "linear-no-bias", "conv1D-transposed", "conv1d", "conv2d", "conv3d", "embedding")),
    "lora-rs": Row("LoraConfig", {"r": 4, "lora_alpha": 2, "use_rslora": True}),
    "lora-bias": Row("LoraConfig", {"r": 2, "lora_bias": True}, ("linear",)),
    "lora-gaussian": Row("LoraConfig", {"r": 2, "init_lora_weights": "gaussian"}),
    "dora": Row("LoraConfig", {"r": 3, "lora_alpha": 5, "use_dora": True}, ("linear", "linear-no-bias", "conv1d", "conv2d", "conv3d", "embedding")),
}
