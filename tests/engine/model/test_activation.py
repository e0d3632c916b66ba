"""aLoRA where layers run more than once: in the backward pass under gradient checkpointing, and without a cache; answers of several adapters."""

from __future__ import annotations

import pytest
import torch

import engine
from tests.support.tiny import make_model


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_runs_again_in_the_backward_pass_knows_where_it_was_called(reentrant):
    torch.manual_seed(0)
    base = make_model()
    config = engine.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=[5], init_lora_weights=False)
    model = engine.get_peft_model(base, config).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    ids = torch.tensor([[3, 5, 7, 9], [5, 4, 4, 2]])

    def gradients() -> list[torch.Tensor]:
        return torch.autograd.grad(model(input_ids=ids).logits.square().sum(), learned)

    plain = gradients()
    base.enable_input_require_grads()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:                          # it knows no `torch.autograd.grad`
        model(input_ids=ids).logits.square().sum().backward()
        again = [p.grad for p in learned]
    else:
        again = gradients()
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)
    assert any(g.any() for g in plain)


def test_without_a_cache_it_writes_what_it_writes_with_one():
    torch.manual_seed(0)
    config = engine.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=[10, 11],
                               init_lora_weights=False)
    model = engine.get_peft_model(make_model(), config).eval()
    model.get_base_model().generation_config.eos_token_id = None
    ids = torch.arange(3, 19)[None]
    by_hand = ids
    for _ in range(12):
        by_hand = torch.cat([by_hand, model(by_hand).logits[:, -1:].argmax(-1)], 1)
    for cached in (True, False):
        assert torch.equal(model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, use_cache=cached), by_hand)


def test_each_answer_hears_the_adapter_of_its_sample():
    torch.manual_seed(0)
    model = engine.get_peft_model(make_model(), engine.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False), "a").eval()
    model.get_base_model().generation_config.eos_token_id = None
    ids = torch.arange(3, 19)[None]
    how = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    with model.disable_adapter():
        bare = model.generate(input_ids=ids, num_return_sequences=2, **how)
    heard = model.generate(input_ids=ids, num_return_sequences=2, **how)
    both = {"input_ids": ids.repeat(2, 1), "adapter_names": ["a", "__base__"], "num_return_sequences": 2}
    assert torch.equal(model.generate(**both, **how), torch.cat([heard, bare]))
    assert model.generate(**both, max_new_tokens=8, do_sample=True, top_k=1).shape == (4, 24)
