"""Routed adapters against PEFT: the same start, outputs, gradients and trained losses from the same seed, files both ways."""

from __future__ import annotations

import dataclasses

import peft
import pytest
import torch
from safetensors.torch import save_file

import engine
from tests.support.families import family, ids

KINDS = {
    "poly": ("PolyConfig", {"r": 3, "n_tasks": 3, "n_skills": 2, "target_modules": ["q_proj", "down_proj"]}),
    "poly-slices": ("PolyConfig", {"r": 2, "n_tasks": 3, "n_skills": 3, "n_splits": 2, "init_weights": False, "target_modules": ["q_proj"]}),
    "lily": ("LilyConfig", {"r": 3, "stride_A": 2, "num_B": 3, "scaling": 2.0, "target_modules": ["q_proj", "v_proj"]}),
    "lily-random": ("LilyConfig", {"r": 2, "init_weights": False, "target_modules": "all-linear"}),
}
pytestmark = pytest.mark.filterwarnings("ignore")
kinds = pytest.mark.parametrize("kind", KINDS)


def built(package, kind: str, **settings):
    name, own = KINDS[kind]
    base = family("Llama", "ForCausalLM", num_hidden_layers=3)
    torch.manual_seed(5)
    return package.get_peft_model(base, getattr(package, name)(task_type="CAUSAL_LM", **{**own, **settings}))


def call(kind: str) -> dict:
    return {"input_ids": ids(3, 9), "labels": ids(3, 9)} | ({"task_ids": torch.tensor([0, 2, 1])} if "poly" in kind else {})


def learned(model) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@kinds
def test_the_same_start_outputs_and_gradients(kind):
    ours, theirs = built(engine, kind), built(peft, kind)
    a, b = learned(ours), learned(theirs)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=0, rtol=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in a:
            change = torch.randn(a[name].shape, generator=noise) * 0.3
            a[name].add_(change), b[name].add_(change)
    found = [model.eval()(**call(kind)) for model in (ours, theirs)]
    torch.testing.assert_close(found[0].logits, found[1].logits, atol=1e-5, rtol=1e-4)
    for output in found:
        output.loss.backward()
    for name in a:
        assert a[name].grad is not None and a[name].grad.abs().max() > 0
        torch.testing.assert_close(a[name].grad, b[name].grad, atol=1e-5, rtol=1e-4)


def losses(model, inputs: dict, steps: int = 5) -> list[float]:
    """Those of some steps of learning; what falls at random, like dropout, falls alike for all models."""
    optimizer, found = torch.optim.AdamW(learned(model).values(), lr=1e-2), []
    for step in range(steps):
        torch.manual_seed(step)
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@kinds
def test_the_same_losses_step_by_step(kind):
    ours, theirs = (losses(built(package, kind).train(), call(kind)) for package in (engine, peft))
    assert ours == pytest.approx(theirs, abs=1e-4) and ours[-1] < ours[0]


@kinds
def test_files_load_both_ways(kind, tmp_path):
    settings = {} if kind == "lily-random" else {"init_weights": False}
    ours, theirs = built(engine, kind, **settings).eval(), built(peft, kind, **settings).eval()
    expected = theirs(**call(kind)).logits
    ours.save_pretrained(tmp_path / "ours"), theirs.save_pretrained(tmp_path / "theirs")
    in_ours = engine.PeftModel.from_pretrained(family("Llama", "ForCausalLM", num_hidden_layers=3), tmp_path / "theirs")
    in_theirs = peft.PeftModel.from_pretrained(family("Llama", "ForCausalLM", num_hidden_layers=3), tmp_path / "ours")
    assert in_ours.load_report.complete, in_ours.load_report.sentence()
    for model in (ours, in_ours, in_theirs):
        torch.testing.assert_close(model(**call(kind)).logits, expected, atol=1e-5, rtol=1e-4)


# --- experts that a router mixes ---

def experts(folder, count: int = 3, seed: int = 0, **settings) -> list[str]:
    """Folders of LoRAs with one strong direction each."""
    for number in range(count):
        model = peft.get_peft_model(family("Llama", "ForCausalLM"), peft.LoraConfig(
            task_type="CAUSAL_LM", **{"r": 3, "lora_alpha": 2 + number, "target_modules": ["q_proj", "down_proj"], **settings}))
        noise = torch.Generator().manual_seed(seed * 100 + number)
        with torch.no_grad():
            for name, p in learned(model).items():
                p.copy_(torch.randn(p.shape, generator=noise) * 0.3)
                p.mul_(torch.tensor([4.0, 0.4, 0.1])[:, None] if "lora_A" in name else 1.0)
        model.save_pretrained(folder / f"{seed}-{number}")
    return [str(folder / f"{seed}-{number}") for number in range(count)]


def uncached():
    base = family("Llama", "ForCausalLM")
    base.config.use_cache = False
    return base


XLORA = {
    "plain": {"xlora_depth": 1},
    "deep": {"xlora_depth": 3, "xlora_size": 12, "softmax_temperature": 0.7, "global_scaling_weight": 1.5},
    "by-layer": {"layerwise_scalings": True, "xlora_depth": 2, "xlora_size": 8, "xlora_dropout_p": 0.0},
    "best-two": {"top_k_lora": 2, "enable_softmax_topk": True, "enable_softmax": False, "scaling_pass_value": 0.5},
}


@pytest.mark.parametrize("settings", XLORA.values(), ids=list(XLORA))
def test_x_lora_mixes_as_peft_does(settings, tmp_path):
    paths = {str(i): path for i, path in enumerate(experts(tmp_path))}
    torch.manual_seed(3)
    theirs = peft.get_peft_model(uncached(), peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=paths, **settings))
    with torch.no_grad():
        for p in learned(theirs).values():
            p.mul_(3.0)
    theirs.save_pretrained(tmp_path / "theirs")               # without those of the network's layers whose number is an expert's name
    save_file({k: t for k, t in theirs.state_dict().items() if "classifier" in k}, tmp_path / "theirs" / "adapter_model.safetensors")
    ours = engine.PeftModel.from_pretrained(uncached(), tmp_path / "theirs", is_trainable=True, adapters=paths).eval()
    theirs.eval()
    outputs = [model(input_ids=ids(2, 7), labels=ids(2, 7)) for model in (ours, theirs)]
    torch.testing.assert_close(ours.get_latest_scalings(), theirs.get_latest_scalings(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=1e-4)
    for output in outputs:
        output.loss.backward()
    a, b = ({name.replace(".default", ""): p for name, p in learned(model).items()} for model in (ours, theirs))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name].grad, b[name].grad, atol=1e-5, rtol=1e-4)
    ours.save_pretrained(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(uncached(), tmp_path / "ours").eval()
    torch.testing.assert_close(again(input_ids=ids(2, 7)).logits, outputs[1].logits, atol=1e-5, rtol=1e-4)
    said = [model.generate(input_ids=ids(1, 5), max_new_tokens=6, do_sample=False) for model in (ours, theirs)]
    assert torch.equal(*said)


@pytest.mark.parametrize("form", XLORA)
@pytest.mark.parametrize("experts_learn", [False, True], ids=["experts rest", "experts learn"])
def test_x_lora_has_the_same_losses_step_by_step(form, experts_learn, tmp_path):
    paths = {str(i): path for i, path in enumerate(experts(tmp_path))}
    settings = XLORA[form] | {"use_trainable_adapters": experts_learn}
    torch.manual_seed(3)
    theirs, ours = (package.get_peft_model(uncached(), package.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=paths, **settings)).train()
                    for package in (peft, engine))
    named = {model: {name.replace(".default", "").replace("lora_model.", ""): p for name, p in learned(model).items()} for model in (theirs, ours)}
    assert named[ours].keys() == named[theirs].keys()
    for name, p in named[ours].items():    # PEFT's has drawn for experts, too, which it then read
        p.data.copy_(named[theirs][name])
    ours, theirs = (losses(model, {"input_ids": ids(3, 9), "labels": ids(3, 9)}) for model in (ours, theirs))
    assert ours == pytest.approx(theirs, abs=1e-4) and ours[-1] < ours[0]


@pytest.mark.parametrize("general", [0, 2])
def test_arrow_routes_as_peft_does(general, tmp_path):
    tasks, others = experts(tmp_path), experts(tmp_path, general, seed=1)
    built, asked = [], {"top_k": 2, "router_temperature": 0.5, "use_gks": bool(general), "rng_seed": 4}
    for package in (engine, peft):
        torch.manual_seed(0)
        built.append(package.create_arrow_model(family("Llama", "ForCausalLM"), tasks, package.ArrowConfig(**asked), others or None).eval())
    ours, theirs = built
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids()).logits, theirs(input_ids=ids()).logits, atol=1e-5, rtol=1e-4)
    more = experts(tmp_path, 1, seed=2)[0]
    for model in (ours, theirs):
        model.load_adapter(more, "more")
        model.set_adapter("arrow_router")
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids()).logits, theirs(input_ids=ids()).logits, atol=1e-5, rtol=1e-4)
    ours.save_pretrained(tmp_path / "ours"), theirs.save_pretrained(tmp_path / "theirs")       # the experts are folders like others
    swapped = []
    # PEFT has taken the general adapters out of its experts in place, and would again with what it saved; ours are what they were
    for package, folder in ((engine, tmp_path / ("ours" if general else "theirs")), (peft, tmp_path / "ours")):
        names = [[str(folder / name) for name in ours.peft_config if name.startswith(start)] for start in ("task_", "gks_")]
        torch.manual_seed(0)
        swapped.append(package.create_arrow_model(family("Llama", "ForCausalLM"), names[0], package.ArrowConfig(**asked), names[1] or None).eval())
        swapped[-1].load_adapter(folder / "more", "more")
        swapped[-1].set_adapter("arrow_router")
    with torch.no_grad():
        for model in swapped:
            torch.testing.assert_close(model(input_ids=ids()).logits, ours(input_ids=ids()).logits, atol=1e-5, rtol=1e-4)
    assert ours.peft_config["arrow_router"].to_dict()["arrow_config"] == dataclasses.asdict(theirs.peft_config["arrow_router"].arrow_config)


# --- a shadow beside the model ---

SHADOWS = {
    "Llama": ("ForCausalLM", {}), "GPT2": ("LMHeadModel", {"shadow_num_hidden_layers": 2, "share_embeddings": False}),
    "Mistral": ("ForCausalLM", {"shadow_hidden_size": 16, "shadow_num_attention_heads": 4, "update_hidden_size": 5,
                                "target_modules": ["layers.1", "layers.2"]}),
    "OPT": ("ForCausalLM", {"r": 3, "auxiliary_loss_weight": 0.5}),
}


def shadowed(package, base: str, **settings):
    head, own = SHADOWS[base]
    model = family(base, head)
    torch.manual_seed(6)
    return package.get_peft_model(model, package.ShadowConfig(task_type="CAUSAL_LM", **{**own, **settings}))


@pytest.mark.parametrize("base", SHADOWS)
def test_a_shadow_is_peft_s(base, tmp_path):
    ours, theirs = (shadowed(package, base, init_weights=False, shadow_dropout=0.0) for package in (engine, peft))
    a, b = learned(ours), learned(theirs)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)
    outputs = [model.eval()(input_ids=ids(), labels=ids()) for model in (ours, theirs)]
    for what in ("logits", "loss", "shadow_loss"):
        torch.testing.assert_close(getattr(outputs[0], what), getattr(outputs[1], what), atol=1e-5, rtol=1e-4)
    for output in outputs:
        output.loss.backward()
    taught = [name for name in a if b[name].grad is not None]      # nothing looks at the state after the last block
    assert taught == [name for name in a if a[name].grad is not None] and len(taught) > len(a) / 2
    for name in taught:
        torch.testing.assert_close(a[name].grad, b[name].grad, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        for name in taught:
            a[name].sub_(a[name].grad), b[name].copy_(a[name])
    expected = theirs(input_ids=ids()).logits
    ours.save_pretrained(tmp_path / "ours"), theirs.save_pretrained(tmp_path / "theirs")
    loaded = [package.PeftModel.from_pretrained(family(base, SHADOWS[base][0]), tmp_path / where)
              for package, where in ((engine, "theirs"), (peft, "ours"), (engine, "ours"))]
    for model in (ours, *loaded):
        torch.testing.assert_close(model(input_ids=ids()).logits, expected, atol=1e-5, rtol=1e-4)
    for settings in ({"do_sample": False}, {"num_beams": 2, "do_sample": False}):
        said = ours.generate(input_ids=ids(2, 5), max_new_tokens=6, **settings)      # PEFT's shadow hears only the last word beside a cache
        assert torch.equal(said, theirs.generate(input_ids=ids(2, 5), max_new_tokens=6, use_cache=False, **settings))
    alone = [model.unload_shadow() for model in (ours, theirs)]
    torch.testing.assert_close(alone[0](input_ids=ids()).logits, alone[1](input_ids=ids()).logits, atol=1e-5, rtol=1e-4)


def test_a_classifier_with_a_shadow_is_peft_s():
    built = []
    for package in (engine, peft):
        model = family("Llama", "ForSequenceClassification", num_labels=3)
        torch.manual_seed(6)
        built.append(package.get_peft_model(model, package.ShadowConfig(task_type="SEQ_CLS", init_weights=False, shadow_dropout=0.0)).eval())
    labels = torch.tensor([2, 0])
    outputs = [model(input_ids=ids(), labels=labels) for model in built]
    for what in ("logits", "loss", "shadow_loss"):
        torch.testing.assert_close(getattr(outputs[0], what), getattr(outputs[1], what), atol=1e-5, rtol=1e-4)
    assert {n.replace("original_module.", "") for n in learned(built[0])} == {n for n in learned(built[1])}
