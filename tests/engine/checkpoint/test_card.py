"""The model card: what the Hub reads is filled in, what a person wrote stays."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from engine import LoHaConfig, LoraConfig, get_peft_model
from engine.checkpoint.card import write_card
from engine.configs import FORMAT_VERSION
from tests.support.tiny import make_model


def adapted(name: str = "", config=None, quantization=None):
    model = make_model()
    model.config._name_or_path = name
    if quantization:
        model.config.quantization_config = quantization
    return get_peft_model(model, config or LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def test_the_head_says_what_the_hub_wants_to_know(tmp_path):
    adapted("shop/bread").create_or_update_model_card(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "peft" and data.base_model == "shop/bread" and data.pipeline_tag == "text-generation"
    assert data.tags == ["base_model:adapter:shop/bread", "lora", "transformers"]
    assert f"- PEFT {FORMAT_VERSION}" in (tmp_path / "README.md").read_text()


def test_another_kind_and_no_task(tmp_path):
    write_card(adapted("shop/bread", LoHaConfig(r=2, target_modules=["q_proj"])), tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert "lora" not in data.tags and data.pipeline_tag is None


@pytest.mark.parametrize("path", ["/data/bread", "./bread", "~/bread", "C:\\bread", ""])
def test_a_place_on_this_computer_is_not_told(path, tmp_path):
    write_card(adapted(path), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "bread" not in text and "base_model" not in text


def test_what_a_person_wrote_stays(tmp_path):
    mine = ("---\nlicense: mit\ntags:\n- bakery\npipeline_tag: question-answering\n---\n\n# Our bread\n\nAsk Anna.\n\n"
            "### Framework versions\n\n- Ovens 3\n")
    (tmp_path / "README.md").write_text(mine)
    write_card(adapted("shop/bread"), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and "bakery" in card.data.tags and card.data.pipeline_tag == "question-answering"
    assert all(line in card.text for line in ("# Our bread", "Ask Anna.", "- Ovens 3", f"- PEFT {FORMAT_VERSION}"))


def test_a_second_time_changes_nothing(tmp_path):
    model = adapted("shop/bread", quantization={"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True})
    write_card(model, tmp_path)
    once = (tmp_path / "README.md").read_text()
    write_card(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == once
    assert "The following `bitsandbytes` quantization config" in once and "- load_in_4bit: True" in once and "_load_in_4bit" not in once.replace(
        "- load_in_4bit", "")
