"""Quantized bases as a whole, in a tiny Llama that transformers packs with bitsandbytes."""

from __future__ import annotations

import copy

import bitsandbytes
import pytest
import torch
from torch import nn


from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402

from engine import LoftQConfig, LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training, replace_lora_weights_loftq  # noqa: E402
from engine.errors import UnsupportedLayer  # noqa: E402
from engine.hosts.quantized.host import Widened  # noqa: E402
from engine.hosts.quantized.protocol import backend_of  # noqa: E402
from engine.model.kbit import quantization_backend  # noqa: E402
from tests.support.tiny import save_base  # noqa: E402

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module", autouse=True)
def plain_order():
    """bitsandbytes as on most processors: on one with AVX512-BF16 its own layers go over to another order, and round, when they are evaluated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "wide", hidden=64, dtype="bfloat16", tied=False)


@pytest.fixture(params=[4, 8])
def bits(request):
    return request.param


def load(folder, bits: int):
    """As somebody does who knows nothing of this engine."""
    settings = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}, 8: {"load_in_8bit": True}}[bits]
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**settings)).eval()


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False, **more})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


def test_preparing_freezes_everything_and_widens_all_but_what_is_packed(folder, bits):
    model = load(folder, bits)
    packed = [name for name, p in model.named_parameters() if not p.is_floating_point()]
    assert prepare_model_for_kbit_training(model) is model
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for name, p in model.named_parameters() if name not in packed} == {torch.float32} and len(packed) == 14
    assert model.is_gradient_checkpointing
    assert not any(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in model.modules())
    peft = get_peft_model(model, lora())
    peft.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in peft.parameters() if p.requires_grad)


def test_checkpointing_gradients_is_a_choice(folder):
    assert not prepare_model_for_kbit_training(load(folder, 4), use_gradient_checkpointing=False).is_gradient_checkpointing
    model = prepare_model_for_kbit_training(load(folder, 4), gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing and model.model.layers[0]._gradient_checkpointing_func.keywords["use_reentrant"] is False


def test_a_model_that_is_not_quantized_is_frozen_and_widened_only(folder):
    model = prepare_model_for_kbit_training(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))
    assert not model.is_gradient_checkpointing and {p.dtype for p in model.parameters()} == {torch.float32}


def test_all_linear_sits_on_every_packed_layer_and_they_count_as_what_they_stand_for(folder, bits):
    peft = get_peft_model(load(folder, bits), lora())
    assert len(peft.adapted) == 14
    assert {quantization_backend(layer.base_layer) for layer in peft.adapted.values()} == {f"bnb {bits}bit"}
    whole = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora())
    assert peft.get_nb_trainable_parameters() == whole.get_nb_trainable_parameters()


def test_merged_models_can_be_written_and_read_again(folder, bits, tmp_path):
    peft = get_peft_model(load(folder, bits), lora())
    running = logits(peft)
    whole = peft.merge_and_unload()
    assert not any(backend_of(layer) for layer in whole.modules()) and sum(isinstance(layer, Widened) for layer in whole.modules()) == 14
    merged = logits(whole)
    assert (merged - running).norm() <= 0.05 * running.norm()
    whole.save_pretrained(tmp_path / "whole")                 # an ordinary model in 16 bits
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not hasattr(again.config, "quantization_config") and torch.equal(logits(again), merged)

    half = get_peft_model(load(folder, bits), lora(target_modules=["q_proj", "down_proj"])).merge_and_unload()
    merged = logits(half)
    half.save_pretrained(tmp_path / "half")                   # the other layers are still packed
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "half").eval()
    kinds = {path: backend_of(layer) is not None for path, layer in again.named_modules() if isinstance(layer, nn.Linear)}
    assert not kinds["model.layers.0.self_attn.q_proj"] and kinds["model.layers.0.self_attn.k_proj"]
    assert (logits(again) - merged).norm() <= 1e-6 * merged.norm()


def test_an_adapter_goes_from_a_packed_base_to_the_whole_one_and_back(folder, bits, tmp_path):
    packed = get_peft_model(load(folder, bits), lora())
    packed.save_pretrained(tmp_path)
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    for path, layer in packed.adapted.items():
        for key, tensor in layer.tensors("default").items():
            assert torch.equal(whole.adapted[path].tensors("default")[key], tensor)
    again = PeftModel.from_pretrained(load(folder, bits), tmp_path)
    assert (logits(again) - logits(packed)).norm() <= 0.05 * logits(packed).norm()
    with again.disable_adapter():
        assert torch.equal(logits(again), logits(load(folder, bits)))


def test_loftq_makes_up_for_what_four_bits_have_lost(folder):
    whole = logits(AutoModelForCausalLM.from_pretrained(folder))
    peft = get_peft_model(load(folder, 4), lora(init_lora_weights=True, r=16))
    before = (logits(peft) - whole).norm()
    replace_lora_weights_loftq(peft, folder)
    assert (logits(peft) - whole).norm() < 0.8 * before
    with pytest.raises(UnsupportedLayer, match="packed already"):
        get_peft_model(load(folder, 4), lora(init_lora_weights="loftq", loftq_config=LoftQConfig()))


def test_starts_from_the_weights_leave_a_packed_base_as_it_is(folder, bits):
    base = load(folder, bits)
    expected = logits(base)
    for start in ("pissa", "olora", "pissa_niter_2", "orthogonal"):
        peft = get_peft_model(copy.deepcopy(base), lora(init_lora_weights=start))
        assert (logits(peft) - expected).norm() <= 0.03 * expected.norm()
        assert torch.equal(logits(peft.unload()), expected)


def test_a_start_from_gradients_says_that_packed_weights_have_none(folder):
    from engine import LoraGAConfig, preprocess_loraga

    model = load(folder, 4)
    config = lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    with pytest.raises(ValueError, match="quantized"):
        preprocess_loraga(model, config, lambda: model(input_ids=IDS, labels=IDS).loss.backward())


def test_a_prompt_on_a_packed_base_goes_on_learning_after_an_evaluation(folder, monkeypatch):
    from engine import PromptTuningConfig

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    peft = get_peft_model(load(folder, 4), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    gradients = []
    for _ in range(2):
        peft.zero_grad()
        peft.train()(input_ids=IDS, labels=IDS).loss.backward()
        gradients += [p.grad.clone() for p in peft.parameters() if p.requires_grad]
        logits(peft.eval())
    assert gradients[0].any() and torch.equal(*gradients)
