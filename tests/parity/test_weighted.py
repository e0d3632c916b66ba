"""`add_weighted_adapter` against PEFT where PEFT is right, against dense arithmetic where it is not."""

from __future__ import annotations

import peft
import pytest
import torch

import engine
from engine.mix.combine import DENSE, SEPARATE
from tests.support.tiny import make_model

WEIGHTS = [0.7, -1.2]


def two(package, targets=("q_proj", "down_proj", "embed_tokens"), **more):
    """A model with the adapters a and b of random effect, equal for both packages."""
    targets = list(targets)
    config = lambda: package.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **more)  # noqa: E731
    model = package.get_peft_model(make_model(tied=False), config(), "a")
    model.add_adapter("b", config())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def delta(model, name: str) -> dict[str, torch.Tensor]:
    """ΔW of an adapter of ours, layer by layer, by plain dense arithmetic."""
    found = {}
    for path, layer in model.adapted.items():
        p, config = layer.tensors(name), model.peft_config[name]
        A, B = (p["lora_embedding_A"], p["lora_embedding_B"]) if "lora_embedding_A" in p else (p["lora_A.weight"], p["lora_B.weight"])
        scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        found[path] = scale * (B.double() @ A.double())
    return found


@pytest.mark.parametrize("how", [{}, {"svd_rank": 2}, {"svd_rank": 5, "svd_full_matrices": False, "svd_driver": None}], ids=str)
def test_the_same_svd_as_peft(how):
    """The effect: where two directions weigh the same, which of them stands first is nobody's."""
    ours, theirs = two(engine, ["q_proj", "down_proj"]), two(peft, ["q_proj", "down_proj"])
    ids = torch.arange(24).reshape(2, 12)
    for model in (ours, theirs):
        model.add_weighted_adapter(["a", "b"], WEIGHTS, "c", combination_type="svd", **how)
        model.set_adapter("c")
    assert ours.peft_config["c"].r == theirs.peft_config["c"].r == how.get("svd_rank", 4)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=2e-4, rtol=0)


def test_cut_off_factors_are_peft_s_whichever_way_they_point():
    """PEFT's bound is a quantile of values whose signs are the decomposition's whim; ours is that of both signs."""
    ours, theirs = two(engine, ["q_proj", "down_proj"]), two(peft, ["q_proj", "down_proj"])
    ours.add_weighted_adapter(["a", "b"], WEIGHTS, "c", combination_type="svd", svd_clamp=0.9)
    theirs.add_weighted_adapter(["a", "b"], WEIGHTS, "c", combination_type="svd")
    factors = peft.get_peft_model_state_dict(theirs, adapter_name="c")
    for path in ours.adapted:
        A, B = (factors[f"base_model.model.{path}.lora_{which}.weight"] for which in "AB")
        values = torch.cat([A.flatten(), B.flatten()])
        limit = torch.cat([values, -values]).quantile(0.9)
        torch.testing.assert_close(delta(ours, "c")[path], (B.clamp(-limit, limit) @ A.clamp(-limit, limit)).double(), atol=1e-4, rtol=0)
        assert B.abs().max() > limit


@pytest.mark.parametrize("kind", ["cat", "svd", *SEPARATE, *DENSE])
def test_the_same_adapter_as_peft(kind, monkeypatch):
    """DARE drops by chance: here by the same rule for both, as PEFT draws other numbers in between."""
    monkeypatch.setattr(torch, "bernoulli", lambda t: (torch.arange(t.numel()) * 7 % 10 < 6).to(t.dtype).view_as(t))
    targets = ["q_proj", "down_proj"] + ["embed_tokens"] * (kind not in DENSE)   # PEFT's dense embedding lies the other way round
    ours, theirs = two(engine, targets), two(peft, targets)
    more = {"density": 0.6, "majority_sign_method": "frequency"} if kind not in ("cat", "svd", "linear") else {}
    for model in (ours, theirs):
        model.add_weighted_adapter(["a", "b"], WEIGHTS, "c", combination_type=kind, **more)
    ours.set_adapter("c")
    theirs.set_adapter("c")
    ids = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=2e-4, rtol=0)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_the_sum_is_the_sum(more, kind):
    """rsLoRA included, which PEFT scales by √r too much."""
    model = two(engine, **more)
    model.add_weighted_adapter(["a", "b"], WEIGHTS, "c", combination_type=kind, svd_rank=8)
    a, b, c = (delta(model, name) for name in "abc")
    for path in c:
        torch.testing.assert_close(c[path], WEIGHTS[0] * a[path] + WEIGHTS[1] * b[path], atol=1e-4, rtol=0)


def test_svd_is_the_best_of_its_rank():
    model = two(engine)
    model.add_weighted_adapter(["a", "b"], WEIGHTS, "c", svd_rank=3)
    a, b, c = (delta(model, name) for name in "abc")
    for path in c:
        U, S, V = torch.linalg.svd(WEIGHTS[0] * a[path] + WEIGHTS[1] * b[path], full_matrices=False)
        torch.testing.assert_close(c[path], U[:, :3] * S[:3] @ V[:3], atol=1e-4, rtol=0)


def test_different_ranks_and_layers(tmp_path):
    model = engine.get_peft_model(make_model(), engine.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), "a")
    model.add_adapter("b", engine.LoraConfig(r=5, target_modules=["v_proj"], layers_to_transform=[1], init_lora_weights=False))
    model.set_adapter({"a": 0.5, "b": 2.0})
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "c", combination_type="cat")
    model.set_adapter("c")
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path, ["c"])
    for package in (engine, peft):         # what was flattened is an ordinary adapter
        again = package.PeftModel.from_pretrained(make_model(), tmp_path / "c")
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("call", [
    {"adapters": ["a", "b"], "weights": [1.0]}, {"adapters": ["a", "x"], "weights": [1.0, 1.0]}, {"adapters": [], "weights": []},
    {"adapters": ["a", "b"], "weights": WEIGHTS, "combination_type": "ties"},
    {"adapters": ["a", "b"], "weights": WEIGHTS, "combination_type": "soup"}])
def test_what_cannot_be_combined_leaves_nothing_behind(call):
    model = two(engine)
    names = list(dict(model.named_parameters()))
    with pytest.raises(ValueError):
        model.add_weighted_adapter(adapter_name="c", **call)
    assert list(model.peft_config) == ["a", "b"] and list(dict(model.named_parameters())) == names
