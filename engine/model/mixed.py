"""PeftMixedModel: a stack of adapters of any kinds, in an order and with strengths that can be saved as one mix."""

from __future__ import annotations

from engine.model.peft_model import PeftModel


class PeftMixedModel(PeftModel):
    """Adapters of different methods on one base (PEFT class of the same name)."""
