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
    whole_file: bool = True                # False: the file says less than the tensors do (the rest follows from it)
    atol: float = 1e-5                     # of outputs, gradients and merged weights against PEFT, float32
    noisy: bool = False                    # in training it runs with noise: the laws are those of its mean
    exact_file: bool = True                # a file holds it to the bit


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
    "pvera": Row("PveraConfig", {"r": 6}, _LINEARS, {"init_weights": False}, noisy=True),
    "pvera-seeded": Row("PveraConfig", {"r": 6, "save_projection": False, "projection_prng_key": 5}, heard={"init_weights": False}, noisy=True),
    "randlora": Row("RandLoraConfig", {"r": 5, "randlora_alpha": 10}, _LINEARS, {"init_weights": False}),
    "randlora-sparse": Row("RandLoraConfig", {"r": 4, "sparse": True, "randlora_alpha": 4, "save_projection": False}, heard={"init_weights": False}),
    "randlora-very-sparse": Row("RandLoraConfig", {"r": 4, "very_sparse": True, "randlora_alpha": 4, "init_weights": False}),
    "fourierft": Row("FourierFTConfig", {"n_frequency": 20}, _LINEARS),
    "fourierft-pattern": Row("FourierFTConfig", {"n_frequency": 20, "n_frequency_pattern": {"second": 7}, "init_weights": True, "random_loc_seed": 3},
                             heard={"init_weights": False}),
    "shira": Row("ShiraConfig", {"r": 2}, ("linear", "linear-no-bias", "linear-square"), {"init_weights": False}),
    "shira-seeded": Row("ShiraConfig", {"r": 3, "random_seed": 11, "init_weights": False}),
    "hira": Row("HiraConfig", {"r": 3}, ("linear", "linear-no-bias", "conv1D-transposed", "conv1d", "conv2d", "conv2d-1x1", "conv3d", "embedding"),
                heard={"init_weights": False}),
    "hira-gaussian": Row("HiraConfig", {"r": 2, "init_weights": "gaussian"}),
    "hira-random": Row("HiraConfig", {"r": 2, "init_weights": False}, ("linear", "conv2d", "embedding")),
    "kasa": Row("LoraConfig", {"r": 3, "lora_alpha": 5, "kasa_config": {"beta": 1e-4}}),
    "glora": Row("GloraConfig", {"r": 3}, heard={"init_weights": False}),
    "glora-vector": Row("GloraConfig", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector", "init_weights": False}),
    "glora-constant": Row("GloraConfig", {"config_A_B": "constant", "config_C": "none", "init_weights": False}),
    "glora-random": Row("GloraConfig", {"r": 2, "config_D_E": "none", "init_weights": False}),
    "deft": Row("DeftConfig", {"r": 3}, ("linear", "linear-no-bias", "conv1D-transposed"), heard={"init_weights": False}),
    "deft-qr": Row("DeftConfig", {"r": 3, "alpha": 5, "decomposition_method": "qr"}),
    "deft-para": Row("DeftConfig", {"r": 20, "para": True}),
    "psoft": Row("PsoftConfig", {"r": 4}, heard={"init_weights": False}),
    "psoft-pissa": Row("PsoftConfig", {"r": 3, "psoft_alpha": 7, "ab_svd_init": "pissa_init", "psoft_svd": "lowrank", "random_seed": 5,
                                       "psoft_mag_a": False, "init_weights": False}),
    "psoft-series": Row("PsoftConfig", {"r": 4, "use_cayley_neumann": True, "cayley_neumann_eps": 0.4, "init_weights": False}),
    "psoft-series-3": Row("PsoftConfig", {"r": 4, "use_cayley_neumann": True, "num_cayley_neumann_terms": 3, "init_weights": False}),
    "psoft-free": Row("PsoftConfig", {"r": 3, "psoft_orth": False, "psoft_mag_b": False, "init_weights": False}),
    "osf": Row("OSFConfig", {}, ("linear", "linear-no-bias", "linear-square"), heard={"init_weights": False}),
    "osf-random": Row("OSFConfig", {"effective_rank": 0.7, "rank_pattern": {"first": 3}, "init_weights": False}),
    "peanut": Row("PeanutConfig", {"r": 3}, heard={"init_weights": False}),
    "peanut-deep": Row("PeanutConfig", {"r": 4, "depth": 2, "act_fn": "gelu", "scaling": 0.5, "init_weights": False}),
    "frod": Row("FrodConfig", {"progressbar": False}, ("linear", "linear-no-bias", "conv1D-transposed"), heard={"init_weights": False}),
    "frod-random": Row("FrodConfig", {"progressbar": False, "sparse_rate": 0.2, "projection_prng_key": 3, "save_projection": False,
                                      "init_weights": False}),
    "loha": Row("LoHaConfig", {"r": 3, "alpha": 5}, ("linear", "linear-no-bias", "conv1d", "conv2d", "conv2d-1x1"), {"init_weights": False}),
    "loha-fused": Row("LoHaConfig", {"r": 2, "alpha": 5, "rank_pattern": {"second": 1}, "alpha_pattern": {"first": 3}},
                      heard={"init_weights": False}),
    "loha-conv": Row("LoHaConfig", {"r": 2, "use_effective_conv2d": True, "init_weights": False}, ("conv2d-1x1",)),
    "lokr": Row("LoKrConfig", {"r": 1, "alpha": 3}, ("linear", "linear-no-bias", "conv1d", "conv2d"), {"init_weights": False}),
    "lokr-whole": Row("LoKrConfig", {"r": 9, "init_weights": "lycoris"}, ("linear", "conv1d", "conv2d", "conv2d-1x1"), {"init_weights": False}),
    "lokr-both": Row("LoKrConfig", {"r": 1, "decompose_both": True, "decompose_factor": 4, "init_weights": False}),
    "lokr-conv": Row("LoKrConfig", {"r": 1, "use_effective_conv2d": True, "decompose_factor": 2}, ("conv2d",), {"init_weights": False}),
    "c3a": Row("C3AConfig", {"block_size": 4, "block_size_pattern": {"second": 2}}, ("linear", "linear-no-bias", "linear-square")),
    "c3a-gaussian": Row("C3AConfig", {"block_size": 4, "init_weights": "gaussian"}),
    "miss": Row("MissConfig", {"r": 5}, ("linear", "linear-no-bias", "linear-square"), {"init_weights": False}),
    "miss-mini": Row("MissConfig", {"r": 4, "mini_r": 2, "init_weights": "mini"}),
    "miss-bat": Row("MissConfig", {"r": 4, "init_weights": "bat"}),
    "gralora": Row("GraloraConfig", {"r": 4, "alpha": 5}, ("linear", "linear-no-bias", "conv1D-transposed"), {"init_weights": False}),
    "gralora-hybrid": Row("GraloraConfig", {"r": 4, "gralora_k": 4, "hybrid_r": 3, "init_weights": False}),
    "delora": Row("DeloraConfig", {"r": 3, "lambda_pattern": {"second": 4}}, heard={"init_weights": False}),
    "beft": Row("BeftConfig", {}, ("linear",), {"init_weights": False}),
    "adalora": Row("AdaLoraConfig", {"init_r": 3, "target_r": 2, "total_step": 9}, ("linear", "linear-no-bias", "conv1D-transposed", "conv2d"),
                   {"init_lora_weights": False}),
    "lora-orthogonal": Row("LoraConfig", {"r": 4, "init_lora_weights": "orthogonal"}, ("linear", "linear-no-bias", "embedding")),
    "lora-eva": Row("LoraConfig", {"r": 3, "init_lora_weights": "eva", "eva_config": {"rho": 1.5}}),
    "lora-pissa": Row("LoraConfig", {"r": 3, "lora_alpha": 5, "init_lora_weights": "pissa"},
                      ("linear", "linear-no-bias", "conv1D-transposed", "embedding")),
    "lora-olora": Row("LoraConfig", {"r": 3, "lora_alpha": 5, "init_lora_weights": "olora"}, ("linear", "linear-no-bias", "embedding")),
    "dora-pissa": Row("LoraConfig", {"r": 3, "lora_alpha": 5, "init_lora_weights": "pissa", "use_dora": True}),
    "lora-mica": Row("LoraConfig", {"r": 3, "lora_alpha": 5, "init_lora_weights": "mica"},
                     ("linear", "linear-no-bias", "conv1D-transposed", "embedding")),
    "bdlora-a": Row("LoraConfig", {"r": 4, "use_bdlora": {"target_modules_bd_a": ["first", "second"], "nblocks": 2}}),
    "bdlora-b": Row("LoraConfig", {"r": 4, "use_bdlora": {"target_modules_bd_b": ["second"], "nblocks": 4, "match_strict": False}}),
    "velora": Row("LoraConfig", {"r": 3, "velora_config": {"num_groups": 5, "init_type": "random"}}, heard={"init_lora_weights": False}),
    "monteclora": Row("LoraConfig", {"r": 3, "monteclora_config": {"num_samples": 3, "buffer_size": 2}}, heard={"init_lora_weights": False},
                      exact_start=False),
    "vblora": Row("VBLoRAConfig", {"r": 2, "num_vectors": 7, "vector_length": 4}, _LINEARS),
    "vblora-small-file": Row("VBLoRAConfig", {"r": 3, "num_vectors": 300, "vector_length": 2, "topk": 3, "save_only_topk_weights": True}, exact_file=False, whole_file=False),
    "unilora": Row("UniLoraConfig", {"r": 3, "theta_d_length": 17}, _LINEARS),
    "unilora-stored": Row("UniLoraConfig", {"r": 2, "theta_d_length": 11, "proj_seed": 3, "save_indices": True, "init_weights": False}),
    "tinylora": Row("TinyLoraConfig", {"u": 5}, (*_LINEARS, "embedding"), {"init_weights": "uniform"}),
    "tinylora-tied": Row("TinyLoraConfig", {"u": 5, "r": 3, "weight_tying": 1.0, "save_projection": False}, heard={"init_weights": "uniform"}),
    "waveft": Row("WaveFTConfig", {"n_frequency": 20}, _LINEARS, {"init_weights": False}),
    "waveft-sym5": Row("WaveFTConfig", {"n_frequency": 30, "wavelet_family": "sym5", "n_frequency_pattern": {"second": 7}, "init_weights": False}),
    "waveft-proportional": Row("WaveFTConfig", {"n_frequency": 9, "wavelet_family": "coif2", "proportional_parameters": True},
                               heard={"init_weights": False}),
    "waveft-sparse": Row("WaveFTConfig", {"n_frequency": 20, "use_idwt": False}, heard={"init_weights": False}),
    "supertuning": Row("SupertuningConfig", {"sparsity": 0.8}, ("linear", "linear-no-bias", "linear-square"), {"init_weights": False}),
    "supertuning-lora": Row("SupertuningConfig", {"sparsity": 0.9, "r": 3, "select_top": False, "save_precomputed_indices": False},
                            heard={"init_weights": False}),
}
