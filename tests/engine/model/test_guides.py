"""What PEFT's guides show (quick tour, configurations, checkpoints, custom models, injection, merging, mixes, compiling, troubleshooting,
memory), in words of our own on tiny models: one test for each thing shown. Its page "Models" is `test_documentation.py`; what its guides
show of transformers' own adapter functions and `Trainer` is `tests/engine/compat/cases/test_transformers.py`."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import engine
from engine import (AutoPeftModel, AutoPeftModelForCausalLM, IA3Config, LoHaConfig, LoraConfig, PeftConfig, PeftMixedModel, PeftModel,
                    PromptEncoderConfig, TaskType, get_base_model_state_dict, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model,
                    load_peft_weights, set_base_model_state_dict, set_peft_model_state_dict)
from tests.support.families import family, ids
from tests.support.tiny import make_model, save_base


def heard(model: nn.Module, x: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids() if x is None else x).logits


def loud(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings})


def train(model: nn.Module, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# --- quick tour, configurations and models ---

def test_from_a_config_to_a_trained_file_and_back(tmp_path):
    base = save_base(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    config = LoraConfig(target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM, inference_mode=False, r=8, lora_alpha=32, lora_dropout=0.1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).train()
    losses = train(model, 6)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    size = (tmp_path / "mine" / "adapter_model.safetensors").stat().st_size
    assert size < 0.2 * (base / "model.safetensors").stat().st_size
    expected = heard(model.eval())
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "mine")
    torch.testing.assert_close(heard(again), expected)
    assert torch.equal(again.generate(input_ids=ids(), max_new_tokens=4, do_sample=False),
                       model.generate(input_ids=ids(), max_new_tokens=4, do_sample=False))
    by_hand = PeftConfig.from_pretrained(tmp_path / "mine")
    assert isinstance(by_hand, LoraConfig) and by_hand.base_model_name_or_path == str(base)
    other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(by_hand.base_model_name_or_path), tmp_path / "mine")
    torch.testing.assert_close(heard(other), expected)
    assert not any(p.requires_grad for p in other.parameters())


def test_a_task_without_a_class_of_its_own(tmp_path):
    family("Bart", "ForConditionalGeneration").save_pretrained(tmp_path / "base")
    from transformers import BartForConditionalGeneration

    model = get_peft_model(BartForConditionalGeneration.from_pretrained(tmp_path / "base"),
                           LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "mine")
    again = AutoPeftModel.from_pretrained(tmp_path / "mine")
    assert type(again) is PeftModel and type(again.get_base_model()) is BartForConditionalGeneration
    torch.testing.assert_close(again(input_ids=ids(), decoder_input_ids=ids()).logits, model.eval()(input_ids=ids(), decoder_input_ids=ids()).logits)


def test_several_adapters_of_one_model_are_chosen_by_name():
    model = get_peft_model(make_model(), loud()).eval()
    first = heard(model)
    model.add_adapter("other", loud(r=2))
    assert model.active_adapters == ["default"] and torch.equal(heard(model), first)
    model.set_adapter("other")
    assert not torch.allclose(heard(model), first)
    model.set_adapter("default")
    assert torch.equal(heard(model), first)


def test_going_on_with_a_loaded_adapter(tmp_path):
    get_peft_model(make_model(), loud()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True).train()
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    assert before
    train(model)
    assert not any(torch.equal(a, b) for a, b in zip(before, (p for p in model.parameters() if p.requires_grad), strict=True))


def test_a_prompt_s_config_with_every_size_given_by_hand(tmp_path):
    config = PromptEncoderConfig(encoder_reparameterization_type="MLP", encoder_hidden_size=12, num_attention_heads=4, num_layers=2,
                                 num_transformer_submodules=1, num_virtual_tokens=5, token_dim=32, task_type=TaskType.SEQ_CLS)
    model = get_peft_model(family("Roberta", "ForSequenceClassification"), config).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(family("Roberta", "ForSequenceClassification"), tmp_path)
    torch.testing.assert_close(heard(again), heard(model))
    assert set(load_file(tmp_path / "adapter_model.safetensors")) >= {"prompt_embeddings"}      # no prefix before a prompt's tensors


# --- checkpoints ---

@pytest.mark.parametrize(("config", "layers", "leaves"), [
    (lambda: LoraConfig(), ("attention.self.query", "attention.self.value"), ("lora_A.weight", "lora_B.weight")),
    (lambda: LoraConfig(use_dora=True), ("attention.self.query", "attention.self.value"),
     ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")),
    (lambda: IA3Config(), ("attention.self.key", "attention.self.value", "output.dense"), ("ia3_l",))], ids=["LoRA", "DoRA", "IA3"])
def test_what_stands_in_the_files(config, layers, leaves, tmp_path):
    model = get_peft_model(family("Bert", "Model"), config(), "other")
    model.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "other" / "adapter_model.safetensors"))       # a name that is not "default" is a folder's
    assert keys >= {f"base_model.model.encoder.layer.{i}.{layer}.{leaf}" for i in range(2) for layer in layers for leaf in leaves}
    assert all(".other." not in key for key in keys)
    said = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    assert said["peft_type"] == model.peft_config["other"].peft_type and said["inference_mode"] is True
    assert said["auto_mapping"] == {"base_model_class": "BertModel", "parent_library": "transformers.models.bert.modeling_bert"}


def test_the_least_that_a_config_has_to_say(tmp_path):
    """A file of someone else's: two settings and two matrices a layer."""
    torch.manual_seed(0)
    base = family("Bert", "Model")
    tensors = {f"base_model.model.encoder.layer.{i}.attention.self.{layer}.lora_{half}.weight": torch.randn(*shape)
               for i in range(2) for layer in ("query", "value") for half, shape in (("A", (8, 32)), ("B", (32, 8)))}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": ["query", "value"], "peft_type": "LORA"}))
    model = PeftModel.from_pretrained(base, tmp_path)
    assert model.load_report.complete
    layer, W0 = model.adapted["encoder.layer.0.attention.self.query"], base.encoder.layer[0].attention.self.query.base_layer.weight
    A, B = (tensors[f"base_model.model.encoder.layer.0.attention.self.query.lora_{half}.weight"] for half in "AB")
    torch.testing.assert_close(layer.compose(), W0 + B @ A, atol=1e-5, rtol=1e-5)


def test_the_whole_model_in_one_folder(tmp_path):
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(save_base(tmp_path / "base")), loud()).eval()
    expected = heard(model)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(heard(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


# --- custom models ---

class MLP(nn.Module):
    def __init__(self, hidden: int = 40):
        super().__init__()
        self.seq = nn.Sequential(nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2), nn.LogSoftmax(-1))

    def forward(self, X):
        return self.seq(X)


def test_a_network_of_one_s_own_whose_last_layer_learns_whole(tmp_path, capsys):
    torch.manual_seed(0)
    base, X = MLP(), torch.randn(16, 20)
    state = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["seq.0", "seq.2"], modules_to_save=["seq.4"]))
    model.print_trainable_parameters()
    learned = 4 * (20 + 40) + 4 * (40 + 40) + 40 * 2 + 2
    assert capsys.readouterr().out.startswith(f"trainable params: {learned:,d} || ")
    assert list(model.adapted) == ["seq.0", "seq.2", "seq.4"]
    optimizer, y = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01), torch.arange(16) % 2
    losses = []
    for _ in range(40):
        losses.append(nn.functional.nll_loss(model(X), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    model.eval().save_pretrained(tmp_path)
    fresh = MLP()
    fresh.load_state_dict(state)
    torch.testing.assert_close(PeftModel.from_pretrained(fresh, tmp_path)(X), model(X))


class Picture(nn.Module):
    """Convolutions in stages under a head, as networks for pictures have them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.ModuleList(nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Conv2d(4, 8, 1), "fc2": nn.Conv2d(8, 4, 1)})}) for _ in range(2))
        self.head = nn.ModuleDict({"fc": nn.Linear(4, 5)})

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = x + stage["mlp"]["fc2"](stage["mlp"]["fc1"](x).relu())
        return self.head["fc"](x.mean((2, 3)))


def test_convolutions_chosen_by_a_regular_expression(tmp_path):
    torch.manual_seed(0)
    base, x = Picture(), torch.randn(2, 3, 6, 6)
    state = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(target_modules=r".*\.mlp\.fc\d", modules_to_save=["head.fc"], init_lora_weights=False)).eval()
    assert set(model.adapted) == {f"stages.{i}.mlp.fc{n}" for i in range(2) for n in (1, 2)} | {"head.fc"}
    running = model(x)
    model.save_pretrained(tmp_path)
    again = Picture()
    again.load_state_dict(state)
    torch.testing.assert_close(PeftModel.from_pretrained(again, tmp_path).merge_and_unload()(x), running, atol=1e-5, rtol=1e-5)


def test_an_architecture_that_nobody_has_heard_of_needs_its_layers_named():
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(MLP(), LoraConfig())
    model = get_peft_model(family("Mistral", "ForCausalLM"), LoraConfig())        # of a family that is known they are
    assert {path.rpartition(".")[2] for path in model.adapted} == {"q_proj", "v_proj"}


# --- injection ---

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear, self.lm_head = nn.Embedding(10, 10), nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x):
        return self.lm_head(self.linear(self.embedding(x)))


def test_a_file_without_its_config_says_by_its_keys_where_it_sits(tmp_path):
    torch.manual_seed(0)
    model, x = inject_adapter_in_model(LoraConfig(r=4, target_modules=["linear"], init_lora_weights=False), Words()), torch.arange(8)[None]
    base = {key: tensor for key, tensor in get_base_model_state_dict(model).items()}
    state, expected = get_peft_model_state_dict(model), model(x)
    save_file(state, tmp_path / "adapter_model.safetensors")
    for cheap in (False, True):
        again = Words()
        again.load_state_dict(base)
        again = inject_adapter_in_model(LoraConfig(r=4), again, state_dict=state, low_cpu_mem_usage=cheap)
        if cheap:
            assert all(t.is_meta for t in again.linear.tensors("default").values())
        assert not set_peft_model_state_dict(again, load_file(tmp_path / "adapter_model.safetensors"), low_cpu_mem_usage=cheap).unexpected
        torch.testing.assert_close(again(x), expected)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["linear"]}))
    assert {key: tensor.shape for key, tensor in load_peft_weights(tmp_path).items()} == {key: tensor.shape for key, tensor in state.items()}


def test_the_base_s_weights_come_in_after_the_adapter_was_put_on():
    other = make_model(seed=5)
    model = get_peft_model(make_model(), LoraConfig(target_modules="all-linear"))
    outcome = set_base_model_state_dict(model, other.state_dict(), strict=False)
    assert not outcome.missing_keys and not outcome.unexpected_keys
    assert get_base_model_state_dict(model).keys() == other.state_dict().keys()
    torch.testing.assert_close(heard(model.eval()), heard(other))                  # a new LoRA changes nothing


# --- merging and mixing ---

@pytest.mark.parametrize(("combination", "density"), [("ties", 0.5), ("dare_ties", 0.5), ("linear", None), ("cat", None), ("svd", None)])
def test_adapters_merged_into_a_new_one(combination, density, tmp_path):
    for i, name in enumerate(("answers", "advertisements", "queries")):
        torch.manual_seed(i)
        get_peft_model(make_model(), loud()).save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(make_model(), tmp_path / "answers", adapter_name="answers")
    model.load_adapter(tmp_path / "advertisements", adapter_name="advertisements")
    model.load_adapter(tmp_path / "queries", adapter_name="queries")
    model.add_weighted_adapter(["answers", "advertisements", "queries"], [2.0, 0.3, 0.7], "merge", combination_type=combination, density=density)
    model.set_adapter("merge")
    merged = heard(model)
    assert torch.isfinite(merged).all() and not torch.allclose(merged, heard(make_model()))
    if combination == "cat":
        model.set_adapter({"answers": 2.0, "advertisements": 0.3, "queries": 0.7})
        torch.testing.assert_close(heard(model), merged, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path, selected_adapters=["merge"])
    torch.testing.assert_close(heard(PeftModel.from_pretrained(make_model(), tmp_path / "merge")), merged, atol=1e-4, rtol=1e-4)


def test_vectors_are_merged_by_their_weighted_mean():
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False)
    model = get_peft_model(make_model(), config, "one")
    for name in ("two", "three"):
        model.add_adapter(name, config)
    model.add_weighted_adapter(["one", "two", "three"], [0.4, 0.3, 0.3], "merge")
    states = {name: get_peft_model_state_dict(model, adapter_name=name) for name in model.peft_config}
    for key, tensor in states["merge"].items():
        torch.testing.assert_close(tensor, 0.4 * states["one"][key] + 0.3 * states["two"][key] + 0.3 * states["three"][key])
    model.set_adapter("merge")
    assert model.active_adapters == ["merge"]


def test_adapters_of_two_kinds_from_their_folders(tmp_path):
    get_peft_model(make_model(), loud()).save_pretrained(tmp_path / "lora")
    get_peft_model(make_model(), LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False)).save_pretrained(tmp_path / "loha")
    model = PeftMixedModel.from_pretrained(make_model(), tmp_path / "lora")
    model.load_adapter(tmp_path / "loha", adapter_name="other")
    alone = heard(model)
    model.set_adapter(["default", "other"])
    both = heard(model)
    assert not torch.allclose(alone, both)
    model.merge_adapter()
    torch.testing.assert_close(heard(model), both, atol=1e-4, rtol=1e-4)


# --- compiling ---

@pytest.mark.parametrize("config", [lambda: loud(), lambda: loud(use_dora=True), lambda: loud(target_modules=["embed_tokens", "q_proj"]),
                                    lambda: LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False),
                                    lambda: IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False)],
                         ids=["LoRA", "DoRA", "words", "LoHa", "IA3"])
def test_a_compiled_model_says_and_learns_the_same(config):
    model = get_peft_model(make_model(tied=False), config()).eval()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(heard(compiled), heard(model))
    loss = compiled(input_ids=ids(), labels=ids()).loss
    loss.backward()
    learned = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(input_ids=ids(), labels=ids()).loss.backward()
    assert learned and all(torch.allclose(grad, dict(model.named_parameters())[name].grad, atol=1e-5) for name, grad in learned.items())
    if isinstance(config(), LoraConfig) and not config().use_dora:
        with model.disable_adapter():
            torch.testing.assert_close(heard(compiled), heard(make_model(tied=False)))
        model.merge_adapter()
        torch.testing.assert_close(heard(compiled), heard(model))


# --- troubleshooting ---

def test_a_model_in_sixteen_bits_whose_adapter_learns_in_thirty_two():
    half = lambda: make_model().to(torch.bfloat16)  # noqa: E731
    kinds = lambda model: {(p.dtype, p.requires_grad) for p in model.parameters()}  # noqa: E731
    assert kinds(get_peft_model(half(), loud())) == {(torch.bfloat16, False), (torch.float32, True)}
    assert kinds(get_peft_model(half(), loud(), autocast_adapter_dtype=False)) == {(torch.bfloat16, False), (torch.bfloat16, True)}
    model = get_peft_model(make_model(), loud(), autocast_adapter_dtype=False)
    engine.cast_mixed_precision_params(model, dtype=torch.bfloat16)
    assert kinds(model) == {(torch.bfloat16, False), (torch.float32, True)}


def test_a_head_that_was_made_at_random_is_kept_with_the_adapter(tmp_path):
    base = lambda: family("DebertaV2", "ForSequenceClassification")  # noqa: E731
    for settings, kept in (({}, set()), ({"task_type": "SEQ_CLS"}, {"classifier"}),
                           ({"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "pooler"]}, {"classifier", "pooler"})):
        model = get_peft_model(base(), LoraConfig(target_modules=["query_proj"], **settings))
        model.save_pretrained(tmp_path)
        keys = {key.removeprefix("base_model.model.").partition(".")[0] for key in load_file(tmp_path / "adapter_model.safetensors")}
        assert keys - {"deberta"} == kept


@pytest.mark.parametrize("how", ["words", "LoRA", "whole"])
def test_new_words(how, tmp_path):
    settings = {"words": {"trainable_token_indices": {"embed_tokens": [384, 385]}}, "LoRA": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
                "whole": {"modules_to_save": ["embed_tokens", "lm_head"]}}[how]

    def base():
        model = make_model(tied=how == "words")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model.resize_token_embeddings(386)
        return model

    x = torch.tensor([[5, 384, 9, 385]])
    model = get_peft_model(base(), loud(**settings)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path)
    assert again.load_report.complete
    torch.testing.assert_close(heard(again, x), heard(model, x))
    assert not torch.allclose(heard(again, x), heard(base(), x))


def test_the_status_shows_what_is_wrong():
    model = get_peft_model(family("T5", "ForConditionalGeneration"), LoraConfig())
    layers, whole = model.get_layer_status(), model.get_model_status()
    assert {status.name.rpartition(".")[2] for status in layers} == {"q", "v"} and len(layers) == whole.num_adapter_layers == 12
    assert whole.enabled is True and whole.active_adapters == ["default"] and whole.merged_adapters == [] and whole.requires_grad == {"default": True}
    assert whole.trainable_params == model.get_nb_trainable_parameters()[0] and whole.base_model_type == "T5ForConditionalGeneration"
    next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)   # someone meddles with one layer
    assert model.get_model_status().requires_grad == {"default": "irregular"}


def test_several_adapters_learn_at_once():
    model = get_peft_model(make_model(), loud())
    model.add_adapter("other", loud())
    model.set_adapter(["default", "other"])
    model.set_requires_grad(["default", "other"])
    before = {name: {k: t.clone() for k, t in get_peft_model_state_dict(model, adapter_name=name).items()} for name in model.peft_config}
    train(model.train())
    for name, tensors in before.items():
        assert all(not torch.equal(t, tensors[k]) for k, t in get_peft_model_state_dict(model, adapter_name=name).items()), name


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.normalization, self.classifier = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.normalization(self.convolution(x)).mean((2, 3)))


def test_means_that_change_while_it_learns_are_kept_with_the_adapter(tmp_path):
    torch.manual_seed(0)
    state = {key: tensor.clone() for key, tensor in Normed().state_dict().items()}

    def base():
        model = Normed()
        model.load_state_dict(state)
        return model

    model = get_peft_model(base(), LoraConfig(target_modules=["convolution"], modules_to_save=["classifier", "normalization"])).train()
    x = torch.randn(8, 3, 5, 5) * 3 + 1
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(x), model(x))


def test_a_setting_from_the_future_is_told_and_left_out(tmp_path):
    get_peft_model(make_model(), loud()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "foobar": 3}))
    model = PeftModel.from_pretrained(make_model(), tmp_path)
    assert model.load_report.unknown_settings == ["foobar"] and "foobar" in model.load_report.sentence()
