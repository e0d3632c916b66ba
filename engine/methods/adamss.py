"""AdaMSS: the rows of ΔW fall into clusters, and each cluster k has a tiny adapter ``B_k · A_k · P`` in the weight's main directions P.

Zheng et al. 2025 (NeurIPS, "AdaMSS: Adaptive Multi-Subspaces"). PEFT class ``AdamssConfig``. Clusters are those of the rows of U in the SVD
of ``[W0 | bias]``; they are found again whenever a file is read, so the base must be the very same.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import WrongBase
from engine.law import Factors, Method, Site, TargetedConfig, Tensors, TensorSpec, check_places
from engine.schedules.adamss import SubspaceSchedule
from engine.specs.fields import knob

_KMEANS_SEED = 123456789                   # PEFT's; the clusters must come out the same


@dataclass
class AdamssConfig(TargetedConfig):
    """Settings of AdaMSS, by PEFT's names and defaults; the ``asa`` ones are carried out by `engine.schedules.adamss`.

    Raises:
        ValueError: impossible settings.
        ImportError: scikit-learn, which finds the clusters, is not installed.
    """

    peft_type: ClassVar[str] = "ADAMSS"
    positive = ("r", "num_subspaces", "subspace_rank")

    r: int = knob(100, label="Main directions", term="r", low=1, high=4096, help="How many main directions of a layer the adapters work in.")
    num_subspaces: int = knob(5, label="Clusters", term="num_subspaces", low=1, high=1024, help="How many tiny adapters a layer gets.")
    subspace_rank: int = knob(1, label="Capacity", term="subspace_rank", low=1, high=256, help="How much each tiny adapter can hold.")
    init_weights: str | None = knob("orthogonal", label="Start", term="init_weights", advanced=True,
                                    help="“orthogonal” starts without effect; empty starts at random.")
    use_asa: bool = knob(False, label="Drop idle clusters", term="use_asa", advanced=True,
                         help="While training, the least useful tiny adapters stop learning.")
    asa_target_subspaces: int = knob(50, label="Clusters that go on", term="asa_target_subspaces", low=1, advanced=True,
                                     help="In all layers together.")
    init_warmup: int = knob(50, label="First step of dropping", term="init_warmup", low=0, advanced=True, help="Until then all learn.")
    final_warmup: int = knob(1000, label="Last step of dropping", term="final_warmup", low=1, advanced=True, help="From then on the rest learn.")
    mask_interval: int = knob(100, label="Steps between droppings", term="mask_interval", low=1, advanced=True, help="Longer judges better.")
    asa_importance_beta: float = knob(0.85, label="Memory of usefulness", term="asa_importance_beta", low=0, high=1, advanced=True,
                                      help="Nearer to 1 judges by a longer past.")
    asa_uncertainty_beta: float = knob(0.85, label="Memory of doubt", term="asa_uncertainty_beta", low=0, high=1, advanced=True,
                                       help="Nearer to 1 judges by a longer past.")
    asa_schedule_exponent: float = knob(3.0, label="Haste", term="asa_schedule_exponent", low=0.1, high=10, advanced=True,
                                        help="Larger drops more at first.")
    use_dynamic_rank: bool = knob(False, label="Capacity by need", term="use_dynamic_rank", advanced=True,
                                  help="Clusters with few strong directions get less capacity.")
    svd_threshold: float = knob(0.1, label="What counts as strong", term="svd_threshold", low=0, high=1, advanced=True,
                                help="Share of the strongest direction.")
    random_seed: int = knob(0, label="Seed", term="random_seed", advanced=True, help="Of the decomposition; must not change afterwards.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.init_weights = self.init_weights or None
        if self.init_weights not in ("orthogonal", None):
            raise ValueError(f"init_weights must be 'orthogonal' or None, got {self.init_weights}")
        if self.use_asa:
            for name in ("mask_interval", "asa_target_subspaces", "asa_schedule_exponent"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"`{name}` must be a positive number when `use_asa=True`, got {getattr(self, name)}.")
            if self.init_warmup >= self.final_warmup:
                raise ValueError("`init_warmup` must be smaller than `final_warmup` when `use_asa=True`, "
                                 f"got init_warmup={self.init_warmup} and final_warmup={self.final_warmup}.")
        k_means()


class Adamss(Method):
    """Adaptive multi-subspaces. All tiny adapters of a layer lie in two tensors, ``adamss_A`` ``(clusters, rank, directions)`` and
    ``adamss_B`` ``(out, rank)`` with its rows cluster after cluster; where a cluster has a smaller rank, the rest is zero and stays so.
    Files hold them one by one, as PEFT's do.
    """

    title = "AdaMSS"
    help = "Many tiny adapters, one for each group of outputs. Tiny files; needs scikit-learn and the very same base model."
    config = AdamssConfig
    prefix = "adamss_"
    begins_at_base = True
    sees_bias = True

    def refuses(self, cfg: AdamssConfig, site: Site) -> str:
        return "AdaMSS mixes all channels, which a grouped convolution cannot." if site.groups > 1 else ""

    def clusters(self, cfg: AdamssConfig, site: Site) -> int:
        return min(cfg.num_subspaces, site.out)

    def tensors(self, cfg: AdamssConfig, site: Site) -> dict[str, TensorSpec]:
        width, count, zeros = site.columns + site.has_bias, self.clusters(cfg, site), torch.nn.init.zeros_
        directions = min(cfg.r, site.out, width)
        return {"adamss_A": TensorSpec((count, cfg.subspace_rank, directions), zeros),
                "adamss_B": TensorSpec((site.out, cfg.subspace_rank), zeros),
                "adamss_newB": TensorSpec((directions, width), zeros, trainable=False),
                "adamss_ranks": TensorSpec((count,), zeros, trainable=False, saved=False, dtype=torch.long),      # of each cluster
                "adamss_owner": TensorSpec((site.out,), zeros, trainable=False, saved=False, dtype=torch.long),   # each row's cluster, and
                "adamss_rows": TensorSpec((site.out,), zeros, trainable=False, saved=False, dtype=torch.long)}    # where the row belongs

    def start(self, p: Tensors, cfg: AdamssConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        """W0: with the bias as its last column, where there is one."""
        if "adamss_rows" not in fresh:     # from a file that was made on a quantized base
            check_places(p["adamss_rows"], site.out)
            return
        count, directions = self.clusters(cfg, site), p["adamss_newB"].shape[0]
        with torch.random.fork_rng(devices=[] if W0.device.type == "cpu" else [W0.device]):
            torch.manual_seed(cfg.random_seed)
            U, _, V = torch.svd_lowrank(W0.float(), q=directions, niter=2)
        labels = torch.from_numpy(k_means()(n_clusters=count, init="random", n_init=1, max_iter=10, random_state=_KMEANS_SEED).fit_predict(
            U.cpu().numpy())).long()
        rows = torch.argsort(labels, stable=True)
        if "adamss_owner" not in fresh and not torch.equal(labels[rows], p["adamss_owner"].cpu()):
            raise WrongBase("This adapter was made for another base model.", f"The outputs of {site.path} fall into other groups here.",
                            "Choose the base model that it was trained on.")
        p["adamss_rows"].copy_(rows)
        p["adamss_owner"].copy_(labels[rows])
        if "adamss_newB" in fresh:
            p["adamss_newB"].copy_(V.T)
        if "adamss_A" not in fresh:
            return
        for k, mine in enumerate(U[rows.to(U.device)].split(torch.bincount(labels, minlength=count).tolist())):
            gram, rank = mine @ mine.T, min(len(mine), cfg.subspace_rank)
            if cfg.use_dynamic_rank:
                strengths = torch.svd_lowrank(gram, q=len(gram), niter=2)[1]
                rank = max(1, min(rank, int((strengths > cfg.svd_threshold * strengths[0]).sum())))
            main = torch.svd_lowrank(gram, q=rank, niter=2)[0]
            p["adamss_A"][k, :rank] = torch.linalg.qr(mine.T @ main).Q.T.to(p["adamss_A"])
            p["adamss_ranks"][k] = rank
            if cfg.init_weights is None and "adamss_B" in fresh:
                p["adamss_B"][p["adamss_owner"] == k, :rank] = torch.randn(len(mine), rank).to(p["adamss_B"]) * 0.01

    # --- its file ---

    def decode(self, found: Tensors, cfg: AdamssConfig, site: Site) -> Tensors:
        p = {"adamss_newB": found.pop("adamss_newB")} if "adamss_newB" in found else {}
        count = self.clusters(cfg, site)
        names = [(f"adamss_A.{k}", f"adamss_B.{k}") for k in range(count)]
        if not all(name in found for pair in names for name in pair):
            return p
        if "adamss_rows" in found:         # made on a quantized base
            p["adamss_rows"] = found.pop("adamss_rows")
            found.pop("adamss_owner", None), found.pop("adamss_ranks", None)
        A, B = ([found.pop(name) for name in side] for side in zip(*names, strict=True))
        pad = lambda t, short: F.pad(t, short) if min(short) >= 0 else t
        p["adamss_ranks"] = torch.tensor([len(a) for a in A])
        p["adamss_owner"] = torch.repeat_interleave(torch.arange(count), torch.tensor([len(b) for b in B]))
        p["adamss_A"] = torch.stack([pad(a, (0, 0, 0, cfg.subspace_rank - len(a))) for a in A])
        p["adamss_B"] = torch.cat([pad(b, (0, cfg.subspace_rank - b.shape[1])) for b in B])
        return p

    def encode(self, p: Tensors, cfg: AdamssConfig, site: Site) -> Tensors:
        ranks, sizes = p["adamss_ranks"].tolist(), torch.bincount(p["adamss_owner"], minlength=len(p["adamss_ranks"])).tolist()
        found = {"adamss_newB": p["adamss_newB"]}
        for k, (rank, B) in enumerate(zip(ranks, p["adamss_B"].split(sizes), strict=True)):
            found[f"adamss_A.{k}"], found[f"adamss_B.{k}"] = p["adamss_A"][k, :rank].contiguous(), B[:, :rank].contiguous()
        return found

    # --- what it does ---

    def factors(self, p: Tensors, cfg: AdamssConfig, site: Site) -> Factors:
        A, B, P = p["adamss_A"], p["adamss_B"], p["adamss_newB"]
        inner = A.flatten(0, 1) @ P.to(A.dtype)
        outer = B.new_zeros(site.out, *A.shape[:2]).index_put((p["adamss_rows"], p["adamss_owner"]), B).flatten(1)
        return Factors(inner[:, :site.columns], outer, 1.0, outer @ inner[:, -1] if site.has_bias else None)

    def delta(self, p: Tensors, cfg: AdamssConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        f = self.factors(p, cfg, site)
        return f.B @ f.A

    def bias_delta(self, p: Tensors, cfg: AdamssConfig, site: Site, b0: Tensor | None = None, W0: Tensor | None = None) -> Tensor | None:
        return self.factors(p, cfg, site).bias

    def schedule(self, cfg: AdamssConfig, layers: Mapping[str, Tensors]) -> SubspaceSchedule | None:
        return SubspaceSchedule(cfg, layers) if cfg.use_asa else None


def k_means() -> type:
    """scikit-learn's ``KMeans``. Raises `ImportError` with what to do if it is not installed."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as missing:
        raise ImportError("scikit-learn is required for AdaMSS. Please install it with: pip install scikit-learn") from missing
    return KMeans


METHOD = Adamss()
