"""Trained with both from the same seed on the same rows, the losses are the same at every step: every method and each of its forms."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.monteclora import BufferedMontecloraSampler

import engine
from engine.methods import monteclora
from tests.support.methods import METHODS
from tests.support.tiny import make_model

LAYERS = {"first": "q_proj", "second": "down_proj"}
OUTSIDE = {                                # what sits on no single layer's weight, and two layers that only a model has
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
    "p-tuning-lstm": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM"}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prefix-projected": ("PrefixTuningConfig", {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 16}),
    "multitask": ("MultitaskPromptTuningConfig", {"num_virtual_tokens": 3, "num_tasks": 2}),
    "cpt": ("CPTConfig", {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4],
                          "opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.7}),
    "cartridge": ("CartridgeConfig", {"num_virtual_tokens": 3}),
    "adaption-prompt": ("AdaptionPromptConfig", {"adapter_len": 3, "adapter_layers": 1}),
    "shadow": ("ShadowConfig", {"r": 4, "shadow_dropout": 0.0}),
    "alora": ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "alora_invocation_tokens": [36]}),
    "lily": ("LilyConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "poly": ("PolyConfig", {"r": 4, "n_tasks": 2, "n_skills": 2, "target_modules": ["q_proj"]}),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "words": ("TrainableTokensConfig", {"token_indices": [7, 36, 65], "target_modules": ["embed_tokens"]}),
    "lora-and-words": ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [7, 36], "modules_to_save": ["lm_head"]}),
    "lora-on-words": ("LoraConfig", {"r": 4, "target_modules": ["embed_tokens", "v_proj"]}),
    "lora-everywhere": ("LoraConfig", {"r": 4, "target_modules": "all-linear", "bias": "none"}),
}
DRAWS = {"monteclora"}                     # otherwise than PEFT: see below


def renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {renamed(key): renamed(each) for key, each in value.items()}
    return [renamed(each) for each in value] if isinstance(value, list) else LAYERS.get(value, value) if isinstance(value, str) else value


KINDS = {**{name: (row.config, renamed({"target_modules": [*LAYERS], **row.settings})) for name, row in METHODS.items() if name not in DRAWS},
         **OUTSIDE}


IDS = (torch.arange(48).reshape(4, 12) * 29 + 7) % 384
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_losses_step_by_step(kind):
    name, settings = KINDS[kind]
    curves = []
    for package in (engine, peft):
        base = make_model(tied=False)
        torch.manual_seed(11)
        model = package.get_peft_model(base, getattr(package, name)(task_type="CAUSAL_LM", **settings)).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        more = {"task_ids": torch.tensor([0, 1])} if kind in ("multitask", "poly") else {}
        losses = []
        for step in range(6):
            torch.manual_seed(step)        # some draw while they learn
            loss = model(input_ids=IDS[step % 2::2], labels=IDS[step % 2::2], **more).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] != curves[0][0]
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)


def test_monteclora_has_the_same_losses_under_the_same_noise(monkeypatch):
    """PEFT draws whole Wishart matrices, and many steps ahead; ours draws what is used. So ours starts from PEFT's tensors and gets PEFT's draws.

    Without the divergences, of which PEFT's has a wrong sign (`test_lora_variants.py`); with the entropy.
    """
    drawn, curves = [], []
    get = BufferedMontecloraSampler.get
    monkeypatch.setattr(BufferedMontecloraSampler, "get", lambda self: drawn.append(get(self)) or drawn[-1])
    settings = {"r": 3, "target_modules": list(LAYERS.values()), "task_type": "CAUSAL_LM",
                "monteclora_config": {"num_samples": 3, "buffer_size": 2, "sample_scaler": 0.5, "use_entropy": True, "kl_loss_weight": 0.0}}
    torch.manual_seed(11)
    theirs, ours = (package.get_peft_model(make_model(tied=False), package.LoraConfig(**settings)).train() for package in (peft, engine))
    assert learned(ours).keys() == learned(theirs).keys()
    engine.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    for name, p in learned(theirs).items():                   # two of them stand in no file of PEFT's
        learned(ours)[name].data.copy_(p.data)
    for model in (theirs, ours):
        optimizer, losses, draws = torch.optim.AdamW(learned(model).values(), lr=1e-2), [], iter(list(drawn))
        for step in range(6):
            if model is ours:              # the noise of a step, and the entropy of the same noise
                layers = [next(draws) for _ in ours.adapted]
                said = [monteclora.Draw(d["z_mvn"], d["z_wishart"].diagonal(), d["z_dirichlet"]) for d in layers * 2]
                monkeypatch.setattr(monteclora.Draw, "new", lambda *_, said=iter(said): next(said))
            task = model(input_ids=IDS[step % 2::2], labels=IDS[step % 2::2]).loss
            loss = task + (ours.extra_loss() if model is ours else theirs.base_model._get_monteclora_loss())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [task.item(), loss.item()]
        curves.append(losses)
    assert next(draws, None) is None and curves[0][-2] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], abs=2e-4)


def learned(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
