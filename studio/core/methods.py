"""The methods that a person chooses from: those on cards, in plain words, and what a preset's capacity means for each.

A choice is the key of a card, or PEFT's name of any other method. Torch-free: what the engine knows of a method comes as a report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from studio.core.text import Phrase
from studio.core.text import teach as words

EVERYWHERE = {"target_modules": "all-linear"}
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


@dataclass(frozen=True)
class MethodCard:
    """``settings`` make the method this one; ``capacity`` says a preset's rank in the method's own settings, by PEFT's names."""

    title: str                             # a proper name: never translated
    good: Phrase
    cannot: Phrase
    peft_type: str
    settings: dict = field(default_factory=dict)
    capacity: Callable[[int], dict] = lambda rank: {"r": rank}


CARDS: dict[str, MethodCard] = {
    "LORA": MethodCard("LoRA", words.LORA_GOOD, words.LORA_CANNOT, "LORA", EVERYWHERE, lambda rank: {"r": rank, "lora_alpha": 2 * rank}),
    "DORA": MethodCard("DoRA", words.DORA_GOOD, words.DORA_CANNOT, "LORA", {**EVERYWHERE, "use_dora": True},
                       lambda rank: {"r": rank, "lora_alpha": 2 * rank}),
    "LOHA": MethodCard("LoHa", words.LOHA_GOOD, words.LOHA_CANNOT, "LOHA", EVERYWHERE, lambda rank: {"r": rank, "alpha": rank}),
    "OFT": MethodCard("OFT", words.OFT_GOOD, words.OFT_CANNOT, "OFT", EVERYWHERE, lambda rank: {}),
    "IA3": MethodCard("IA³", words.IA3_GOOD, words.IA3_CANNOT, "IA3", {**EVERYWHERE, "feedforward_modules": []}, lambda rank: {}),
    "PREFIX_TUNING": MethodCard("Prefix tuning", words.PREFIX_GOOD, words.PREFIX_CANNOT, "PREFIX_TUNING",
                                capacity=lambda rank: {"num_virtual_tokens": rank}),
}


def peft_type(choice: str) -> str:
    """PEFT's name of the method behind a choice."""
    return CARDS[choice].peft_type if choice in CARDS else choice


def settings(choice: str, rank: int) -> dict:
    """What a preset of this capacity sets in the method's config, by PEFT's names."""
    if choice in CARDS:
        return {**CARDS[choice].capacity(rank), **CARDS[choice].settings}
    return {"num_virtual_tokens": rank} if choice in PROMPTS else {}        # the engine knows where each method learns best


def title(choice: str, others: list[dict] = ()) -> str:
    """Its name, as on its card; ``others`` are the methods of a `MethodsReport`."""
    return CARDS[choice].title if choice in CARDS else next((m["title"] for m in others if m["peft_type"] == choice), choice)
