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


_LINEARS = ("linear", "linear-no-bias", "linear-square", "conv1D-transposed")
METHODS: dict[str, Row] = {
    "lora": Row("LoraConfig", {"r": 3, "lora_alpha": 5}, ("linear", "linear-no-bias", "conv1D-transposed", "conv1d", "conv2d", "conv3d", "embedding")),
    "lora-rs": Row("LoraConfig", {"r": 4, "lora_alpha": 2, "use_rslora": True}),
    "lora-bias": Row("LoraConfig", {"r": 2, "lora_bias": True}, ("linear",)),
    "lora-gaussian": Row("LoraConfig", {"r": 2, "init_lora_weights": "gaussian"}),
    "dora": Row("LoraConfig", {"r": 3, "lora_alpha": 5, "use_dora": True}, ("linear", "linear-no-bias", "conv1d", "conv2d", "conv3d", "embedding")),
    "oft": Row("OFTConfig", {"oft_block_size": 4}, ("linear", "linear-no-bias", "conv2d-1x1", "embedding"), {"init_weights": False}),
    "oft-exact": Row("OFTConfig", {"r": 5, "oft_block_size": 0, "use_cayley_neumann": False}, heard={"init_weights": False}),
    "oft-bound": Row("OFTConfig", {"oft_block_size": 3, "coft": True, "eps": 0.2, "num_cayley_neumann_terms": 4}, heard={"init_weights": False}),
    "oft-shared": Row("OFTConfig", {"oft_block_size": 4, "block_share": True, "num_cayley_neumann_terms": 7}, ("linear", "embedding"),
                      {"init_weights": False}),
    "boft": Row("BOFTConfig", {"boft_block_size": 4}, ("linear", "linear-no-bias", "conv2d-1x1"), {"init_weights": False}),
    "boft-number": Row("BOFTConfig", {"boft_block_size": 0, "boft_block_num": 2, "init_weights": False}),
    "hra": Row("HRAConfig", {"r": 4}, ("linear", "linear-no-bias", "conv2d-1x1")),
    "hra-odd": Row("HRAConfig", {"r": 3}),
    "hra-right-angles": Row("HRAConfig", {"r": 4, "apply_GS": True, "init_weights": False}),
    "road": Row("RoadConfig", {"group_size": 4}, heard={"init_weights": False}),
    "road-2": Row("RoadConfig", {"group_size": 8, "variant": "road_2"}, heard={"init_weights": False}),
    "road-4": Row("RoadConfig", {"group_size": 4, "variant": "road_4", "init_weights": False}),
    "ia3": Row("IA3Config", {"feedforward_modules": []}, ("linear", "linear-no-bias", "conv1D-transposed", "conv2d", "conv3d"),
               {"init_ia3_weights": False}),
    "ia3-feedforward": Row("IA3Config", {"feedforward_modules": ["second"]}, ("linear", "linear-no-bias", "conv1D-transposed", "conv2d", "conv3d"),
                           {"init_ia3_weights": False}),
    "vera": Row("VeraConfig", {"r": 6}, _LINEARS, {"init_weights": False}),
    "vera-seeded": Row("VeraConfig", {"r": 6, "save_projection": False, "projection_prng_key": 5}, heard={"init_weights": False}),
    "pvera": Row("PveraConfig", {"r": 6}, _LINEARS, {"init_weights": False}),
    "pvera-seeded": Row("PveraConfig", {"r": 6, "save_projection": False, "projection_prng_key": 5}, heard={"init_weights": False}),
    "randlora": Row("RandLoraConfig", {"r": 5, "randlora_alpha": 10}, _LINEARS, {"init_weights": False}),
    "randlora-sparse": Row("RandLoraConfig", {"r": 4, "sparse": True, "randlora_alpha": 4, "save_projection": False}, heard={"init_weights": False}),
    "randlora-very-sparse": Row("RandLoraConfig", {"r": 4, "very_sparse": True, "randlora_alpha": 4, "init_weights": False}),
    "fourierft": Row("FourierFTConfig", {"n_frequency": 20}, _LINEARS),
    "fourierft-pattern": Row("FourierFTConfig", {"n_frequency": 20, "n_frequency_pattern": {"second": 7}, "init_weights": True, "random_loc_seed": 3},
                             heard={"init_weights": False}),
    "shira": Row("ShiraConfig", {"r": 2}, ("linear", "linear-no-bias", "linear-square"), {"init_weights": False}),
    "shira-seeded": Row("ShiraConfig", {"r": 3, "random_seed": 11, "init_weights": False}),
}
