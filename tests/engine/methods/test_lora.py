"""LoRA's settings: what is refused, what goes together, what a file says; and LoftQ by dense arithmetic."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import engine
from engine import LoraConfig
from engine.errors import UnsupportedLayer
from engine.law import Factors
from engine.numerics.quantize import NF4, decompose, quantized
from engine.methods.registry import law
from engine.model.lora_calibrate import preprocess_corda, preprocess_loraga, replace_lora_weights_loftq
from engine.model.replication import replicate_layers
from tests.support.tiny import make_model, save_base


@pytest.mark.parametrize(("settings", "says"), [
    ({"r": 0}, "`r` should be a positive integer"),
    ({"init_lora_weights": "magic"}, "Unknown initialization"),
    ({"init_lora_weights": "pissa_niter_x"}, "Unknown initialization"),
    ({"init_lora_weights": "orthogonal", "r": 3}, "rank to be even"),
    ({"init_lora_weights": "orthogonal", "r": 4, "rank_pattern": {"q": 3}}, "rank to be even"),
    ({"r": 4, "rank_pattern": {"q": 0}}, "`rank_pattern` should be a positive integer"),
    ({"init_lora_weights": "loftq"}, "`loftq_config` must be specified"),
    ({"init_lora_weights": "lora_ga"}, "lora_ga_config"),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 3}}, "nf4 and int8"),
    ({"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}, "`rho` must be >= 1.0"),
    ({"init_lora_weights": "eva", "eva_config": {"tau": 1.5}}, "`tau` must be between"),
    ({"init_lora_weights": "corda", "corda_config": {"corda_method": "x"}}, "'ipm' or 'kpm'"),
    ({"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "up"}}, "`direction`"),
    ({"use_bdlora": {"target_modules_bd_a": ["q"], "target_modules_bd_b": ["q"]}}, "overlapping modules"),
    ({"velora_config": {"num_groups": 0}}, "`num_groups` should be positive"),
    ({"velora_config": {"init_type": "x"}}, "Unsupported `init_type`"),
    ({"monteclora_config": {"num_samples": 0}}, "`num_samples` must be greater than 0"),
    ({"monteclora_config": {}, "velora_config": {"num_groups": 2}}, "unsupported variant combination"),
    ({"alora_invocation_tokens": [1], "use_dora": True}, "unsupported variant combination"),
    ({"use_bdlora": {"nblocks": 2}, "init_lora_weights": "pissa"}, "unsupported variant combination"),
    ({"use_qalora": True, "use_bdlora": {"nblocks": 2}}, "unsupported variant combination"),
    ({"use_qalora": True, "lora_bias": True}, "unsupported variant combination"),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}, "use_dora": True}, "unsupported variant combination"),
    ({"lora_bias": True, "init_lora_weights": "gaussian"}, "only supported with init_lora_weights"),
    ({"lora_bias": True, "use_dora": True}, "not supported for DoRA"),
    ({"arrow_config": {"top_k": 0}}, "top_k"),
    ({"runtime_config": {"ephemeral_gpu_offload": True}}, "ephemeral_gpu_offload"),
], ids=lambda v: "·".join(map(str, v)) if isinstance(v, dict) else "")
def test_impossible_settings_are_refused_with_a_sentence(settings, says):
    with pytest.raises(ValueError, match=says):
        LoraConfig(**settings)


def test_a_bias_of_its_own_on_layers_that_have_none_and_not_on_words(tmp_path):
    torch.manual_seed(0)
    model = engine.get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True, init_lora_weights=False)).eval()
    ids = torch.arange(3, 9)[None]
    model.base_model.model.model.layers[0].self_attn.q_proj.tensors("default")["lora_B.bias"].data.fill_(0.3)
    model.stack.changed()
    running = model(ids).logits
    model.save_pretrained(tmp_path)
    again = engine.PeftModel.from_pretrained(make_model(), tmp_path)
    torch.testing.assert_close(again(ids).logits, running)
    again.merge_adapter()
    torch.testing.assert_close(again(ids).logits, running, atol=1e-5, rtol=1e-5)
    plain = again.unload()
    assert plain.model.layers[0].self_attn.q_proj.bias is None and torch.equal(plain(ids).logits, make_model()(ids).logits)
    with pytest.raises(UnsupportedLayer, match="can have a bias"):
        engine.get_peft_model(make_model(), LoraConfig(target_modules=["embed_tokens"], lora_bias=True))


def test_settings_within_settings_are_instances_dicts_or_nothing():
    with pytest.raises(TypeError, match="EvaConfig"):
        LoraConfig(init_lora_weights="eva", eva_config=[1])


@pytest.mark.parametrize("settings", [
    {"init_lora_weights": "eva"}, {"init_lora_weights": "corda"}, {"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "unit"}},
    {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8}}, {"use_bdlora": {"nblocks": 2}}, {"velora_config": {"num_groups": 3}},
    {"monteclora_config": {"num_samples": 3}}, {"init_lora_weights": "pissa_niter_4"}, {"use_qalora": True, "qalora_group_size": 4}])
def test_settings_come_back_from_their_file(settings, tmp_path):
    config = LoraConfig(**settings)
    config.calibration["layer"] = torch.ones(1)               # what data said is not a setting
    config.save_pretrained(tmp_path)
    assert "calibration" not in json.loads((tmp_path / "adapter_config.json").read_text())
    again = engine.PeftConfig.from_pretrained(tmp_path)
    assert again.to_dict() | {"inference_mode": False} == config.to_dict()
    assert type(again.use_bdlora) is type(config.use_bdlora)


def test_settings_of_another_start_are_told_not_used():
    with pytest.warns(UserWarning, match="`eva_config` specified but will be ignored"):
        LoraConfig(eva_config={"rho": 1.0})


@pytest.mark.parametrize(("settings", "says"), [
    ({"r": 9, "init_lora_weights": "pissa"}, "choose a smaller `r`"),
    ({"r": 9, "init_lora_weights": "mica"}, "choose a smaller `r`"),
    ({"r": 5, "init_lora_weights": "lora_ga", "lora_ga_config": {}}, "choose a smaller `r`"),
    ({"r": 4, "use_qalora": True, "qalora_group_size": 5}, "divisible by 'qalora_group_size'"),
    ({"r": 4, "use_bdlora": {"nblocks": 2}}, "matches neither A nor B"),
    ({"r": 3, "use_bdlora": {"target_modules_bd_a": ["0"], "nblocks": 2}}, "divisible by 2 blocks"),
])
def test_a_layer_that_cannot_carry_it_is_refused_and_left_alone(settings, says):
    model = nn.Sequential(nn.Linear(12, 8))
    with pytest.raises(ValueError, match=says):
        engine.get_peft_model(model, LoraConfig(target_modules=["0"], **settings))
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(("start", "says"), [("corda", "preprocess_corda"), ("lora_ga", "preprocess_loraga")])
def test_a_start_that_needs_data_says_so(start, says):
    config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=start, **{f"{start}_config": {}})
    with pytest.raises(ValueError, match=says):
        engine.get_peft_model(nn.Sequential(nn.Linear(12, 8)), config)


# --- data ---

def test_what_data_said_is_kept_in_files_and_the_model_stays_clean(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    model[0].weight.grad = torch.ones(5, 6)

    def run():
        y = model(torch.randn(30, 6))
        if y.requires_grad:
            y.pow(2).sum().backward()

    def config():
        return LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights="corda",
                          corda_config={"cache_file": str(tmp_path / "c" / "cache"), "covariance_file": str(tmp_path / "c" / "covariance")})

    first, second, third = config(), config(), config()
    preprocess_corda(model, first, run)
    preprocess_corda(model, second)        # from the cache
    (tmp_path / "c" / "cache").unlink()
    preprocess_corda(model, third)         # from the covariances
    for path in ("0", "1"):
        for name, tensor in first.calibration[path].items():
            assert torch.equal(second.calibration[path][name], tensor)
            torch.testing.assert_close(third.calibration[path][name], tensor)
    gradients = LoraConfig(r=2, target_modules=["1"], init_lora_weights="lora_ga", lora_ga_config={})
    model[0].weight.grad = torch.ones(5, 6)
    preprocess_loraga(model.eval(), gradients, run, str(tmp_path / "gradients"))
    again = copy.deepcopy(gradients)
    preprocess_loraga(model, again, lambda: pytest.fail("the gradients are in the file"), str(tmp_path / "gradients"))
    assert torch.equal(again.calibration["1"]["gradient"], gradients.calibration["1"]["gradient"])
    assert not model.training
    assert torch.equal(model[0].weight.grad, torch.ones(5, 6))
    assert model[1].weight.grad is None
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
    assert not any(module._forward_pre_hooks or module._backward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="run_model must be specified"):
        preprocess_corda(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights="corda"))
    with pytest.raises(ValueError, match="No gradient reached"):
        preprocess_loraga(model, copy.copy(gradients), lambda: None)


def test_lora_ga_is_for_linear_layers_and_others_begin_as_ever():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(3, 8, 1), nn.Flatten(), nn.Linear(8, 6)), torch.randn(4, 3, 1)
    config, expected = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights="lora_ga", lora_ga_config={}), model(x)
    preprocess_loraga(model, config, lambda: model(x).square().sum().backward())
    peft = engine.get_peft_model(model, config)
    torch.testing.assert_close(peft(x), expected)
    assert not peft.adapted["0"].tensors("default")["lora_B.weight"].any() and peft.adapted["2"].tensors("default")["lora_B.weight"].any()


def test_lora_ga_takes_no_direction_that_the_gradient_has_not():
    """The gradient of a sum has one direction: what is scaled to another one's size must not be the noise beside it."""
    for seed in range(6):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["0"], init_lora_weights="lora_ga", lora_ga_config={"direction": "random", "scale": "weight_svd"})
        config.calibration = {"0": {"gradient": torch.ones(10, 1) @ torch.randn(1, 10)}}
        factors = engine.get_peft_model(nn.Sequential(nn.Linear(10, 10)), config).adapted["0"].tensors("default")
        assert factors["lora_B.weight"].abs().max() < 100


# --- LoftQ ---

def test_nf4_takes_the_nearest_of_sixteen_values_in_each_block():
    torch.manual_seed(0)
    W = torch.randn(5, 50)                 # blocks run over the rows' ends, the last one is not full
    Q = quantized(W, 4)
    for block, taken in zip(W.flatten().split(64), Q.flatten().split(64)):
        scale = block.abs().max()
        nearest = torch.tensor(NF4)[(block[:, None] / scale - torch.tensor(NF4)).abs().argmin(1)] * scale
        torch.testing.assert_close(taken, nearest)
    assert torch.equal(quantized(torch.zeros(3, 4), 4), torch.zeros(3, 4))


def test_int8_is_within_half_a_step():
    W = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    step = W.abs().amax(1, keepdim=True) / 127
    assert ((quantized(W, 8) - W).abs() <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_starts_nearer_to_the_base_than_quantizing_does_and_leaves_it_alone(bits, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 16))
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["0"], init_lora_weights="loftq", loftq_config={"loftq_bits": bits, "loftq_iter": 3})
    ours = engine.get_peft_model(copy.deepcopy(base), config)
    W, x = base[0].weight.detach(), torch.randn(3, 24)
    Q, left, right = decompose(W, 4, bits, 3)
    torch.testing.assert_close(ours(x), x @ (Q + left @ right).T + base[0].bias)           # lora_alpha / r = 3 is in it, unlike in PEFT
    assert (Q + left @ right - W).norm() < (quantized(W, bits) - W).norm()
    with ours.disable_adapter():
        assert torch.equal(ours(x), base(x))
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    expected = ours(x)
    ours.save_pretrained(tmp_path)
    again = engine.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert again.load_report.complete
    torch.testing.assert_close(again(x), expected)
    again.merge_adapter()
    torch.testing.assert_close(again(x), expected)
    assert torch.equal(again.unload()[0].weight, W)


def test_what_a_quantized_base_lost_is_put_into_the_adapter(tmp_path):
    save_base(tmp_path)
    lossy = make_model()
    with torch.no_grad():
        for name, p in lossy.named_parameters():
            if "q_proj" in name or "v_proj" in name:
                p.copy_(quantized(p, 4))
    ours = engine.get_peft_model(lossy, LoraConfig(r=8, lora_alpha=4, target_modules=["q_proj", "v_proj", "o_proj"]))
    true, weight = make_model(), ours.adapted["model.layers.1.self_attn.v_proj"]

    def error():
        return (weight.compose() - true.get_submodule("model.layers.1.self_attn.v_proj").weight).norm()

    before, seen = error(), []
    replace_lora_weights_loftq(ours, str(tmp_path), callback=lambda model, path: seen.append(path) or "v_proj" in path)
    assert error() < 0.8 * before
    assert [path.rpartition(".")[2] for path in seen] == ["q_proj", "v_proj"] * 2          # o_proj lost nothing
    assert not ours.adapted["model.layers.0.self_attn.q_proj"].tensors("default")["lora_B.weight"].any()      # put back
    with pytest.raises(ValueError, match="No bnb LoRA module found"):
        replace_lora_weights_loftq(engine.get_peft_model(make_model(), LoraConfig(r=2)), str(tmp_path))


# --- layer replication ---

def test_replicated_layers_share_their_weights_and_go_away_again():
    model, ids = make_model(), torch.arange(12)[None]
    before, names = model(ids).logits, list(model.state_dict())
    undo = replicate_layers(model, [[0, 2], [1, 2]])
    assert model.config.num_hidden_layers == 3 == len(model.model.layers)
    assert model.model.layers[2].self_attn.q_proj.weight is model.model.layers[1].self_attn.q_proj.weight
    assert model.model.layers[2].self_attn.layer_idx == 2
    assert not torch.allclose(model(ids).logits, before)
    undo()
    assert list(model.state_dict()) == names
    assert torch.equal(model(ids).logits, before)
    assert model.config.num_hidden_layers == 2
    with pytest.raises(ValueError, match="Could not locate the layers"):
        replicate_layers(nn.Sequential(nn.Linear(2, 2)), [[0, 1]])
    with pytest.raises(ValueError, match="has 2"):
        replicate_layers(model, [[0, 3]])


def test_the_law_of_a_config_is_built_from_inside_out():
    config = LoraConfig(r=4, init_lora_weights="pissa", use_dora=True)
    assert type(law(config)).__name__ == "Dora"
    assert type(law(config).inner).__name__ == "FromBase"


@pytest.mark.parametrize("learned_scale, still_scale", [(2.0, -2.0), (1.0, -1.0), (0.0, -2.0), (0.0, 0.0)])
def test_what_learns_and_what_does_not_add_up_at_every_scale(learned_scale, still_scale):
    """At scale 0, too, as when a program has set a layer's ``scaling`` to 0."""
    A, B, C, D = torch.randn(2, 5), torch.randn(4, 2), torch.randn(3, 5), torch.randn(4, 3)
    both = Factors.of(Factors(A, B, learned_scale), Factors(C, D, still_scale))
    torch.testing.assert_close(both.scale * both.B @ both.A, learned_scale * B @ A + still_scale * D @ C)
