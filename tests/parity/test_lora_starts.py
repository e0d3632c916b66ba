"""LoRA's starts against the package `peft`: the same factors from the same seed and data, the same model after training, files both ways;
and what `peft` cannot do: the base stays as it is."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import types
import warnings

import peft
import pytest
import torch

import engine
from engine.model.eva import get_eva_state_dict, initialize_lora_eva_weights
from engine.model.lora_calibrate import as_plain_lora, preprocess_corda, preprocess_loraga
from tests.support.tiny import make_model

sys.modules.setdefault("attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))      # all that peft's CorDA wants of the package `attrs`

X = torch.arange(24).reshape(2, 12) * 7 % 384
TARGETS = ["q_proj", "down_proj"]
FROM_BASE = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "pissa-rslora-patterns": {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 2},
                              "alpha_pattern": {"down_proj": 3}},
    "pissa-dora": {"init_lora_weights": "pissa", "use_dora": True},
}
FROM_DATA = {
    "corda": {"init_lora_weights": "corda", "corda_config": {}},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": {}},
    "pissa_niter_8": {"init_lora_weights": "pissa_niter_8"},
}
ALL = {**FROM_BASE, **FROM_DATA}


@pytest.fixture(scope="module")
def base():
    return make_model()


def config(package, settings):
    kinds = peft.tuners.lora.config if package is peft else engine.methods.lora_settings
    named = {"corda_config": kinds.CordaConfig, "lora_ga_config": kinds.LoraGAConfig, "eva_config": kinds.EvaConfig}
    settings = {k: named[k](**v) if k in named else v for k, v in settings.items()}
    return package.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **settings})


def look(package, model, cfg):
    """Run the data that this start wants, if it wants any."""
    def passes():
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            model(torch.randint(0, 384, (1, 64), generator=generator))

    def steps():
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            ids = torch.randint(0, 384, (2, 16), generator=generator)
            model(input_ids=ids, labels=ids).loss.backward()

    if cfg.init_lora_weights == "corda":
        from peft.tuners.lora.corda import preprocess_corda as theirs
        (preprocess_corda if package is engine else theirs)(model, cfg, passes)
    if cfg.init_lora_weights == "lora_ga":
        from peft.tuners.lora.loraga import preprocess_loraga as theirs
        (preprocess_loraga if package is engine else theirs)(model, cfg, steps)


def wrap(package, base, settings):
    model = copy.deepcopy(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = config(package, settings)
        look(package, model, cfg)
        torch.manual_seed(5)
        return package.get_peft_model(model, cfg).eval()


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def trained(base, settings):
    """(ours, PEFT's) after the same change of what trains."""
    ours, theirs = wrap(engine, base, settings), wrap(peft, base, settings)
    generator, others = torch.Generator().manual_seed(1), trainable(theirs)
    with torch.no_grad():
        for name, p in trainable(ours).items():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
            others[name].copy_(p)
    ours.stack.changed()
    return ours, theirs


@torch.no_grad()
def logits(model):
    return model(X).logits


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("start", ALL)
def test_the_same_start_and_the_same_model_after_training(base, start):
    ours, theirs = wrap(engine, base, ALL[start]), wrap(peft, base, ALL[start])
    a, b = trainable(ours), trainable(theirs)
    assert a.keys() == b.keys()
    for name in a:
        close(a[name], b[name])
    close(logits(ours), logits(base))
    ours, theirs = trained(base, ALL[start])
    close(logits(ours), logits(theirs))
    assert (logits(ours) - logits(base)).abs().max() > 0.05


@pytest.mark.parametrize("direction", ["ArBr", "A2rBr", "ArB2r", "random"])
@pytest.mark.parametrize("scale", ["stable", "weight_svd", "gd_scale", "unit"])
def test_lora_ga_starts_alike_in_all_its_ways(base, direction, scale):
    settings = {"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": direction, "scale": scale}, "target_modules": ["q_proj"]}
    a, b = (trainable(wrap(package, base, settings)) for package in (engine, peft))
    for name in a:
        close(a[name], b[name])


def test_corda_keeps_what_the_data_uses_least(base):
    settings = {"init_lora_weights": "corda", "corda_config": {"corda_method": "kpm"}}
    ours, theirs = wrap(engine, base, settings), wrap(peft, base, settings)
    for name, p in trainable(ours).items():
        close(p, trainable(theirs)[name])


@pytest.mark.parametrize("start", ALL)
def test_the_base_stays_as_it_is_and_adapters_do_not_meet(base, start):
    ours, _ = trained(base, ALL[start])
    alone = logits(ours)
    ours.add_adapter("second", config(engine, FROM_BASE["pissa"]))
    assert torch.equal(logits(ours), alone)
    with ours.disable_adapter():
        assert torch.equal(logits(ours), logits(base))
    for name, p in ours.unload().named_parameters():
        assert torch.equal(p, base.get_parameter(name))


@pytest.mark.parametrize("start", FROM_BASE)
def test_files_load_both_ways(base, start, tmp_path):
    ours, theirs = trained(base, ALL[start])
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = engine.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / folder)
        assert again.load_report.complete, again.load_report.sentence()
        close(logits(again), logits(ours))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            close(logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / folder)), logits(ours))


@pytest.mark.parametrize("start", FROM_DATA)
def test_what_chance_or_data_decided_is_in_our_file(base, start, tmp_path):
    ours, _ = trained(base, ALL[start])
    ours.save_pretrained(tmp_path)
    again = engine.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert again.load_report.complete
    for path, layer in ours.adapted.items():
        for key, tensor in layer.tensors("default").items():
            assert torch.equal(again.adapted[path].tensors("default")[key], tensor)
    close(logits(again), logits(ours))


def test_a_randomised_start_is_found_again_as_well_as_peft_finds_it(base, tmp_path):
    """PEFT's file does not say how the dice fell; both throw them again. Weights have main directions, as trained ones do: noise has none."""
    base = copy.deepcopy(base)
    with torch.no_grad():
        for p in (p for name, p in base.named_parameters() if name.endswith("_proj.weight")):
            U, S, Vh = torch.linalg.svd(p, full_matrices=False)
            p.copy_((U * S * 0.7 ** torch.arange(len(S))) @ Vh * 3)
    ours, theirs = trained(base, FROM_DATA["pissa_niter_8"])
    theirs.save_pretrained(tmp_path)
    again = engine.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert again.load_report.missing                          # said, not hidden
    own = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    truth = logits(theirs)
    assert (logits(again) - truth).abs().max() <= (logits(own) - truth).abs().max() + 1e-5
    torch.testing.assert_close(logits(again), truth, atol=1e-3, rtol=0)


def test_a_gradient_start_without_its_factors_belongs_to_the_residual_base(base, tmp_path):
    """So PEFT has it: its file is loaded onto the weights that its start left behind."""
    ours, theirs = trained(base, FROM_DATA["lora_ga"])
    theirs.save_pretrained(tmp_path)
    residual = copy.deepcopy(theirs).unload()
    again = engine.PeftModel.from_pretrained(residual, tmp_path)
    assert again.load_report.missing
    close(logits(again), logits(theirs))


@pytest.mark.parametrize("start", [name for name in ALL if name != "pissa-dora"])
def test_written_as_a_plain_lora_it_runs_anywhere(base, start, tmp_path):
    ours, _ = trained(base, ALL[start])
    before = dict(ours.stack.entries)
    as_plain_lora(ours, tmp_path)
    assert list(ours.peft_config) == ["default"] and dict(ours.stack.entries) == before
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["init_lora_weights"] is True and settings["r"] == 8
    for package in (engine, peft):
        close(logits(package.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)), logits(ours))


def test_written_as_a_plain_lora_only_if_there_is_one(base, tmp_path):
    ours, _ = trained(base, ALL["pissa-dora"])
    with pytest.raises(ValueError, match="low-rank"):
        as_plain_lora(ours, tmp_path)


# --- EVA ---

def batches():
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(6):
        ids, mask = torch.randint(0, 384, (4, 16), generator=generator), torch.ones(4, 16, dtype=torch.long)
        mask[0, 10:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": torch.where(ids < 350, ids, -100)})
    return made


@pytest.mark.parametrize("eva", [{"tau": 0.9}, {"rho": 1.0, "tau": 0.8, "use_label_mask": False},
                                 {"rho": 1.5, "tau": 0.9, "adjust_scaling_factors": False}], ids=["spread", "even", "unscaled"])
def test_eva_finds_the_same_directions_and_ranks(eva):
    model = make_model()
    settings = {"init_lora_weights": "eva", "eva_config": eva, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}
    ours, theirs = wrap(engine, model, settings), wrap(peft, model, settings)
    found, expected = (get(m, batches(), show_progress_bar=False) for get, m in ((get_eva_state_dict, ours), (peft.get_eva_state_dict, theirs)))
    assert {n: len(w) for n, w in found.items()} == {n: len(w) for n, w in expected.items()}
    for name in found:
        close(found[name], expected[name])
    initialize_lora_eva_weights(ours, batches(), show_progress_bar=False)
    peft.initialize_lora_eva_weights(theirs, eva_state_dict=expected)
    for name in ("rank_pattern", "alpha_pattern"):
        assert getattr(ours.peft_config["default"], name) == getattr(theirs.peft_config["default"], name)
    a, b = trainable(ours), trainable(theirs)
    assert a.keys() == b.keys()
    for name in a:
        close(a[name], b[name])
    assert torch.equal(logits(ours), logits(model))


def test_eva_on_a_plain_model_and_whitened():
    """PEFT whitens in place, so layers with the same input are whitened twice there; with one layer an input both are right."""
    model = make_model()
    settings = {"init_lora_weights": "eva", "eva_config": {"tau": 0.8, "whiten": True}, "target_modules": ["q_proj", "down_proj"]}
    found = get_eva_state_dict(copy.deepcopy(model), batches(), config(engine, settings), show_progress_bar=False)
    expected = peft.get_eva_state_dict(copy.deepcopy(model), batches(), config(peft, settings), show_progress_bar=False)
    assert found.keys() == expected.keys()
    for name in found:
        close(found[name], expected[name])
    settings["target_modules"] = ["q_proj", "k_proj"]         # the same input
    found = get_eva_state_dict(copy.deepcopy(model), batches(), config(engine, settings), show_progress_bar=False)
    q, k = (found[f"model.layers.0.self_attn.{name}_proj"] for name in "qk")
    shared = min(len(q), len(k))
    assert shared > 0
    assert torch.equal(q[:shared], k[:shared])


def test_eva_leaves_what_is_learned_whole_out_of_it():
    model = make_model(tied=False)
    settings = {"init_lora_weights": "eva", "eva_config": {"tau": 0.8}, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    ours = wrap(engine, model, settings)
    initialize_lora_eva_weights(ours, batches(), show_progress_bar=False)
    config = ours.peft_config["default"]
    assert config.modules_to_save == ["lm_head"]
    assert "lm_head" not in config.target_modules
    assert any("lm_head" in name for name in trainable(ours))
    assert ours.adapted["model.embed_tokens"].tensors("default")["lora_embedding_B"].any()
    assert torch.equal(logits(ours), logits(model))
