"""LoRA's variants against the package `peft` where they train or run otherwise than they merge; and who is right where `peft` is not."""

from __future__ import annotations

import copy
import types
import warnings

import peft
import pytest
import torch
from peft.tuners.lora import variants
from torch import nn

import engine
from engine.methods import monteclora
from engine.methods.alora import calculate_alora_offsets
from engine.law import Run, Site
from engine.methods.registry import law
from tests.support.tiny import make_model

SITE = Site("layer", "linear", 8, 12)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 8)

    def forward(self, x):
        return self.layer(x)


def pair(settings):
    """(ours, PEFT's, input) with the same weights, in training mode."""
    torch.manual_seed(0)
    base, built = One(), []
    for package in (engine, peft):
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built.append(package.get_peft_model(copy.deepcopy(base), package.LoraConfig(r=3, lora_alpha=5, target_modules=["layer"],
                                                                                       init_lora_weights=False, **settings)))
    return built[0].train(), built[1].train(), torch.randn(2, 5, 12)


def gradients(model, x):
    x = x.clone().requires_grad_()
    model(x).pow(2).sum().backward()
    return {"x": x.grad, **{n: p.grad for n, p in model.named_parameters() if p.requires_grad}}


# --- VeLoRA ---

@pytest.mark.parametrize("kind", ["batch_average", "batch_average_once", "random"])
@pytest.mark.parametrize("groups", [4, 5])
def test_velora_has_pefts_coarse_gradient_and_exact_output(kind, groups):
    ours, theirs, x = pair({"velora_config": {"num_groups": groups, "scale": 1.5, "init_type": kind}})
    for batch in (x, x + 1):               # “once” looks at the first batch only
        ours.zero_grad(), theirs.zero_grad()
        a, b = gradients(ours, batch), gradients(theirs, batch)
        assert a.keys() == b.keys()
        for name in a:
            close(a[name], b[name])
        close(ours(batch), theirs(batch))
    with torch.no_grad():
        close(ours.eval()(x), theirs.eval()(x))
    exact, _, _ = pair({})
    assert not torch.allclose(gradients(exact, x)["base_model.model.layer.lora_A.default.weight"], a["base_model.model.layer.lora_A.default.weight"])


# --- MonteCLoRA ---

def sampler_and_tensors(**settings):
    """PEFT's sampler with known chance, and the same in our terms."""
    from peft.tuners.lora.monteclora import MontecloraSampler

    torch.manual_seed(2)
    sampler = MontecloraSampler(12, 3, num_samples=4, buffer_size=1, device="cpu", **settings).train()
    sample = sampler.sampler.buffer[0]
    draw = monteclora.Draw(sample["z_mvn"], sample["z_wishart"].diagonal(), sample["z_dirichlet"])
    return sampler, {monteclora.SPREAD: sampler.std_prior, monteclora.SHARES: sampler.expert_weights_prior}, draw


def test_monteclora_makes_pefts_noise_and_its_gradients():
    sampler, p, draw = sampler_and_tensors(sample_scaler=0.3)
    settings = engine.methods.lora_settings.MontecloraConfig(num_samples=4, sample_scaler=0.3)
    variances, shares = sampler()
    theirs, ours = torch.einsum("n,nij->ij", shares, variances).T, monteclora.noise(p, draw, settings)
    close(ours, theirs)
    weight = torch.randn(3, 12)
    expected = torch.autograd.grad((theirs * weight).sum(), list(p.values()))
    for a, b in zip(torch.autograd.grad((ours * weight).sum(), list(p.values())), expected):
        close(a, b)


def test_monteclora_adds_pefts_loss_but_for_the_wrong_sign():
    sampler, p, draw = sampler_and_tensors(use_entropy=True, dirichlet_prior=0.3, kl_loss_weight=0.01)
    settings = engine.methods.lora_settings.MontecloraConfig(num_samples=4, use_entropy=True, dirichlet_prior=0.3, kl_loss_weight=0.01)
    sampler()
    loss, entropy = sampler.get_variational_loss()
    alpha = p[monteclora.SHARES].exp()
    prior = torch.full_like(alpha, 0.3)
    true = torch.distributions.kl_divergence(torch.distributions.Dirichlet(alpha), torch.distributions.Dirichlet(prior))
    close(monteclora.variational_loss(p, settings, draw), loss + entropy + 0.01 * (true - sampler.dirichlet_kl(alpha)))
    assert true > 0


def test_monteclora_trains_under_noise_and_runs_without():
    ours, theirs, x = pair({"monteclora_config": {"num_samples": 4, "buffer_size": 2, "sample_scaler": 1.0}})
    assert not torch.equal(ours(x), ours(x))
    mean = torch.stack([ours(x) for _ in range(600)]).mean(0)
    with torch.no_grad():
        still = ours.eval()(x)
    assert (mean - still).abs().max() < 0.2 * (ours.train()(x) - still).abs().max().clamp_min(1)
    ours(x).sum().backward()
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad)
    with torch.no_grad():
        close(still, theirs.eval()(x))
    assert theirs.state_dict().keys() == ours.state_dict().keys()


# --- QALoRA ---

def test_qalora_is_pefts_law_for_gptq_layers():
    torch.manual_seed(3)
    config = engine.LoraConfig(r=3, lora_alpha=5, use_qalora=True, qalora_group_size=4)
    method = law(config)
    p = {name: torch.randn(spec.shape) for name, spec in method.tensors(config, SITE).items()}
    assert p["lora_A.weight"].shape == (3, 3)
    x = torch.randn(2, 5, 12)
    layer = types.SimpleNamespace(
        lora_A={"a": types.SimpleNamespace(weight=p["lora_A.weight"])}, lora_B={"a": types.SimpleNamespace(weight=p["lora_B.weight"])},
        lora_dropout={"a": nn.Identity()}, scaling={"a": 5 / 3}, qalora_group_size={"a": 4}, in_features=12, training=False)
    close(x @ method.delta(p, config, SITE).T, variants.QALoraLinearVariant.forward(layer, "a", x, torch.zeros(2, 5, 8)))


# --- aLoRA ---

def test_alora_finds_its_invocation_where_peft_does():
    torch.manual_seed(4)
    ids = torch.randint(0, 3, (40, 9))
    for call in ([1], [1, 2], [0, 0, 1], [2] * 10):
        configs = {"call": types.SimpleNamespace(alora_invocation_tokens=call), "plain": types.SimpleNamespace()}
        assert calculate_alora_offsets(configs, "call", ids) == variants.calculate_alora_offsets(configs, "call", ids)
        names = ["call", "__base__", "plain", "call"] * 10
        assert calculate_alora_offsets(configs, "call", ids, names) == variants.calculate_alora_offsets(configs, "call", ids, names)
    assert calculate_alora_offsets(configs, "call", None) == []


@pytest.mark.parametrize("offsets", [[3, 1], [None, 5], [20, None], None], ids=str)
def test_alora_changes_what_comes_after_its_invocation(offsets):
    torch.manual_seed(5)
    config = engine.LoraConfig(r=3, lora_alpha=5, alora_invocation_tokens=[1])
    method = law(config)
    p = {name: torch.randn(spec.shape, requires_grad=True) for name, spec in method.tensors(config, SITE).items()}
    A, B = nn.Linear(12, 3, bias=False), nn.Linear(3, 8, bias=False)
    with torch.no_grad():
        A.weight.copy_(p["lora_A.weight"]), B.weight.copy_(p["lora_B.weight"])
    x = torch.randn(2, 5, 12)
    layer = types.SimpleNamespace(lora_A={"a": A}, lora_B={"a": B}, lora_dropout={"a": nn.Identity()}, scaling={"a": 5 / 3})
    ours = method.apply(p, config, SITE, x, None, Run(True, {"alora_offsets": offsets}))
    theirs = variants.ALoraLinearVariant.forward(layer, "a", x, torch.zeros(2, 5, 8), alora_offsets=offsets)
    close(ours, theirs)
    ours.pow(2).sum().backward()
    theirs.pow(2).sum().backward()
    close(p["lora_A.weight"].grad, A.weight.grad)
    close(p["lora_B.weight"].grad, B.weight.grad)


def test_alora_runs_beside_the_base_and_never_merges():
    torch.manual_seed(6)
    base = One()
    ours = engine.get_peft_model(copy.deepcopy(base), engine.LoraConfig(r=3, target_modules=["layer"], init_lora_weights=False,
                                                                        alora_invocation_tokens=[1], task_type=None))
    x = torch.randn(2, 5, 12)
    assert torch.equal(ours(x), base(x))   # nothing called it
    with pytest.raises(NotImplementedError, match="does not support merging"):
        ours.merge_adapter()
    assert torch.equal(ours(x), base(x))


# --- BD-LoRA and DoRA together: what PEFT has no class for is a law round a law ---

def test_dora_goes_round_any_low_rank_law():
    torch.manual_seed(7)
    base = One()
    for settings in ({"use_bdlora": {"target_modules_bd_a": ["layer"], "nblocks": 2}}, {"use_qalora": True, "qalora_group_size": 3},
                     {"init_lora_weights": "mica"}, {"init_lora_weights": "olora"}):
        ours = engine.get_peft_model(copy.deepcopy(base), engine.LoraConfig(**{"r": 4, "use_dora": True, "target_modules": ["layer"], **settings}))
        x = torch.randn(5, 12)
        close(ours(x), base(x))
        with torch.no_grad():
            for p in ours.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p) * 0.1)
        tensors, config = ours.adapted["layer"].tensors("default"), ours.peft_config["default"]
        V = base.layer.weight + law(config).inner.delta(tensors, config, ours.adapted["layer"].site)
        expected = x @ (tensors["lora_magnitude_vector.weight"][:, None] * V / V.norm(dim=1, keepdim=True)).T + base.layer.bias
        close(ours(x), expected)
        ours.merge_adapter()
        close(ours(x), expected)


# --- whole models ---

def quiet(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


@pytest.fixture(scope="module")
def alora(tmp_path_factory):
    """(the base, PEFT's model with an aLoRA and a plain LoRA, ours from its files)."""
    folder, model = tmp_path_factory.mktemp("alora"), make_model()
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    torch.manual_seed(8)
    theirs = quiet(peft.get_peft_model, copy.deepcopy(model), peft.LoraConfig(**settings, alora_invocation_tokens=[7, 8]))
    quiet(theirs.add_adapter, "plain", peft.LoraConfig(**settings))
    theirs.save_pretrained(folder)
    ours = engine.PeftModel.from_pretrained(copy.deepcopy(model), folder)
    assert ours.load_report.complete
    ours.load_adapter(folder / "plain", "plain")
    return model, theirs.eval(), ours


IDS = torch.arange(24).reshape(2, 12)


@torch.no_grad()
def test_an_alora_speaks_from_its_invocation_on_in_a_whole_model(alora):
    model, theirs, ours = alora
    heard, plain = ours(IDS).logits, model(IDS).logits
    close(heard, theirs(IDS).logits, atol=2e-5)
    close(ours(input_ids=IDS, alora_offsets=[3, 12]).logits, theirs(input_ids=IDS, alora_offsets=[3, 12]).logits, atol=2e-5)
    assert torch.equal(heard[1], plain[1])                    # its call sign is not in the second row
    assert torch.equal(heard[0, :7], plain[0, :7])
    assert not torch.allclose(heard[0, 7:], plain[0, 7:])
    assert not ours.stack.extras           # nothing is left behind
    with pytest.warns(UserWarning, match="Cannot calculate aLoRA offsets"):
        assert torch.equal(ours(inputs_embeds=model.get_input_embeddings()(IDS)).logits, plain)


@torch.no_grad()
def test_an_alora_in_a_batch_of_many_adapters(alora):
    _, theirs, ours = alora
    ids = IDS[[0, 0, 0, 1]]
    names = ["default", "plain", "__base__", "default"]
    close(ours(ids, adapter_names=names).logits, theirs(ids, adapter_names=names).logits, atol=2e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_an_alora_generates(alora, beams):
    model, theirs, ours = alora
    asked = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "attention_mask": torch.ones_like(IDS), "eos_token_id": None}
    answer = ours.generate(input_ids=IDS, **asked)
    if beams == 1:                         # PEFT has no aLoRA with beams
        assert torch.equal(answer, quiet(theirs.generate, input_ids=IDS, **asked))
    assert torch.equal(answer[1], model.generate(input_ids=IDS, **asked)[1])
    assert not torch.equal(answer[0], model.generate(input_ids=IDS, **asked)[0])


def test_aloras_with_different_call_signs_are_not_mixed_up(alora):
    _, _, ours = alora
    ours.add_adapter("other", engine.LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[9]))
    ours.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="called by different tokens"):
        ours(IDS)
    ours.set_adapter("default")
    ours.delete_adapter("other")


def test_replicated_layers_learn_apart_and_their_files_load_both_ways(tmp_path):
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "layer_replication": [[0, 2], [1, 2]]}
    base, built = make_model(), []
    for package in (engine, peft):
        torch.manual_seed(9)
        built.append(quiet(package.get_peft_model, make_model(), package.LoraConfig(**settings)).eval())
    ours, theirs = built
    with torch.no_grad():
        expected = theirs(IDS).logits
        close(ours(IDS).logits, expected, atol=2e-5)
        ours.save_pretrained(tmp_path / "ours"), theirs.save_pretrained(tmp_path / "theirs")
        for folder in ("ours", "theirs"):
            again = engine.PeftModel.from_pretrained(make_model(), tmp_path / folder)
            assert again.load_report.complete
            close(again(IDS).logits, expected, atol=2e-5)
            close(quiet(peft.PeftModel.from_pretrained, make_model(), tmp_path / folder)(IDS).logits, expected, atol=2e-5)
        with pytest.raises(ValueError, match="in one way"):
            again.add_adapter("other", engine.LoraConfig(target_modules=["q_proj"], layer_replication=[[0, 1]]))
        again.load_adapter(tmp_path / "ours", "same")
        close(copy.deepcopy(again).merge_and_unload()(IDS).logits, expected, atol=2e-5)     # PEFT merges every copy into the one weight
        assert len(again.get_base_model().model.layers) == 3
        plain = again.unload()
    assert list(plain.state_dict()) == list(base.state_dict())
    assert plain.config.num_hidden_layers == 2
    assert torch.equal(plain(IDS).logits, base(IDS).logits)


def test_a_failed_replication_leaves_the_model_as_it_was():
    model = make_model()
    with pytest.raises(ValueError, match="not found"):
        engine.get_peft_model(model, engine.LoraConfig(target_modules=["nothing"], layer_replication=[[0, 2], [1, 2]]))
    assert len(model.model.layers) == 2 == model.config.num_hidden_layers
