"""Arrow by dense arithmetic: prototypes, the softmax of the best, general knowledge taken out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import ArrowConfig, LoraConfig, create_arrow_model, get_peft_model
from engine.methods.arrow import main_direction
from engine.law import Factors
from tests.support.one import One


def lora_folders(folder, count: int, rank: int = 2) -> list[str]:
    for i in range(count):
        torch.manual_seed(i)
        get_peft_model(One(nn.Linear(10, 6)), LoraConfig(target_modules=["layer"], r=rank, lora_alpha=1 + i, init_lora_weights=False)
                       ).save_pretrained(folder / f"{rank}-{i}")
    return [str(folder / f"{rank}-{i}") for i in range(count)]


def test_the_main_direction_is_the_first_right_singular_vector():
    torch.manual_seed(0)
    for rank in (1, 3, 7):
        f = Factors(torch.randn(rank, 5), torch.randn(6, rank), 1.0)
        expected = torch.linalg.svd(f.B @ f.A).Vh[0]
        torch.testing.assert_close((main_direction(f) @ expected).abs(), torch.tensor(1.0))


@pytest.mark.parametrize("general", [0, 2])
def test_each_vector_goes_to_the_experts_it_points_along(general, tmp_path):
    folders = lora_folders(tmp_path, 5)
    model = create_arrow_model(One(nn.Linear(10, 6)), folders[:3], ArrowConfig(top_k=2, router_temperature=0.4, use_gks=bool(general)),
                               folders[3:] if general else None).eval()
    layer, x = model.adapted["layer"], torch.randn(2, 4, 10)
    parts = {n: layer.tenants[n].method.factors(layer.all_tensors(n), layer.tenants[n].config, layer.site) for n in layer.tenants}
    known = [parts["gks_0"], parts["gks_1"]] if general else []
    A0, B0 = (sum(getattr(f, k) for f in known) / 2 if known else 0 for k in "AB")
    experts = [(parts[f"task_{i}"].scale, parts[f"task_{i}"].A - A0, parts[f"task_{i}"].B - B0) for i in range(3)]
    rows = []
    for v in x.flatten(0, 1):
        likeness = torch.stack([(torch.linalg.svd(B @ A).Vh[0] @ v).abs() for _, A, B in experts])
        best = likeness.topk(2)
        shares = torch.softmax(best.values / 0.4, 0)
        rows.append(layer.base_layer(v) + sum(g * experts[i][0] * experts[i][2] @ experts[i][1] @ v for g, i in zip(shares, best.indices)))
    torch.testing.assert_close(model(x).flatten(0, 1), torch.stack(rows))
    stored = layer.tensors("task_0")["lora_A.weight"].clone()
    model(x)
    assert torch.equal(stored, layer.tensors("task_0")["lora_A.weight"])      # PEFT subtracts in place


def test_what_does_not_fit_leaves_the_plain_model(tmp_path):
    base = One(nn.Linear(10, 6))
    layer = base.layer
    with pytest.raises(ValueError, match="rank mismatch"):
        create_arrow_model(base, [*lora_folders(tmp_path, 1), *lora_folders(tmp_path, 1, rank=3)], ArrowConfig())
    with pytest.raises(ValueError, match="general LoRA paths"):
        create_arrow_model(base, lora_folders(tmp_path, 1), ArrowConfig(use_gks=True))
    with pytest.raises(ValueError, match="at least one adapter"):
        create_arrow_model(base, [], ArrowConfig())
    for missing in (tmp_path / "a" / "b" / "none", "./a/b/none"):       # a place on this computer, not a repository on the Hub
        with pytest.raises(ValueError, match=f"Can't find 'adapter_config.json' at '{missing}'"):
            create_arrow_model(base, [missing], ArrowConfig())
    with pytest.raises(ValueError, match="top_k"):
        ArrowConfig(top_k=0)
    assert base.layer is layer
