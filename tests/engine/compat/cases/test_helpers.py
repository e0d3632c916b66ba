"""PEFT's small helps, where programs see more of them than ours show."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.engine.compat.cases.small import lora, peft, small


@pytest.mark.parametrize("multiplier", [0.5, 0.0, -3])
def test_scales_of_all_layers_show_what_is_done_to_them(multiplier):
    model, x = peft.get_peft_model(small(), lora(alpha_pattern={"0": 4})).eval(), torch.randn(3, 6)
    layer, before = model.base_model.model[0], model(x)
    kept, base = layer.scaling, layer.base_layer(x)
    with peft.helpers.rescale_adapter_scale(model, multiplier):
        assert layer.scaling["default"] == kept["default"] * multiplier and kept["default"] == 2
        torch.testing.assert_close(layer(x) - base, (layer.base_layer(x) - base) + multiplier * 2 * (x @ (
            layer.lora_B["default"].weight @ layer.lora_A["default"].weight).T))
    assert layer.scaling == {"default": 2.0} and torch.equal(model(x), before)


def test_dora_needs_no_switch():
    model, x = peft.get_peft_model(small(), lora(use_dora=True)).eval(), torch.randn(3, 6)
    layer = model.base_model.model[0]

    def dense() -> torch.Tensor:
        V = layer.base_layer.weight + layer.get_delta_weight("default") * 0 + 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        return x @ (layer.lora_magnitude_vector["default"].weight[:, None] * V / V.norm(dim=1, keepdim=True)).T + layer.base_layer.bias

    with torch.no_grad():
        for caching in (peft.helpers.DoraCaching(), peft.helpers.DoraCaching(enabled=False)):
            with caching:
                torch.testing.assert_close(layer(x), dense())
                layer.lora_A["default"].weight.add_(1.0)
                model.base_model.stack.changed()
                torch.testing.assert_close(layer(x), dense())


def test_monteclora_adds_to_a_trainer_s_loss_in_training():
    model = peft.get_peft_model(small(), lora(monteclora_config=peft.MontecloraConfig(num_samples=2)))
    assert any(isinstance(m, peft.tuners.lora.monteclora.MontecloraSampler) for m in model.modules())

    class Trainer:
        def compute_loss(self, model, inputs, return_outputs=False):
            loss = model(inputs).sum()
            return (loss, None) if return_outputs else loss

    class Montecloras(peft.helpers.MontecloraTrainerMixin, Trainer):
        pass

    x = torch.randn(3, 6)
    torch.manual_seed(1)
    alone = Trainer().compute_loss(model, x)
    torch.manual_seed(1)
    whole = Montecloras().compute_loss(model, x)
    assert whole != alone
    whole.backward()
    assert model.base_model.model[0].lora_monteclora_sampler["default"].std_prior.grad is not None
    torch.manual_seed(1)
    Trainer().compute_loss(model, x)
    torch.testing.assert_close(model._get_monteclora_loss(), whole - alone)
    model.eval()
    assert Montecloras().compute_loss(model, x) == Trainer().compute_loss(model, x) and model._get_monteclora_loss() == 0


def test_kasa_says_what_it_adds_to_the_loss():
    model = peft.get_peft_model(small(), lora(target_modules=["0", "1"], kasa_config=peft.KasaConfig(beta=2.0, gamma=3.0)))
    expected = 0
    for layer in (model.base_model.model[0], model.base_model.model[1]):
        A, B, d = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_diag["default"]
        off = [torch.linalg.norm(gram - torch.eye(2)) for gram in (A @ A.T, B.T @ B)]
        expected = expected + 2 * d.square().sum() + 3 * sum(off)
    torch.testing.assert_close(model._get_kasa_loss(), expected)
    torch.testing.assert_close(model._get_kasa_loss("default"), expected)
    assert peft.get_peft_model(small(), lora())._get_kasa_loss() == 0 == model._get_monteclora_loss()


def test_factors_in_blocks_show_the_whole_matrix():
    blocks = peft.tuners.lora.variants.BlockDiagonalLinear
    model = peft.get_peft_model(small(), lora(use_bdlora=peft.BdLoraConfig(target_modules_bd_a=["0"], nblocks=2)))
    layer, x = model.base_model.model[0], torch.randn(3, 6)
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    assert isinstance(A, blocks) and not isinstance(B, blocks) and A.weight.shape == (2, 3)
    torch.testing.assert_close(layer.get_delta_weight("default"), 3 * B.weight @ A.weight_as_blockdiagonal_matrix())
    alone = blocks(6, 8, nblocks=2)
    torch.testing.assert_close(alone(x), x @ alone.weight_as_blockdiagonal_matrix().T)


def test_lora_fa_tells_names_and_scales():
    model = peft.get_peft_model(small(), lora(target_modules=["0", "1"], rank_pattern={"1": 1}))
    group = peft.optimizers.create_lorafa_optimizer(model, r=2, lora_alpha=6, lr=1e-3).param_groups[0]
    assert dict(zip(group["names"], group["scaling_factors"])) == {
        f"base_model.model.{i}.lora_B.default.weight": scale for i, scale in ((0, 3.0), (1, 6.0))}
    old = peft.optimizers.lorafa.LoraFAOptimizer([{"params": [nn.Parameter(torch.ones(2))], "scaling_factor": 1.0}])
    with pytest.warns(FutureWarning, match="`scaling_factor` is deprecated"):
        old.step()


def test_lora_fa_tells_what_it_remembers_of_a_layer_by_its_name():
    model = peft.get_peft_model(small(), lora())
    optimizer, layer = peft.optimizers.create_lorafa_optimizer(model, r=2, lora_alpha=6, lr=1e-3), model.base_model.model[0]
    model(torch.randn(3, 6)).sum().backward()
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    optimizer.step()
    seen = optimizer.state["base_model.model.0.lora"]
    expected = 0.1 * B.grad @ torch.linalg.inv(A @ A.T) / 3 ** 2                # the scaling is 3, and Adam's first moment starts at 0
    torch.testing.assert_close(seen["exp_avg_B"], expected, atol=1e-4, rtol=1e-4)
    assert seen["exp_avg_B"] is optimizer.state[B]["exp_avg"] and seen["step"] == 1
    again = peft.optimizers.create_lorafa_optimizer(model, r=2, lora_alpha=6, lr=1e-3)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[B]["exp_avg"], seen["exp_avg_B"])


def test_matrices_that_were_not_gathered_bring_a_warning(tmp_path):
    model = peft.get_peft_model(small(), lora())
    model.base_model.model[0].lora_A["default"].weight.data = torch.zeros(12)
    with pytest.warns(peft.PeftWarning, match="ZeRO-3 / FSDP shards"):
        model.save_pretrained(tmp_path)


def test_gradients_of_lora_ga_show_until_the_adapter_is_made():
    model, config = small(), lora(init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig())
    peft.preprocess_loraga(model, config, lambda: model(torch.randn(9, 6)).square().sum().backward())
    assert model[0]._peft_loraga_grad.shape == model[0].weight.shape
    peft.get_peft_model(model, config)
    assert not hasattr(model[0].base_layer, "_peft_loraga_grad")


def test_a_second_time_brings_peft_s_warning():
    base = small()
    first = peft.get_peft_model(base, lora())
    with pytest.warns(UserWarning, match="You are trying to modify a model"):
        peft.get_peft_model(base, lora())
    assert base.peft_config.keys() == {"default"}
    with pytest.warns(UserWarning, match="You are trying to modify a model"):
        peft.get_peft_model(first, lora(target_modules=["base_model.model.1"]))
