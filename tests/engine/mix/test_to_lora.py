"""Adapters as LoRAs by their laws: with all of its rank it is the adapter, and the error that is stated is the one that is made."""

from __future__ import annotations

import copy
import json
import math
import warnings

import pytest
import torch
from torch import nn

import engine
from engine import LoraConfig, PeftModel, get_peft_model
from engine.errors import UnsupportedLayer
from engine.mix.spectrum import dense, thin
from engine.mix.to_lora import convert_to_lora, to_lora
from tests.engine.test_laws import LAYERS, METHODS, carries, close, rig
from tests.support.tiny import make_model

KINDS = ("lora", "dora", "hira", "loha", "ia3", "oft", "boft", "vera", "outsider")
ROWS = [(method, "linear") for method in METHODS] + [(method, layer) for method in KINDS for layer in LAYERS if layer != "linear"]
rows = pytest.mark.parametrize(("method", "layer"), [row for row in ROWS if carries(*row)], ids=lambda value: value)


def dense_change(peft, name: str, path: str = "first") -> torch.Tensor:
    """ΔW of one adapter, as wide as all groups of a convolution."""
    layer = peft.adapted[path]
    W = layer.host.canonical(layer.compose_both(names=[name])[0])
    return W - layer.host.alike(layer.canonical(), W)[0]


def beside(peft, made) -> None:
    """Let the LoRA in, as from a file, beside what it was made of."""
    report = peft.tuner.admit("as-lora", made.config, trainable=False, file=made.tensors)
    assert report.complete and not report.unexpected, report.sentence()


def loaded(made, base, folder) -> PeftModel:
    made.save(folder)
    again = PeftModel.from_pretrained(copy.deepcopy(base), folder, "as-lora")
    assert again.load_report.complete and not again.load_report.unexpected, again.load_report.sentence()
    return again


@rows
def test_with_all_of_its_rank_it_is_the_adapter_at_any_strength(method, layer):
    peft, x, before = rig(method, layer, torch.float64, adapters=1)
    peft.stack.arrange({"a0": 0.7})
    expected = peft(x)
    made = to_lora(peft, "a0", error=0.0)
    assert made.error < 1e-12
    beside(peft, made)
    peft.stack.arrange({"as-lora": 0.7})
    close(peft(x), expected, torch.float64)


@pytest.mark.parametrize(("method", "layer"), [row for row in ROWS if row[0] in KINDS and carries(*row)], ids=lambda value: value)
def test_the_stated_error_is_the_one_that_is_made(method, layer):
    peft, x, _ = rig(method, layer, torch.float64, adapters=1)
    made = to_lora(peft, "a0", rank=2)
    beside(peft, made)
    for path, at in zip(peft.adapted, made.layers, strict=True):
        wanted, got = dense_change(peft, "a0", path), dense_change(peft, "as-lora", path)
        wanted = peft.adapted[path].host.alike(wanted, got)[0]
        assert at.lost == pytest.approx(float((wanted - got).norm()), abs=1e-9)
        assert at.whole == pytest.approx(float(wanted.norm()), abs=1e-9)
        assert at.error <= 1 + 1e-12
    assert made.error == pytest.approx(math.hypot(*(at.lost for at in made.layers)) / math.hypot(*(at.whole for at in made.layers)))


@pytest.mark.parametrize("method", ["loha", "dora", "oft", "fourierft"])
def test_it_is_the_nearest_of_its_rank_and_the_smallest_of_its_error(method):
    peft, _, _ = rig(method, "linear", torch.float64, adapters=1)
    S = torch.linalg.svdvals(dense_change(peft, "a0"))
    for rank in (1, 3):
        assert to_lora(peft, "a0", rank=rank).error == pytest.approx(float(S[rank:].norm() / S.norm()), abs=1e-9)
    for error in (0.5, 0.1):
        rank = to_lora(peft, "a0", error=error).layers[0].rank
        assert S[rank:].norm() <= error * S.norm() < S[rank - 1:].norm()


def test_every_layer_keeps_to_the_error():
    model = get_peft_model(make_model(), engine.LoKrConfig(r=4, target_modules="all-linear", init_weights=False))
    made = to_lora(model, error=0.3)
    assert len({layer.rank for layer in made.layers}) > 1 and len(made.layers) == 14
    assert all(layer.error <= 0.3 for layer in made.layers) and made.error <= 0.3
    assert made.config.rank_pattern == made.config.alpha_pattern and "LoRA of rank" in made.sentence()
    assert to_lora(model, rank=1000).layers[0].rank == 48     # no layer has more directions than it is wide


def test_factors_are_kept_exactly_and_their_rank_can_be_reduced():
    model = get_peft_model(make_model(), LoraConfig(r=6, lora_alpha=3, target_modules=["q_proj"], use_rslora=True, init_lora_weights=False))
    made = to_lora(model)
    assert made.config.r == made.config.lora_alpha == 6 and not made.config.use_rslora and made.error == 0
    assert 0 < to_lora(model, rank=2).error < 1
    with pytest.raises(ValueError, match="low-rank form"):
        to_lora(get_peft_model(make_model(), engine.HiraConfig(r=2, target_modules=["q_proj"])))


def test_few_of_many_directions_are_searched_and_the_loss_is_measured():
    torch.manual_seed(0)
    smooth = torch.randn(300, 300) @ torch.diag(0.8 ** torch.arange(300)) @ torch.randn(300, 400)
    whole = dense(smooth)
    for found in (dense(smooth, rank=8), dense(smooth, error=0.1)):
        rank = len(found.S) - 10
        A, B = found.cut(rank)
        lost = float(found.lost[rank].sqrt())
        assert lost == pytest.approx(float((smooth - B @ A).norm()), rel=1e-3)
        assert lost == pytest.approx(float(whole.lost[rank].sqrt()), rel=1e-2) and len(found.S) < 300
    A, B = torch.randn(5, 400), torch.randn(300, 5)
    torch.testing.assert_close(thin(A, B).S, torch.linalg.svdvals(B @ A)[:5], rtol=1e-4, atol=1e-3)


# --- what an adapter brings along ---

IDS = torch.arange(24).reshape(2, 12) % 300


@pytest.mark.parametrize("more", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"bias": "lora_only", "target_modules": ["q_proj", "down_proj"]},
                                  {"trainable_token_indices": [3, 5]}, {"modules_to_save": ["norm"], "layers_to_transform": [1]}],
                         ids=["module", "biases", "own-biases", "words", "norm"])
def test_what_is_brought_along_comes_along(more, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=384, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                        attention_bias=True, tie_word_embeddings=False)).eval()
    peft = get_peft_model(copy.deepcopy(base), LoraConfig(**{"r": 3, "target_modules": ["q_proj"], "use_dora": True, "init_lora_weights": False,
                                                             **more})).eval()
    with torch.no_grad():
        for p in peft.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    peft.stack.changed()
    made = to_lora(peft, error=0.0)
    again = loaded(made, base, tmp_path).eval()
    torch.testing.assert_close(again(IDS).logits, peft(IDS).logits, atol=2e-5, rtol=0)


def test_a_bias_becomes_a_bias(tmp_path):
    for layers, expected in (((True, True), {"lora_bias": True, "bias": "none"}), ((True, False), {"lora_bias": False, "bias": "lora_only"})):
        torch.manual_seed(1)
        base = nn.Sequential(*[nn.Linear(6, 6, bias=has) for has in layers])
        peft = get_peft_model(copy.deepcopy(base), engine.IA3Config(target_modules=["0", "1"], feedforward_modules=[], init_ia3_weights=False))
        x = torch.randn(4, 6)
        again = loaded(made := to_lora(peft, error=0.0), base, tmp_path)
        torch.testing.assert_close(again(x), peft(x), atol=1e-5, rtol=0)
        settings = json.loads((tmp_path / "adapter_config.json").read_text())
        assert {name: settings[name] for name in expected} == expected and made.error < 1e-6


def test_attention_and_experts(tmp_path):
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.experts = nn.ParameterDict({"up": nn.Parameter(torch.randn(3, 5, 8))})

        def forward(self, x):
            return torch.einsum("bti,eoi->bteo", self.attention(x, x, x)[0], self.experts.up)

    base = Model()
    x = torch.randn(2, 4, 8)
    for settings in ({"target_modules": ["attention"], "use_dora": False}, {"target_parameters": ["experts.up"], "target_modules": []}):
        peft = get_peft_model(copy.deepcopy(base), LoraConfig(r=3, init_lora_weights=False, **settings))
        for made in (to_lora(peft, error=0.0), to_lora(peft, rank=2)):
            again = loaded(made, base, tmp_path)
            if made.error < 1e-6:
                torch.testing.assert_close(again(x), peft(x), atol=1e-5, rtol=0)
            else:
                assert made.config.r == 2 and made.error < 1


# --- what cannot be ---

@pytest.mark.parametrize("config", [engine.LNTuningConfig(target_modules=["norm"]),
                                    LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[1], task_type="CAUSAL_LM")])
def test_what_is_no_change_of_a_weight_is_refused(config):
    model = get_peft_model(make_model(), config)
    with pytest.raises(UnsupportedLayer, match="cannot become a LoRA"):
        to_lora(model, rank=2)
    with warnings.catch_warnings(), pytest.raises(TypeError):
        warnings.simplefilter("ignore")    # that it is a LoRA already
        convert_to_lora(model, 2)


@pytest.mark.parametrize("call", [{"rank": 1, "error": 0.1}, {"rank": 0}, {"error": 1.0}, {"error": -0.1}, {"adapter_name": "nobody", "rank": 1}])
def test_what_makes_no_sense_is_said(call):
    with pytest.raises(ValueError):
        to_lora(get_peft_model(make_model(), make_lora()), **call)


def make_lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj"])
