"""Signs of chat templates that stand inside a text: the model would take them for the beginning or end of a turn."""

from __future__ import annotations

import re

_KNOWN = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text|end_of_text|finetune_right_pad_id|"
    r"system|user|assistant|end|eot|start|message|channel|return|pad|fim_(?:prefix|middle|suffix)|end_of_turn|endofprompt)\|>"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|pad|unk)>|<s>(?=\s*\[INST\])|</s>|\[/?INST\]|<</?SYS>>"
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|SYSTEM_PROMPT)\]"
    r"|<[｜|](?:begin▁of▁sentence|end▁of▁sentence|User|Assistant)[｜|]>"
    r"|^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|Anweisung|Antwort) ?:[ \t]*$"
    r"|^(?:USER|ASSISTANT|HUMAN) ?:(?= )", re.MULTILINE)
_STRIKE = re.compile(r"<s>[^<]{1,200}</s>")        # HTML that strikes words out


def found(text: str, more: frozenset[str] = frozenset()) -> list[str]:
    """Template signs in a text, each once, in order; ``more``: the control signs of the model that is to learn."""
    if not any(sign in text for sign in "<[#:") and not more:
        return []
    marks = [match[0] for match in _KNOWN.finditer(_STRIKE.sub("", text))]
    return list(dict.fromkeys(marks + [mark for mark in more if mark in text]))


def strip(text: str, marks: list[str]) -> str:
    """The text without these signs and the blanks they leave; what only they set apart keeps one line break."""
    for mark in sorted(marks, key=len, reverse=True):
        text = text.replace(mark, "")
    text = re.sub(r"[ \t]{2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()
