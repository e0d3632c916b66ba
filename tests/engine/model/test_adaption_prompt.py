"""Adaption prompts by their laws: closed gates change nothing, strengths scale, several add, and the base comes back."""

from __future__ import annotations

import pytest
import torch

import engine
from engine.checkpoint.state import get_peft_model_state_dict, set_peft_model_state_dict
from engine.errors import BadAdapter, WrongBase
from engine.hosts.adaption_prompt import LookingAttention
from tests.support.families import family, ids

BASES = {"Llama": "ForCausalLM", "Mistral": "ForCausalLM", "GPT2": "LMHeadModel"}


def adapted(base: str, layers: int = 1, length: int = 3, **settings):
    torch.manual_seed(2)
    model = engine.get_peft_model(family(base, BASES[base], **settings), engine.AdaptionPromptConfig(
        task_type="CAUSAL_LM", adapter_len=length, adapter_layers=layers)).eval()
    return model


def open_gates(model, value: float = 0.8) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "adaption_gate" in name:
                p.fill_(value)


def last_attention(model) -> tuple[str, LookingAttention]:
    return [(path, m) for path, m in model.get_base_model().named_modules() if isinstance(m, LookingAttention)][-1]


def seen(model) -> torch.Tensor:
    """What the last attention gives out."""
    kept = []
    hook = last_attention(model)[1].register_forward_hook(lambda module, args, output: kept.append(output[0].detach()))
    model(ids())
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("base", BASES)
def test_strengths_scale_and_adapters_add(base):
    model = adapted(base)
    model.add_adapter("more", engine.AdaptionPromptConfig(adapter_len=5, adapter_layers=1))
    open_gates(model)
    with model.disable_adapter():
        plain = seen(model)
    assert torch.equal(plain, seen_of_base(base, model))
    parts = {}
    for name in ("default", "more"):
        model.set_adapter(name)
        parts[name] = seen(model) - plain
        assert parts[name].abs().max() > 1e-3
        model.set_adapter({name: 0.0})
        assert torch.equal(seen(model), plain)
    model.set_adapter({"default": 0.5, "more": 2.0})
    torch.testing.assert_close(seen(model) - plain, 0.5 * parts["default"] + 2 * parts["more"], atol=1e-5, rtol=1e-4)


def seen_of_base(base: str, model) -> torch.Tensor:
    kept, plain = [], family(base, BASES[base])
    plain.get_submodule(last_attention(model)[0]).register_forward_hook(lambda module, args, output: kept.append(output[0].detach()))
    plain(ids())
    return kept[0]


@pytest.mark.parametrize("base", BASES)
def test_the_base_comes_back(base):
    plain = family(base, BASES[base])
    attentions, state = dict(plain.named_modules()), {k: v.clone() for k, v in plain.state_dict().items()}
    model = engine.get_peft_model(plain, engine.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=2))
    model.add_adapter("more", engine.AdaptionPromptConfig(adapter_len=2, adapter_layers=1))
    open_gates(model)
    model(ids(), labels=ids()).loss.backward()
    model.delete_adapter("default")
    assert sum(isinstance(m, LookingAttention) for m in plain.modules()) == 1
    assert model.unload() is plain and dict(plain.named_modules()) == attentions
    assert set(plain.state_dict()) == set(state) and all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())
    assert all(p.requires_grad for p in plain.parameters())


def test_a_closed_gate_changes_nothing_though_projections_have_biases():
    """PEFT adds the output projection's bias a second time there."""
    model = adapted("Llama", layers=2, attention_bias=True)
    with torch.no_grad():
        for layer in model.get_base_model().model.layers:
            layer.self_attn.o_proj.bias.fill_(1.0)
    before = model(ids()).logits
    with model.disable_adapter():
        torch.testing.assert_close(before, model(ids()).logits, atol=1e-5, rtol=1e-4)


def test_heads_of_a_width_of_their_own():
    """Wider than the model divided by their number; PEFT takes the ratio of the projections for the number of heads in a group."""
    model = adapted("Llama", layers=2, head_dim=16)
    open_gates(model)
    model(ids(), labels=ids()).loss.backward()
    path, attention = last_attention(model)
    kept = {}
    attention.register_forward_hook(lambda module, args, kwargs, output: kept.update(call=kwargs, args=args, out=output[0]), with_kwargs=True)
    model(ids())
    hidden, inner = kept["call"]["hidden_states"] if "hidden_states" in kept["call"] else kept["args"][0], attention.model
    p, (cos, sin) = attention.tensors("default"), kept["call"]["position_embeddings"]
    query = inner.q_proj(hidden).view(2, 10, 4, 16)
    turned = torch.cat([-query[..., 8:], query[..., :8]], dim=-1)
    query = query * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
    key, value = (proj(p["adaption_prompt"]).view(3, 2, 16) for proj in (inner.k_proj, inner.v_proj))
    by_head = [(p["adaption_gate"] * torch.softmax(query[:, :, h] @ key[:, h // 2].T / 4, dim=-1)) @ value[:, h // 2] for h in range(4)]
    with model.disable_adapter():
        base_out = seen_with(inner, kept)
    torch.testing.assert_close(kept["out"], base_out + inner.o_proj(torch.cat(by_head, dim=-1)), atol=1e-5, rtol=1e-4)


def seen_with(attention, kept) -> torch.Tensor:
    return attention(*kept["args"], **kept["call"])[0]


def test_files_and_learning(tmp_path):
    model = adapted("Llama", layers=2)
    open_gates(model)
    model.save_pretrained(tmp_path)
    loaded = engine.PeftModel.from_pretrained(family("Llama", "ForCausalLM"), tmp_path)
    assert loaded.load_report.complete and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(ids()).logits, model(ids()).logits)
    again = engine.PeftModel.from_pretrained(family("Llama", "ForCausalLM"), tmp_path, is_trainable=True)
    assert {n.rpartition(".")[0].rpartition(".")[2] for n, p in again.named_parameters() if p.requires_grad} == {"adaption_prompt", "adaption_gate"}
    optimizer, losses = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], lr=1e-2), []
    for _ in range(8):
        losses.append(again(ids(), labels=ids()).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    bare = {key.removeprefix("base_model.model."): t for key, t in get_peft_model_state_dict(again).items()}
    assert set_peft_model_state_dict(model, bare).complete
    torch.testing.assert_close(model(ids()).logits, again.eval()(ids()).logits)


def test_what_is_refused(tmp_path):
    def settings(**more):
        return engine.AdaptionPromptConfig(**{"adapter_len": 2, "adapter_layers": 2, **more})

    cases = [("Llama", {"adapter_layers": 3}, "more adapter layers '3' than the model has '2'"), ("Llama", {"adapter_len": None}, "adapter_len"),
             ("Llama", {"target_modules": "nothing"}, "than the model has '0'")]
    for base, more, words in cases:
        plain = family(base, BASES[base])
        with pytest.raises(ValueError, match=words):
            engine.get_peft_model(plain, settings(**more))
        assert not any(isinstance(m, LookingAttention) for m in plain.modules())
    with pytest.raises(ValueError, match="adapter_len"):
        settings(adapter_len=0)
    with pytest.raises(ValueError, match="Unsupported model type for adaption prompt: 'opt'"):
        engine.get_peft_model(family("OPT", "ForCausalLM"), settings())
    model = adapted("Llama", layers=2)
    for act in (lambda: model.add_adapter("x", engine.LoraConfig()), model.merge_adapter, lambda: model(ids(), adapter_names=["default"] * 2)):
        with pytest.raises(ValueError, match="different peft types|cannot be merged|adapter_names"):
            act()
    model.save_pretrained(tmp_path)
    with pytest.raises(WrongBase):
        engine.PeftModel.from_pretrained(family("Llama", "ForCausalLM", hidden_size=16), tmp_path)
    with pytest.raises(BadAdapter):
        engine.PeftModel.from_pretrained(family("Mistral", "ForCausalLM"), tmp_path)
