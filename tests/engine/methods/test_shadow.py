"""ShadowPEFT by dense arithmetic, block by block; one shadow at a time; its own error; the base comes back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import engine
from engine.errors import UnsupportedLayer
from engine.hosts.shadow import ShadowBlock
from tests.support.families import family, ids


def shadowed(base: str = "Llama", **settings):
    model = family(base, "LMHeadModel" if base == "GPT2" else "ForCausalLM")
    torch.manual_seed(3)
    return engine.get_peft_model(model, engine.ShadowConfig(task_type="CAUSAL_LM", **{"init_weights": False, "r": 3, **settings})).eval()


def test_each_block_sees_the_difference_and_moves_the_state():
    model, seen = shadowed(shadow_alpha=0.7, update_hidden_size=5), []
    for block in (m for m in model.modules() if isinstance(m, ShadowBlock)):
        block.register_forward_pre_hook(lambda m, args: seen.append([m, args[0]]))
        block.base_layer.register_forward_pre_hook(lambda m, args: seen[-1].append(args[0]))
        block.register_forward_hook(lambda m, args, out: seen[-1].append(out))
    model(input_ids=ids())
    state = model.shadow_backbone["default"](inputs_embeds=model.get_input_embeddings()(ids())).last_hidden_state
    assert len(seen) == 2
    for block, h, fed, out in seen:
        p = block.tensors("default")
        torch.testing.assert_close(fed, h + 0.7 * (h - state) @ p["shadow_down.weight"].T @ p["shadow_up.weight"].T)

        def net(name, p=p, out=out):
            inner = F.gelu(out @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"])
            return inner @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]

        gate = net("shadow_update_gate").sigmoid()
        state = (1 - gate) * state + gate * net("shadow_update_transform")


def test_it_starts_silent_and_strength_turns_it_off():
    plain = family("Llama", "ForCausalLM")(input_ids=ids()).logits
    torch.testing.assert_close(shadowed(init_weights=True)(input_ids=ids()).logits, plain)
    model = shadowed()
    assert not torch.allclose(model(input_ids=ids()).logits, plain)
    model.set_adapter({"default": 0.0})
    assert torch.equal(model(input_ids=ids()).logits, plain)
    model.set_adapter("default")
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids()).logits, plain)


def test_its_own_error_is_added_by_token_too():
    model = shadowed(auxiliary_loss_weight=0.3)
    output = model(input_ids=ids(), labels=ids())
    where = torch.arange(20).view(2, 10)[:, :-1].flatten()
    more = model.base_model.extra_error(where, ids()[:, 1:].flatten())
    torch.testing.assert_close(more / len(where), 0.3 * output.shadow_loss)
    with model.disable_adapter():
        plain = model(input_ids=ids(), labels=ids()).loss
        assert model.base_model.extra_error(where, ids()[:, 1:].flatten()) is None
    model.set_adapter({"default": 0.0})
    torch.testing.assert_close(model(input_ids=ids(), labels=ids()).loss, plain)


def test_one_is_heard_at_a_time_and_the_base_comes_back():
    plain = family("GPT2", "LMHeadModel")
    before, state = dict(plain.named_modules()), {k: v.clone() for k, v in plain.state_dict().items()}
    model = engine.get_peft_model(plain, engine.ShadowConfig(task_type="CAUSAL_LM"))
    model.add_adapter("more", engine.ShadowConfig(task_type="CAUSAL_LM", target_modules=["transformer.h.1"]))
    with pytest.raises(ValueError, match="exactly one active adapter"):
        model.set_adapter(["default", "more"])
    model.set_adapter("more")
    assert {n.split(".")[4] for n, p in model.named_parameters() if p.requires_grad and ".h." in n and "shadow_down" in n} == {"1"}
    with pytest.raises(UnsupportedLayer, match="whole blocks"):
        model.add_adapter("wrong", engine.ShadowConfig(target_modules=["c_attn"]))
    model(input_ids=ids(), labels=ids()).loss.backward()
    model.delete_adapter("default")
    assert sum(isinstance(m, ShadowBlock) for m in plain.modules()) == 1
    assert model.unload() is plain and dict(plain.named_modules()) == before and not plain.transformer._forward_pre_hooks
    assert all(torch.equal(a, state[k]) for k, a in plain.state_dict().items()) and all(p.requires_grad for p in plain.parameters())


@pytest.mark.filterwarnings("error::FutureWarning")
def test_what_is_inside_its_blocks_cannot_be_learned_whole_beside_it():
    model = family("Llama", "ForCausalLM")
    before = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(UnsupportedLayer, match="input_layernorm"):
        engine.get_peft_model(model, engine.ShadowConfig(task_type="CAUSAL_LM", modules_to_save=["input_layernorm"]))
    assert {path: type(module) for path, module in model.named_modules()} == before and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("alone", [False, True])
def test_speech_from_its_cache_is_that_without(alone):
    model = shadowed()
    model = model.unload_shadow().eval() if alone else model
    said = ids(1, 6)
    for _ in range(6):
        said = torch.cat([said, model(input_ids=said, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(input_ids=ids(1, 6), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0), said)


def test_alone_it_is_a_small_model_that_can_be_saved(tmp_path):
    model = shadowed()
    alone = model.unload_shadow(copy=True).eval()
    assert torch.equal(alone(input_ids=ids()).logits, model.unload_shadow()(input_ids=ids()).logits)
    assert alone.generate(input_ids=ids(1, 4), max_new_tokens=3, do_sample=False).shape == (1, 7)
    assert "backbone.embed_tokens.weight" in alone.state_dict()
    assert not {id(p) for p in alone.parameters()} & {id(p) for p in model.parameters()}
