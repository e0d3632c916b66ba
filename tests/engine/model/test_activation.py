"""aLoRA where layers run more than once: gradient checkpointing runs them again in the backward pass."""

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
