"""`torch.nn.MultiheadAttention`: adapters on both projections against dense weights, through every path that torch takes."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine import IA3Config, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from engine.errors import UnsupportedLayer
from engine.hosts.parameter import AdaptedParameter, Read
from tests.support.one import One


class Net(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, **settings)

    def forward(self, x, **kwargs):
        return self.attn(x, x, x, **kwargs)[0]


def rig(*configs, base=None, **settings):
    """(peft model in float64 with adapters a0, a1 … of random effect, untouched copy of the base, input)."""
    torch.manual_seed(0)
    base = (Net(**settings) if base is None else base).double()
    before = copy.deepcopy(base).requires_grad_(False)        # as the adapted one: torch multiplies in another order where a weight learns
    for i, config in enumerate(configs):
        if i == 0:
            peft = get_peft_model(base, config, "a0", autocast_adapter_dtype=False)
        else:
            peft.add_adapter(f"a{i}", config, autocast_adapter_dtype=False)
    peft.set_adapter(list(peft.peft_config))
    return peft.eval(), before.eval(), torch.randn(3, 5, 8, dtype=torch.float64)


def attention(**settings) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, target_modules=["attn"], init_lora_weights=False, **settings)


def dense(before: nn.Module, peft: PeftModel, strengths: dict[str, float]) -> nn.Module:
    """The base with ΔW added once to each projection; PEFT 0.21.2 adds the output's twice (its pull request 3774)."""
    model = copy.deepcopy(before)
    with torch.no_grad():
        for name, strength in strengths.items():
            state = get_peft_model_state_dict(peft, adapter_name=name)
            p = {k.removeprefix("base_model.model.attn."): t for k, t in state.items()}
            model.attn.in_proj_weight += strength * 2 * p["lora_B.weight"] @ p["lora_A.weight"]
            model.attn.out_proj.weight += strength * 2 * p["base_layer.out_proj.lora_B.weight"] @ p["base_layer.out_proj.lora_A.weight"]
    return model


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("learning", [True, False])
def test_running_is_dense_arithmetic_and_so_is_merging(batch_first, bias, need_weights, learning):
    peft, before, x = rig(attention(), attention(), batch_first=batch_first, bias=bias)
    peft.set_adapter({"a0": 1.0, "a1": -0.5})
    expected = dense(before, peft, {"a0": 1.0, "a1": -0.5})(x, need_weights=need_weights)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x, need_weights=need_weights), expected)
        peft.stack.set_strength("a1", 0.25)                   # a slider is heard at once
        torch.testing.assert_close(peft(x), dense(before, peft, {"a0": 1.0, "a1": 0.25})(x))
        peft.stack.set_strength("a1", -0.5)
    peft.merge_adapter(["a1"])
    torch.testing.assert_close(peft(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(peft(x), expected)
    peft.unmerge_adapter()
    with peft.disable_adapter(), torch.no_grad():
        assert torch.equal(peft(x), before(x))
    merged = peft.merge_and_unload()
    assert list(merged.state_dict()) == list(before.state_dict())
    torch.testing.assert_close(merged(x), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("config", [lambda: LoraConfig(r=2, target_modules=["self_attn", "linear1"], init_lora_weights=False),
                                    lambda: IA3Config(target_modules=["linear1", "linear2"], feedforward_modules=["linear2"],
                                                      init_ia3_weights=False)])
def test_a_fused_encoder_hears_the_adapter(config, masked):
    """torch's encoder layer passes its weights to one kernel, past the forward of the attention and of the linear layers."""
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        def forward(self, x, mask=None):
            return self.encoder(x, src_key_padding_mask=mask)

    torch.manual_seed(0)
    peft, before, x = rig(config(), base=Encoder())
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]]) if masked else None
    expected = peft(x, mask)               # with gradients there is no fused path
    assert not torch.allclose(expected, before(x, mask))
    seen = slice(None) if mask is None else ~mask
    with torch.no_grad():
        torch.testing.assert_close(peft(x, mask)[seen], expected[seen])
        torch.testing.assert_close(peft.merge_and_unload()(x, mask)[seen], expected[seen])


def test_both_projections_learn_and_the_base_does_not():
    peft, before, x = rig(attention())
    own = peft.base_model.model.attn.bare
    peft.train()(x).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in peft.parameters() if p.requires_grad)
    trained = [n for n, p in peft.named_parameters() if p.requires_grad]
    assert len(trained) == 4 and own.in_proj_weight.grad is None and isinstance(own.in_proj_weight, nn.Parameter)
    assert torch.equal(peft.unload()(x), before(x))


def test_a_failing_forward_leaves_the_modules_own_weights():
    peft, _, x = rig(attention())
    own = peft.base_model.model.attn.bare
    weight = own.in_proj_weight
    with pytest.raises(AssertionError):
        peft(x[..., :3])
    assert own.in_proj_weight is weight


def test_the_output_projection_alone():
    peft, before, x = rig(LoraConfig(r=2, lora_alpha=4, target_modules=["out_proj"], init_lora_weights=False))
    layer = peft.base_model.model.attn.out_proj
    assert isinstance(layer, Read)
    p = layer.tensors("a0")
    model = copy.deepcopy(before)
    with torch.no_grad():
        model.attn.out_proj.weight += 2 * p["lora_B.weight"] @ p["lora_A.weight"]
    torch.testing.assert_close(peft(x), model(x))              # PEFT ignores it here
    assert set(get_peft_model_state_dict(peft, adapter_name="a0")) == {f"base_model.model.attn.out_proj.lora_{k}.weight" for k in "AB"}
    peft.add_adapter("both", attention(), autocast_adapter_dtype=False)        # another adapter on the whole attention
    peft.set_adapter(["a0", "both"])
    running = peft(x)
    assert set(get_peft_model_state_dict(peft, adapter_name="a0")) == {f"base_model.model.attn.out_proj.lora_{k}.weight" for k in "AB"}
    torch.testing.assert_close(peft.merge_and_unload()(x), running)


def test_dora_and_a_learned_bias_sit_on_it_too():
    for config in (attention(use_dora=True), attention(lora_bias=True)):
        peft, before, x = rig(config)
        with torch.no_grad():
            for layer in peft.adapted.values():
                for tensor in layer.tensors("a0").values():
                    tensor.add_(torch.randn_like(tensor) * 0.1)
        peft.stack.changed()
        running = peft(x)
        with torch.no_grad():
            torch.testing.assert_close(peft(x), running)
        torch.testing.assert_close(peft.merge_and_unload()(x), running)


def test_dropout_acts_in_training_only():
    peft, before, x = rig(attention(lora_dropout=0.5))
    torch.testing.assert_close(peft(x), dense(before, peft, {"a0": 1.0})(x))
    assert not torch.allclose(peft.train()(x), peft(x))


def test_adapters_are_combined_into_one():
    peft, before, x = rig(attention(), attention())
    peft.add_weighted_adapter(["a0", "a1"], [0.5, 2.0], "both", "cat")
    peft.set_adapter({"a0": 0.5, "a1": 2.0})
    expected = peft(x)
    peft.set_adapter("both")
    torch.testing.assert_close(peft(x), expected, atol=1e-6, rtol=1e-5)
    assert peft.peft_config["both"].target_modules == ["attn"]


def test_files_come_back(tmp_path):
    peft, before, x = rig(attention())
    expected = peft(x)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(before, tmp_path / "a0")
    assert again.load_report.complete
    torch.testing.assert_close(again(x), expected)
    assert isinstance(again.base_model.model.attn, AdaptedParameter)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_of_different_widths_are_adapted_by_the_names_of_their_weights(bias, tmp_path):
    names = [f"attn.{each}_proj_weight" for each in "qkv"]

    class Apart(Net):
        def forward(self, x):
            return self.attn(x, x[..., :6], x[..., 4:])[0]

    config = LoraConfig(r=2, lora_alpha=4, target_parameters=names, init_lora_weights=False)
    peft, before, x = rig(config, base=Apart(kdim=6, vdim=4, bias=bias, batch_first=True))
    merged = copy.deepcopy(before)
    for name in names:
        p, weight = peft.adapted[name].tensors("a0"), getattr(merged.attn, name.removeprefix("attn."))
        weight.data += 2 * p["lora_B.weight"] @ p["lora_A.weight"]
    expected = merged(x)
    torch.testing.assert_close(peft(x), expected)
    peft.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "a0", autocast_adapter_dtype=False)(x), expected)
    peft.merge_adapter()
    torch.testing.assert_close(peft(x), expected)
    peft.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(peft.unload().parameters(), before.parameters(), strict=True))


def test_what_cannot_be_is_said():
    with pytest.raises(UnsupportedLayer, match="Only same embed for query/key/value"):
        rig(attention(), kdim=4, vdim=4)
    with pytest.raises(UnsupportedLayer, match="only read"):
        rig(IA3Config(target_modules=["attn"], feedforward_modules=[]))
    peft, _, x = rig(attention())
    with pytest.raises(ValueError, match="mixed adapter batches"):
        peft(x, adapter_names=["a0", "__base__", "a0"])


@pytest.mark.parametrize("change", [
    lambda held, name: held[name].mul_(2), lambda held, name: setattr(held[name], "data", held[name].data * 2),
    lambda held, name: held.update({name: nn.Parameter(held[name] * 2)})], ids=["written", "given data", "put another"])
@torch.no_grad()
def test_what_is_read_is_made_of_what_the_tensors_are_now(change):
    config = LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False, inference_mode=True)
    peft, x = get_peft_model(One(nn.MultiheadAttention(6, 2)), config).eval(), torch.randn(3, 1, 6)
    before = peft(x, x, x)[0]
    for layer in peft.adapted.values():
        for held, name in layer.places("default").values():
            change(held, name)
    after = peft(x, x, x)[0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(copy.deepcopy(peft)(x, x, x)[0], after)
    peft.stack.changed()
    torch.testing.assert_close(peft(x, x, x)[0], after)


@pytest.mark.parametrize("kind", ["all", "lora_only"])
def test_its_biases_are_learned_as_those_of_other_layers(kind, tmp_path):
    peft, before, x = rig(attention(bias=kind))
    learned = {key: t for key, t in peft.named_parameters() if key.endswith("own.a0.bias")}
    assert len(learned) == (sum(key.endswith("bias") for key in before.state_dict()) if kind == "all" else 2)
    torch.testing.assert_close(peft(x), dense(before, peft, {"a0": 1.0})(x))                  # they begin as they were
    peft(x).square().sum().backward()
    assert all(t.grad.any() for t in learned.values())
    with torch.no_grad():
        for t in learned.values():
            t += torch.randn_like(t)
    model = dense(before, peft, {"a0": 1.0})
    with torch.no_grad():
        for path, layer in peft.adapted.items():
            if "own.bias" in layer.tensors("a0"):
                model.get_parameter(layer.host.names(path)[1]).copy_(layer.tensors("a0")["own.bias"])
    expected = model(x)
    torch.testing.assert_close(peft(x), expected)
    peft.save_pretrained(tmp_path)
    state = load_file(tmp_path / "a0" / "adapter_model.safetensors")
    assert {"base_model.model.attn.base_layer.in_proj_bias", "base_model.model.attn.base_layer.out_proj.base_layer.bias"} < state.keys()
    torch.testing.assert_close(PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "a0", autocast_adapter_dtype=False)(x), expected)
    peft.merge_adapter()
    torch.testing.assert_close(peft(x), expected)
    peft.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(peft.unload().parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"modules_to_save": ["norm1", "norm2"]}], ids=["biases", "norms"])
def test_a_layer_that_runs_as_one_kernel_reads_what_was_learned(settings):
    torch.manual_seed(0)
    base = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    count, x = sum(key.endswith("bias") for key in base.state_dict()), torch.randn(2, 5, 8)
    peft = get_peft_model(base, LoraConfig(r=2, target_modules=["linear1", "linear2", "self_attn"], init_lora_weights=False, **settings)).eval()
    learned = [t for key, t in peft.named_parameters() if t.requires_grad and ".lora_" not in key]
    assert len(learned) == (count if "bias" in settings else 8)
    with torch.no_grad():
        for t in learned:
            t += torch.randn_like(t)
    for strength in (1.0, 0.5):
        peft.set_adapter({"default": strength})
        step_by_step = peft(x)
        with torch.no_grad():
            torch.testing.assert_close(peft(x), step_by_step)
