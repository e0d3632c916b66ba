"""PEFT's enumerations: words that are strings as well, so that ``"LORA"`` and ``PeftType.LORA`` mean the same wherever one is asked for."""

from __future__ import annotations

import enum


class _Words(str, enum.Enum):                # noqa: UP042 (str() of one gives what it gives in PEFT)
    """Words that are strings, as PEFT's enumerations are."""


def _words(name: str, words: str) -> type[_Words]:
    return _Words(name, {word: word for word in words.split()}, module=__name__)


PeftType = _words("PeftType", """PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING LORA ADALORA ADAMSS BOFT ADAPTION_PROMPT IA3 BEFT
LILY LOHA LOKR OFT POLY LN_TUNING VERA FROD PVERA FOURIERFT GLORA XLORA HRA VBLORA UNILORA CPT MISS RANDLORA ROAD TRAINABLE_TOKENS HIRA SHIRA C3A
WAVEFT OSF DELORA GRALORA CARTRIDGE TINYLORA PSOFT PEANUT SHADOW SUPERTUNING DEFT""")
PeftType.__doc__ = "Every method of PEFT 0.21.2, in its order; those that this engine has are ``engine.methods.registry.names()``."

TaskType = _words("TaskType", "SEQ_CLS SEQ_2_SEQ_LM CAUSAL_LM TOKEN_CLS QUESTION_ANS FEATURE_EXTRACTION")
TaskType.__doc__ = "What the model is for; `get_peft_model` chooses the task class by it. The words are PEFT's."

PromptTuningInit = _words("PromptTuningInit", "TEXT SAMPLE_VOCAB RANDOM")
PromptTuningInit.__doc__ = "What a prompt begins as: the words of a text, words drawn from the vocabulary, or random numbers. The words are PEFT's."

MultitaskPromptTuningInit = _words("MultitaskPromptTuningInit", "TEXT RANDOM AVERAGE_SOURCE_TASKS EXACT_SOURCE_TASK ONLY_SOURCE_SHARED")
MultitaskPromptTuningInit.__doc__ = "What a prompt of several tasks begins as; the last three at one that has been learned. The words are PEFT's."

PromptEncoderReparameterizationType = _words("PromptEncoderReparameterizationType", "MLP LSTM")
PromptEncoderReparameterizationType.__doc__ = "The network that computes the prompt in p-tuning. The words are PEFT's."
