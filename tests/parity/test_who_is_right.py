"""Where we differ from PEFT on purpose, by arithmetic that needs neither of the two. What PEFT says is written down beside it.

`tests.parity.differences` names these tests as its reasons.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model, T5Config, T5ForConditionalGeneration

import engine
from tests.support.tiny import make_model

BOTH = {"ours": engine, "peft's": peft}


class Two(nn.Module):
    """Two layers, one after the other."""

    def __init__(self, first: nn.Module, second: nn.Module | None = None):
        super().__init__()
        self.first, self.second = first, second or nn.Identity()

    def forward(self, x):
        return self.second(self.first(x))


def built(package, base: nn.Module, *configs, mixed: bool = False):
    """A model with the adapters a0, a1 … of random effect, in eval mode, equal for both packages."""
    torch.manual_seed(1)
    model = package.get_peft_model(copy.deepcopy(base), configs[0](package), "a0", mixed=mixed)
    for number, config in enumerate(configs[1:], 1):
        model.add_adapter(f"a{number}", config(package))
    return model.eval()


def heard(model, *names: str) -> None:
    """Make these active (in PEFT the model underneath takes several)."""
    (model.base_model if hasattr(model.base_model, "set_adapter") else model).set_adapter(list(names))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def line(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return Two(nn.Linear(width, width))


def test_two_deltas_add():
    """C3A: ``y = W0·x + ΔW₀·x + ΔW₁·x``. In PEFT the second one gets what the first one gave."""
    config = lambda package: package.C3AConfig(block_size=4, init_weights=False, target_modules=["first"])  # noqa: E731
    x, found = torch.randn(5, 8), {}
    for who, package in BOTH.items():
        model = built(package, line(), config, config)
        outputs = []
        for names in (["a0"], ["a1"], ["a0", "a1"]):
            heard(model, *names)
            outputs.append(model(x).detach())
        base = line()(x)
        found[who] = gap(outputs[2] - base, outputs[0] - base + outputs[1] - base)
    assert found["ours"] < 1e-5 < 0.1 < found["peft's"]


def test_an_identity_is_one_on_convolutions():
    """OFT starts as the identity. In PEFT, overlapping patches of a kernel are added up."""
    torch.manual_seed(0)
    base, x, found = Two(nn.Conv2d(4, 4, 3)), torch.randn(1, 4, 6, 6), {}
    for who, package in BOTH.items():
        model = built(package, base, lambda package: package.OFTConfig(oft_block_size=4, target_modules=["first"]))
        found[who] = gap(model(x), base(x))
    assert found["ours"] < 1e-6 < 0.1 < found["peft's"]


def test_merged_is_what_ran():
    """Two turns of a weight, in the order that ran. PEFT merges them in the other one."""
    config = lambda package: package.OFTConfig(oft_block_size=4, init_weights=False, target_modules=["first"])  # noqa: E731
    x, found = torch.randn(5, 8), {}
    for who, package in BOTH.items():
        model = built(package, line(), config, config)
        heard(model, "a0", "a1")
        ran = model(x).detach()
        found[who] = gap(model.merge_and_unload()(x), ran)
    assert found["ours"] < 1e-5 < 1e-3 < found["peft's"]


def test_combining_leaves_the_base_alone():
    """PiSSA keeps a start beside its factors: combining it changes nothing in the model. In PEFT the base has lost its main directions since."""
    torch.manual_seed(0)
    base, x = Two(nn.Linear(8, 8)), torch.randn(5, 8)
    config = lambda package: package.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["first"])  # noqa: E731
    found = {}
    for who, package in BOTH.items():
        model = built(package, base, config)
        model.add_weighted_adapter(["a0"], [1.0], "sum", combination_type="cat")
        found[who] = gap(model.unload()(x), base(x))
    assert found["ours"] == 0 < 0.01 < found["peft's"]


def test_words_keep_the_bias():
    """Rows that are not touched give what they gave. PEFT's trainable rows of a linear layer forget its bias."""
    base, x, found = line(), torch.randn(5, 8), {}
    for who, package in BOTH.items():
        model = built(package, base, lambda package: package.TrainableTokensConfig(token_indices=[1], target_modules=["first"]))
        found[who] = gap(model(x), base(x))
    assert found["ours"] < 1e-6 < 0.01 < found["peft's"]


def test_replicated_layers_merge_once_each():
    """Two places share W0 and have ΔW₀ and ΔW₁: merged, each has its own sum. PEFT adds both to the one weight."""
    base, ids, found = make_model(tied=False), torch.arange(6)[None], {}
    for who, package in BOTH.items():
        model = built(package, base, lambda package: package.LoraConfig(
            r=2, init_lora_weights=False, target_modules=["q_proj"], layer_replication=[[0, 1], [0, 2]]))
        ran = model(ids).logits.detach()
        model.merge_adapter()
        found[who] = gap(model(ids).logits.detach(), ran)
    assert found["ours"] < 1e-4 < 1e-3 < found["peft's"]


def test_switching_off_for_a_moment_trains_nothing_afterwards():
    """What was frozen stays frozen. PEFT lets the active adapter train after the block."""
    found = {}
    for who, package in BOTH.items():
        model = built(package, line(), lambda package: package.LoraConfig(r=2, target_modules=["first"]))
        model.set_requires_grad("a0", False)
        with model.disable_adapter():
            pass
        found[who] = any(p.requires_grad for p in model.parameters())
    assert found == {"ours": False, "peft's": True}


def test_what_layers_share_is_stored_once(tmp_path):
    """RandLoRA's fixed bases belong to all layers. PEFT writes them once more for each layer."""
    torch.manual_seed(0)
    base, sizes = Two(nn.Linear(8, 8), nn.Linear(8, 8)), {}
    for who, package in BOTH.items():
        model = built(package, base, lambda package: package.RandLoraConfig(r=2, init_weights=False, target_modules=["first", "second"]))
        model.save_pretrained(tmp_path / who)
        tensors = load_file(tmp_path / who / "a0" / "adapter_model.safetensors")
        sizes[who] = sum("randlora_A" in key or "randlora_B" in key for key in tensors)
    assert sizes["ours"] == 2 < sizes["peft's"]


def test_a_weighted_sum_does_what_its_parts_do():
    """IA³: ``y = (1 + Σ weight · (l − 1)) ∘ y0``, what the stack says too. PEFT's Σ weight · l also scales what nobody changed."""
    config = lambda package: package.IA3Config(init_ia3_weights=False, target_modules=["first"], feedforward_modules=[])  # noqa: E731
    x, found = torch.randn(5, 8), {}
    for who, package in BOTH.items():
        model = built(package, line(), config, config)
        base, alone = line()(x), []
        for name in ("a0", "a1"):
            heard(model, name)
            alone.append(model(x).detach() - base)
        model.add_weighted_adapter(["a0", "a1"], [0.5, 1.5], "sum")
        heard(model, "sum")
        found[who] = gap(model(x), base + 0.5 * alone[0] + 1.5 * alone[1])
    assert found["ours"] < 1e-5 < 0.1 < found["peft's"]


# --- refusals of PEFT's that are not needed ---

def test_copies_of_a_module_add_as_deltas_do():
    """``W = W0 + Σ strength · (W' − W0)``, biases alike. PEFT refuses a second one (`modules_to_save`, learned biases)."""
    model = built(engine, line(), *[lambda package: package.LoraConfig(r=2, target_modules=["first"], bias="all")] * 2)
    layer, x = model.adapted["first"], torch.randn(5, 8)
    with torch.no_grad():
        for number, name in enumerate(("a0", "a1"), 1):
            layer.tensors(name)["own.bias"].add_(number)
    model.set_adapter({"a0": 1.0, "a1": 0.5})
    torch.testing.assert_close(model(x), line()(x) + 1.0 + 0.5 * 2)
    model = built(engine, Two(nn.Linear(8, 8), nn.Linear(8, 8)), *[
        lambda package: package.LoraConfig(r=2, target_modules=["first"], modules_to_save=["second"])] * 2)
    head = model.adapted["second"]
    with torch.no_grad():
        for number, name in enumerate(("a0", "a1"), 1):
            head.tensors(name)["modules_to_save.bias"].add_(number)
    model.set_adapter(["a0"])
    alone = model(x).detach()
    model.set_adapter({"a0": 1.0, "a1": -0.5})
    torch.testing.assert_close(model(x), alone - 0.5 * 2)


@pytest.mark.parametrize("kind", ["VeraConfig", "PveraConfig", "RandLoraConfig", "FrodConfig"])
def test_projections_of_other_seeds_stand_beside_one_another(kind):
    """Every adapter has its own. PEFT refuses a second adapter with another seed."""
    config = lambda seed: lambda package: getattr(package, kind)(  # noqa: E731
        target_modules=["first"], init_weights=False, projection_prng_key=seed)
    model, x = built(engine, line(), config(0), config(1)), torch.randn(5, 8)
    base, alone = line()(x), []
    for name in ("a0", "a1"):
        model.set_adapter(name)
        alone.append(model(x) - base)
    model.set_adapter(["a0", "a1"])
    torch.testing.assert_close(model(x), base + sum(alone), atol=1e-5, rtol=1e-5)
    assert gap(*alone) > 1e-3


def test_a_prompt_can_be_taken_away():
    """The base comes back, to the bit. PEFT has no `unload` for prompts."""
    base, ids = make_model(), torch.arange(6)[None]
    expected = base(ids).logits
    model = built(engine, base, lambda package: package.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert gap(model(ids).logits[:, -6:], expected) > 1e-4
    assert torch.equal(model.unload()(ids).logits, expected)


def test_whether_a_prompt_learns_can_be_switched():
    """Only what is switched on has a gradient. PEFT has no such switch for prompts."""
    config = lambda package: package.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")  # noqa: E731
    model, ids = built(engine, make_model(), config), torch.arange(6)[None]
    for on in (False, True):
        model.set_requires_grad("a0", on)
        assert model(ids).logits.requires_grad == any(p.requires_grad for p in model.parameters()) == on
    with pytest.raises(TypeError, match="not supported for prompt learning"):
        built(peft, make_model(), config).set_requires_grad("a0")


def test_a_prefix_that_nobody_would_hear_is_refused():
    """DeBERTa has no cache that a prefix could be put into. PEFT's model takes one all the same and says what the base says, to the bit."""
    torch.manual_seed(0)
    base, ids = DebertaV2Model(DebertaV2Config(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
                               ).eval(), torch.arange(6)[None]
    config = lambda package: package.PrefixTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION")  # noqa: E731
    theirs = built(peft, base, config)
    nn.init.normal_(theirs.prompt_encoder["a0"].embedding.weight, std=9.0)
    assert torch.equal(theirs(inputs_embeds=base.get_input_embeddings()(ids))[0], base(ids)[0])
    with pytest.raises(ValueError, match="does not support past key values"):
        built(engine, base, config)(input_ids=ids)


def test_a_bias_is_merged_into_a_layer_that_has_none():
    """``(W0 + s·B·A)·x + s·b``: there is no number that the merged layer could not hold. PEFT warns when it is made and refuses to merge."""
    config, base, x = lambda package: package.LoraConfig(r=2, lora_bias=True, init_lora_weights=False, target_modules=["first"]), line(), \
        torch.randn(5, 8)  # noqa: E731
    base.first.bias = None
    for name, package in BOTH.items():
        with nullcontext() if name == "ours" else pytest.warns(UserWarning, match="has no bias"):
            model = built(package, base, config)
        nn.init.normal_(model.base_model.model.first.lora_B["a0"].bias)
        expected = model(x)
        if name == "ours":
            model.merge_adapter()
            assert gap(model.base_model.model.first.base_layer(x), expected) < 1e-5
            model.unmerge_adapter()
            assert model.base_model.model.first.base_layer.bias is None and torch.equal(model(x), expected)
        else:
            with pytest.raises(RuntimeError, match="Impossible to merge"):
                model.merge_adapter()


def test_adaloras_learn_beside_one_another():
    """Two in one stack, both with gradients and a schedule. PEFT refuses the second; and it lets one learn that is made for inference."""
    settings = {"target_modules": ["first"], "init_r": 4, "target_r": 2, "total_step": 4, "init_lora_weights": False}
    model = built(engine, line(), lambda package: package.AdaLoraConfig(**settings), lambda package: package.AdaLoraConfig(**settings))
    heard(model, "a0", "a1")
    model(torch.randn(5, 8)).square().sum().backward()
    for step in (1, 2, 3, 4):
        model.on_step(step)
    for name in ("a0", "a1"):
        assert all(p.grad is not None for key, p in model.named_parameters() if p.requires_grad and key.endswith(name))
        assert (model.adapted["first"].tensors(name)["lora_E"] != 0).sum() == 2
    with pytest.raises(ValueError, match="only 1 trainable adapter"):
        built(peft, line(), lambda package: package.AdaLoraConfig(**settings), lambda package: package.AdaLoraConfig(**settings))
    still = built(engine, line(), lambda package: package.AdaLoraConfig(**settings, inference_mode=True))
    heard(still, "a0")
    assert not any(p.requires_grad for p in still.parameters())


def test_a_batch_may_hold_a_dora():
    """Each sample through its own adapter says what the adapter says alone. PEFT refuses DoRA there."""
    plain = lambda package: package.LoraConfig(r=2, init_lora_weights=False, target_modules=["first"])  # noqa: E731
    dora = lambda package: package.LoraConfig(r=2, init_lora_weights=False, use_dora=True, target_modules=["first"])  # noqa: E731
    model, x, alone = built(engine, line(), plain, dora), torch.randn(4, 8), {}
    for name in ("a0", "a1"):
        heard(model, name)
        alone[name] = model(x)
    names = ["a1", "a0", "a1", "__base__"]
    expected = torch.stack([line()(x)[i] if name == "__base__" else alone[name][i] for i, name in enumerate(names)])
    assert gap(model(x, adapter_names=names), expected) < 1e-5
    with pytest.raises(ValueError, match="when DoRA is enabled"):
        built(peft, line(), plain, dora)(x, adapter_names=names)


def test_a_bank_stands_above_the_layers():
    """VB-LoRA's vectors are one tensor, whichever layers use it. PEFT's names say that it is the first one's."""
    config = lambda package: package.VBLoRAConfig(target_modules=["first", "second"], num_vectors=8, vector_length=4)  # noqa: E731
    names = {who: [name for name, _ in built(package, Two(nn.Linear(8, 8), nn.Linear(8, 8)), config).named_parameters() if "bank" in name]
             for who, package in BOTH.items()}
    assert names == {"ours": ["base_model.vblora_vector_bank.a0"], "peft's": ["base_model.model.first.vblora_vector_bank.a0"]}


def test_a_file_need_not_hold_the_embedding_that_an_adapter_sits_on(tmp_path):
    """The same words come out of a file without them. PEFT writes all of the embedding, which the base has already."""
    ids, config = torch.arange(6)[None], lambda package: package.LoraConfig(r=2, init_lora_weights=False, target_modules=["embed_tokens"])
    sizes, base = {}, make_model()
    for who, package in BOTH.items():
        model = built(package, base, config)
        model.save_pretrained(tmp_path / who)
        sizes[who] = {key: tensor.numel() for key, tensor in load_file(tmp_path / who / "a0" / "adapter_model.safetensors").items()}
        again = package.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / who / "a0").eval()
        assert gap(again(ids).logits, model(ids).logits) < 1e-5
    words = [key for key in sizes["peft's"] if key.endswith("embed_tokens.base_layer.weight")]
    assert words and sum(sizes["ours"].values()) < sizes["peft's"][words[0]] and sizes["ours"].keys() == sizes["peft's"].keys() - set(words)


def test_generate_takes_what_the_model_takes():
    """Input ids by position. PEFT's encoder-decoder models refuse them."""
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=30, decoder_start_token_id=0))
    model = built(engine, base, lambda package: package.LoraConfig(r=2, task_type="SEQ_2_SEQ_LM", init_lora_weights=False))
    ids = torch.arange(3, 9)[None]
    assert torch.equal(model.generate(ids, max_new_tokens=4), model.generate(input_ids=ids, max_new_tokens=4))


def test_a_prompt_generates_with_a_cache_of_fixed_size():
    """What comes out does not depend on how the cache grows. PEFT's models end in a KeyError there: their prompts want masks of four
    dimensions and today's transformers does not say `cache_position` any more; here masks are of two, whatever the cache."""
    settings = {"max_new_tokens": 5, "do_sample": False}
    ids = torch.arange(3, 9)[None]
    for name, package in BOTH.items():
        model = built(package, make_model(), lambda package: package.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
        growing = model.generate(input_ids=ids, **settings)
        if name == "ours":
            assert torch.equal(model.generate(input_ids=ids, cache_implementation="static", **settings), growing)
        else:
            with pytest.raises(KeyError, match="cache_position"):
                model.generate(input_ids=ids, cache_implementation="static", **settings)
