"""Words of the window's frame: menus, library, stack, inspector, activity."""

from __future__ import annotations

from studio.core.text import Counted, Phrase

# notices
details = Phrase("Details")
hide_details = Phrase("Hide details")
copy = Phrase("Copy")
copied = Phrase("Copied.")
close = Phrase("Close this message")
notices = Phrase("Messages")

# steps that can be undone (shown as "Undo: …")
undo_add = Phrase("add {name}")
undo_add_many = Counted("add {n} adapter", "add {n} adapters")
undo_remove = Phrase("remove {name}")
undo_move = Phrase("move {name}")
undo_strength = Phrase("strength of {name}")
undo_on = Phrase("switch {name} on")
undo_off = Phrase("switch {name} off")
undo_base = Phrase("choose the model {name}")

# sizes and kinds
_number = Phrase("{number} {unit}")


def size(bytes: float) -> str:
    """12_300_000 → "12.3 MB" (decimal units, as file managers and downloads count)."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes < 1000:
            return _number(number=f"{bytes:.0f}" if bytes >= 100 or unit == "B" else f"{bytes:.1f}", unit=unit)
        bytes /= 1000
    return _number(number=f"{bytes:.1f}", unit="TB")


def short_number(number: float) -> str:
    """134_500_000 → "135 M"."""
    for unit in ("", "k", "M", "B"):
        if number < 1000 or unit == "B":
            return f"{number:.3g} {unit}".strip()
        number /= 1000
    return ""


def parameters(number: int) -> str:
    return short_number(number)


def numbers(number: int) -> str:
    return numbers_in(shown=short_number(number))


numbers_in = Phrase("{shown} numbers")
KINDS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "OFT": "OFT", "BOFT": "BOFT", "IA3": "IA³", "VERA": "VeRA",
         "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "P-tuning", "FOURIERFT": "FourierFT", "HRA": "HRA", "VBLORA": "VB-LoRA"}
kind_with_rank = Phrase("{kind} {rank}")


def kind(peft_type: str, config: dict | None = None) -> str:
    """A method's usual spelling; LoRA with its variants by their own names."""
    if peft_type == "LORA" and config and config.get("use_dora"):
        return "DoRA"
    return KINDS.get(peft_type, peft_type or unknown_kind())


def kind_and_rank(peft_type: str, rank: int | None) -> str:
    return kind_with_rank(kind=kind(peft_type), rank=rank) if rank else kind(peft_type)


unknown_kind = Phrase("unknown kind")
unknown_model = Phrase("an unknown model")
places = Counted("{n} place", "{n} places")
layers = Counted("{n} layer", "{n} layers")
_layer = Phrase("Layer {number}")


def layer(number: int) -> str:
    return _layer(number=number)


# the library
tree_strangers = Phrase("For other models")
tree_strangers_tip = Phrase("Adapters whose own model is not in the library")
tree_exports = Phrase("Exports")
tree_problems = Phrase("Cannot be used")
tree_adapter_tip = Phrase("{name}: drag it into the stack, or press Enter")
misfit_other_model = Phrase("{adapter} was taught on {base} and does not fit {model}.")
not_in_library = Phrase("{name} is not in the library. Drop its folder on the library first.")
base_missing = Phrase("{adapter} needs the model {base}, which is not in the library.")
stack_base_gone = Phrase("The model {model} is no longer in the library. Choose another model for the stack.")
entry_gone = Phrase("Its files are gone. Remove it, or bring the folder back.")
no_adapter_in_drop = Phrase("There is no adapter in this folder (adapter_config.json is missing).")
row_spoken = Phrase("{name}, position {place} of {count}, strength {percent} percent, {state}")
on = Phrase("on")
off = Phrase("off")
