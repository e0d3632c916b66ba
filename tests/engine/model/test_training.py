"""What methods ask of a training loop: extra losses, schedules that go on after a break, and which passes they must see whole."""

from __future__ import annotations

import pytest
import torch

import engine
from engine import LoraConfig, get_peft_model
from engine.methods.kasa import regularization
from engine.methods.monteclora import variational_loss
from engine.schedules.adalora import orthogonality
from tests.support.families import family, ids


def taught(config, steps: int = 0, model=None):
    """(model, optimizer) after so many steps of a plain loop with the three calls."""
    if model is None:
        torch.manual_seed(1)
        model = get_peft_model(family("Llama", "ForCausalLM"), config).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for number in range(1, steps + 1):
        model(input_ids=ids(), labels=ids()).loss.backward()
        optimizer.step()
        model.on_step(number)
        optimizer.zero_grad()
    return model


def ada(**settings):
    return engine.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_r=4, target_r=1, total_step=6, **settings)


@pytest.mark.parametrize(("settings", "term"), [
    ({"kasa_config": {"beta": 0.3, "gamma": 0.2}}, lambda ps: sum(regularization(p, 0.3, 0.2) for p in ps)),
    ({"monteclora_config": {"num_samples": 3, "kl_loss_weight": 0.1}}, None)], ids=["kasa", "monteclora"])
def test_the_extra_loss_is_the_method_s_own_and_differentiable(settings, term):
    model = taught(LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], **settings))
    ps = [layer.tensors("default") for layer in model.adapted.values()]
    torch.manual_seed(2)
    loss = model.extra_loss()
    torch.manual_seed(2)
    expected = term(ps) if term else sum(variational_loss(p, model.peft_config["default"].monteclora_config) for p in ps) / len(ps)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with model.disable_adapter():
        assert model.extra_loss() is None
    assert taught(LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"])).extra_loss() is None


def test_adalora_s_stands_in_the_model_s_own_loss_as_in_peft():
    model = taught(ada(orth_reg_weight=0.25))
    error = torch.nn.functional.cross_entropy(model(input_ids=ids()).logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())
    torch.testing.assert_close(model(input_ids=ids(), labels=ids()).loss,
                               error + 0.25 * orthogonality(layer.tensors("default") for layer in model.adapted.values()))


@pytest.mark.parametrize("config", [ada, lambda: engine.AdamssConfig(
    task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=6, num_subspaces=4, use_asa=True, asa_target_subspaces=3, init_warmup=1,
    final_warmup=5, mask_interval=2)], ids=["adalora", "adamss"])
def test_a_schedule_takes_away_and_goes_on_from_its_state(config):
    whole = taught(config(), 6)
    before = taught(config(), 3)
    again = taught(config())
    with torch.no_grad():
        for p, q in zip(again.parameters(), before.parameters(), strict=True):
            p.copy_(q)
    again.tuner.restore_schedules({name: t.clone() for name, t in before.tuner.schedule_state().items()})
    optimizer = torch.optim.SGD([p for p in again.parameters() if p.requires_grad], lr=0.5)
    for number in (4, 5, 6):
        again(input_ids=ids(), labels=ids()).loss.backward()
        optimizer.step()
        again.on_step(number)
        optimizer.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), whole.parameters(), strict=True))
    state = whole.tuner.schedule_state()
    left = [t for name, t in state.items() if "/left:" in name or "/learning:" in name]
    assert left and sum(int(t.sum()) for t in left) < sum(t.numel() for t in left)


def test_which_adapters_must_see_whole_passes():
    lora = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    for config, whole in ((LoraConfig(**lora), False), (LoraConfig(**lora, alora_invocation_tokens=[3]), True), (engine.LilyConfig(**lora), True),
                          (engine.ShadowConfig(task_type="CAUSAL_LM"), True), (engine.AdaptionPromptConfig(
                              task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1), True)):
        assert get_peft_model(family("Llama", "ForCausalLM"), config).needs_whole_passes == whole
