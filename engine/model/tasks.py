"""The task classes: what a prompt in front of the inputs means for each task's labels and for generating. Adapters in layers need none of it.

Outputs are the base's own for the longer input: with a prompt of n embeddings, logits are n places longer, as in PEFT.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.activation import Offsets, activated
from engine.model.peft_model import PeftModel
from engine.model.prompt_learning import Inputs, before, behind

DECODER = ("decoder_inputs_embeds", "decoder_input_ids", "decoder_attention_mask")


class TaskModel(PeftModel):
    """What the task classes have in common."""

    def with_prompt(self, *args: Any, task_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """The base's forward behind the active prompt.

        Args:
            task_ids: ``(batch,)``, the task of each sample, for prompts that several tasks share.

        Raises:
            ValueError: a mask that is not ``(batch, length)``, or a model without a cache to put the prompt into.
        """
        base, prompts, heard = self.base_model, self.prompts, self.prompts.heard
        inputs = named(base, args, kwargs)
        batch, n = _batch(inputs), heard.length
        if _is_heard(inputs):              # the caller goes on from a cache that has the prompt
            return base(**behind(inputs, n, batch))
        if heard.method.is_cache:
            return base(**behind(inputs, n, batch), **self._prompt_cache(inputs, batch))
        inputs = before(inputs, prompts.embeddings(batch, task_ids), prompts.words)
        return base(**self.lengthened(inputs, n))

    def lengthened(self, inputs: Inputs, n: int) -> Inputs:
        """The call's ``inputs`` with labels that fit to a sequence that is ``n`` places longer in front."""
        return inputs

    def _prompt_cache(self, inputs: Inputs, batch: int) -> Inputs:
        name = self.prompts.cache_name
        inputs.pop(name, None)             # one that is still empty
        return {name: self.prompts.cache(batch)}


class PeftModelForSequenceClassification(TaskModel):
    """A classifier of whole sequences with adapters (PEFT class of the same name)."""

    heads = ("classifier", "score")


class PeftModelForFeatureExtraction(TaskModel):
    """A model without a head with adapters (PEFT class of the same name)."""


class PeftModelForTokenClassification(TaskModel):
    """A classifier of tokens with adapters (PEFT class of the same name). Places of the prompt have no label."""

    heads = ("classifier", "score")

    def lengthened(self, inputs: Inputs, n: int) -> Inputs:
        return _unlabelled(inputs, n)


class PeftModelForQuestionAnswering(TaskModel):
    """A finder of answers in a text with adapters (PEFT class of the same name).

    Start and end in the call are places of the input, in the output's logits they are n further on, behind the prompt (PEFT forgets
    to move them and so teaches wrong places).
    """

    heads = ("qa_outputs",)

    def lengthened(self, inputs: Inputs, n: int) -> Inputs:
        return {k: v + n if k in ("start_positions", "end_positions") and v is not None else v for k, v in inputs.items()}


class PeftModelForCausalLM(TaskModel):
    """A causal language model with adapters (PEFT class of the same name)."""

    def forward(self, *args: Any, adapter_names: list[str] | None = None, alora_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """As `PeftModel.forward`; ``alora_offsets``: where aLoRAs are called, if not where their tokens stand (see `activated`)."""
        if self.prompts is not None:       # beside a prompt nothing waits to be called
            return super().forward(*args, adapter_names=adapter_names, **kwargs)
        ids = kwargs.get("input_ids", args[0] if args else None)
        with activated(self, ids, adapter_names, alora_offsets):
            return super().forward(*args, adapter_names=adapter_names, **kwargs)

    def generate(self, *args: Any, adapter_names: list[str] | None = None, alora_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """As `PeftModel.generate`; ``alora_offsets`` as in `forward`."""
        ids = next((found for found in (kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1]) if found is not None), None)
        copies = copies_made(self.get_base_model(), kwargs)
        with activated(self, ids, adapter_names, alora_offsets, copies, writes=True):
            return super().generate(*args, adapter_names=adapter_names, **kwargs)

    def with_prompt(self, *args: Any, task_ids: Tensor | None = None, input_type_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """As for every task; ``input_type_mask`` ``(batch, length)``: for CPT, what each token of the input is."""
        heard, labels = self.prompts.heard, kwargs.get("labels")
        if labels is None or not heard.method.own_loss:
            return super().with_prompt(*args, task_ids=task_ids, **kwargs)
        as_tuple = kwargs.get("return_dict") is False
        output = super().with_prompt(*args, task_ids=task_ids, **{**kwargs, "labels": None, "return_dict": True})
        output = type(output)(**{"loss": heard.method.loss(heard.config, output.logits, labels, input_type_mask), **output})
        return output.to_tuple() if as_tuple else output

    def lengthened(self, inputs: Inputs, n: int) -> Inputs:
        return _unlabelled(inputs, n)

    def generate_with_prompt(self, inputs: Tensor | None = None, generation_config: Any = None, *, task_ids: Tensor | None = None,
                             **kwargs: Any) -> Any:
        """The base's ``generate`` (``inputs`` ``(batch, length)``, ``generation_config`` …) behind the active prompt.

        Lengths count the input's tokens, not those of the prompt. ``task_ids``: as in `with_prompt`. Raises `ValueError` without input.
        """
        base, prompts, n = self.base_model, self.prompts, self.prompts.heard.length
        kwargs, generation_config, settings = _settled(base, kwargs, generation_config)
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        embeds = kwargs.pop("inputs_embeds", None)
        if ids is None and embeds is None:
            raise ValueError("input_ids must be provided for Peft model generation")
        source = ids if embeds is None else embeds
        batch = len(source)
        seen: Inputs = {"attention_mask": kwargs.pop("attention_mask", None), "position_ids": kwargs.pop("position_ids", None),
                        "token_type_ids": kwargs.pop("token_type_ids", None)}
        if seen["attention_mask"] is None:
            seen["attention_mask"] = _mask(source, settings)
        if prompts.heard.method.is_cache:
            if embeds is not None:         # generate leaves out as many of them as the cache holds
                kwargs["inputs_embeds"] = torch.cat([embeds.new_zeros(batch, n, embeds.shape[2]), embeds], dim=1)
            found = {**behind(seen, n, batch), **self._prompt_cache(kwargs, batch * _copies(settings)), "use_cache": True}
        else:
            found = before({**seen, "input_ids": ids, "inputs_embeds": embeds}, prompts.embeddings(batch, task_ids), prompts.words)
            _count_new(kwargs, generation_config, settings, source.shape[1])
        found |= {} if ids is None else {"input_ids": ids}
        return base.generate(generation_config=generation_config, **{**kwargs, **{k: v for k, v in found.items() if v is not None}})


class PeftModelForSeq2SeqLM(TaskModel):
    """An encoder-decoder with adapters (PEFT class of the same name).

    Embeddings stand before the encoder's input; a multitask prompt of two halves (``num_transformer_submodules=2``) before the
    decoder's too. Keys and values stand before the decoder's.
    """

    def with_prompt(self, *args: Any, task_ids: Tensor | None = None, **kwargs: Any) -> Any:
        inputs, prompts = named(self.base_model, args, kwargs), self.prompts
        batch, n = _batch(inputs), prompts.heard.length
        if prompts.heard.method.is_cache:
            cache = {} if _is_heard(inputs) else self._prompt_cache(inputs, batch)
            return self.base_model(**behind(inputs, n, batch, "decoder_attention_mask"), **cache)
        rows = prompts.embeddings(batch, task_ids)
        if inputs.get("encoder_outputs") is None:              # those would have been made behind the prompt
            inputs = before(inputs, rows[:, :n], prompts.words)
        if self._in_decoder and not _is_heard(inputs):
            if inputs.get("decoder_inputs_embeds") is None and inputs.get("decoder_input_ids") is None and inputs.get("labels") is not None:
                inputs["decoder_input_ids"] = self.base_model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
            inputs = _unlabelled(before(inputs, rows[:, n:], prompts.words, DECODER), n)
        return self.base_model(**inputs)

    @property
    def _in_decoder(self) -> bool:
        heard = self.prompts.heard
        return heard.method.in_decoder and heard.config.num_transformer_submodules == 2

    def generate_with_prompt(self, inputs: Tensor | None = None, generation_config: Any = None, *, task_ids: Tensor | None = None,
                             **kwargs: Any) -> Any:
        """The base's ``generate`` (``inputs`` ``(batch, length)``, ``generation_config`` …) behind the active prompt.

        ``task_ids``: as in `with_prompt`. Raises `ValueError` without input.
        """
        base, prompts, n = self.base_model, self.prompts, self.prompts.heard.length
        kwargs, generation_config, settings = _settled(base, kwargs, generation_config)
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        embeds = kwargs.pop("inputs_embeds", None)
        if ids is None and embeds is None:
            raise ValueError("input_ids must be provided for Peft model generation")
        source = ids if embeds is None else embeds
        batch = len(source)
        seen: Inputs = {"input_ids": ids, "inputs_embeds": embeds, "attention_mask": kwargs.pop("attention_mask", None)}
        if seen["attention_mask"] is None:
            seen["attention_mask"] = _mask(source, settings)
        if prompts.heard.method.is_cache:
            found = {**seen, **self._prompt_cache(kwargs, batch * _copies(settings))}
        else:
            if kwargs.pop("encoder_outputs", None) is not None:
                warnings.warn("`encoder_outputs` should not be passed to `generate` when using prompt tuning. Ignoring it.", stacklevel=2)
            rows = prompts.embeddings(batch, task_ids)
            found = before(seen, rows[:, :n], prompts.words)
            if self._in_decoder:
                found = self._read_prompt(found, rows[:, n:], _copies(settings))
        if prompts.heard.method.is_cache or self._in_decoder:
            found |= behind({"decoder_attention_mask": _decoder_mask(kwargs, source)}, n, batch, "decoder_attention_mask")
            found["use_cache"] = True
        return base.generate(generation_config=generation_config, **{**kwargs, **{k: v for k, v in found.items() if v is not None}})

    @torch.no_grad()
    def _read_prompt(self, inputs: Inputs, rows: Tensor, copies: int) -> Inputs:
        """The encoder's work, and the decoder's cache after the prompt ``rows``: no ``generate`` takes a decoder's embeddings."""
        encoded = self.base_model.get_encoder()(return_dict=True, **inputs)
        mask = inputs["attention_mask"]
        read = self.base_model(encoder_outputs=encoded, attention_mask=mask, decoder_inputs_embeds=rows.to(encoded[0]), use_cache=True,
                               return_dict=True)
        name = self.prompts.cache_name
        read[name].batch_repeat_interleave(copies)
        return {"encoder_outputs": encoded, "attention_mask": mask, name: read[name]}


_CLASSES: dict[str, type[PeftModel]] = {
    "SEQ_CLS": PeftModelForSequenceClassification, "SEQ_2_SEQ_LM": PeftModelForSeq2SeqLM, "CAUSAL_LM": PeftModelForCausalLM,
    "TOKEN_CLS": PeftModelForTokenClassification, "QUESTION_ANS": PeftModelForQuestionAnswering,
    "FEATURE_EXTRACTION": PeftModelForFeatureExtraction}


def task_class(task_type: str | None) -> type[PeftModel]:
    """The class for a ``task_type``. Raises `ValueError` for one that is unknown."""
    name = getattr(task_type, "value", task_type)
    if name in (None, ""):
        return PeftModel
    if name not in _CLASSES:
        raise ValueError(f"Invalid task type: '{name}'. Must be one of the following task types: {', '.join(_CLASSES)}.")
    return _CLASSES[name]


# --- small things ---------------------------------------------------------------------------------

def named(model: nn.Module, args: tuple, kwargs: Inputs) -> Inputs:
    """The arguments of a call of ``model``, by name."""
    return {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs} if args else dict(kwargs)


def _batch(inputs: Inputs) -> int:
    for name in ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds"):
        if (found := inputs.get(name)) is not None:
            return found.shape[0]
    raise ValueError("You have to provide either input_ids or inputs_embeds")


def _is_heard(inputs: Inputs) -> bool:
    """Whether the call goes on from a cache that holds something already."""
    for name in ("cache", "past_key_values"):
        if (cache := inputs.get(name)) is not None and cache.get_seq_length() > 0:
            return True
    return False


def _unlabelled(inputs: Inputs, n: int) -> Inputs:
    """``n`` places without a label before the labels."""
    labels = inputs.get("labels")
    if labels is None:
        return inputs
    return {**inputs, "labels": torch.cat([labels.new_full((len(labels), n), -100), labels], dim=1)}


def _settled(base: nn.Module, kwargs: Inputs, generation_config: Any) -> tuple[Inputs, Any, Any]:
    """(the call's arguments, its config as a copy, a function: the value of a setting as ``generate`` will see it)."""
    kwargs, generation_config = dict(kwargs), copy.copy(generation_config)

    def setting(name: str) -> Any:
        for place in (kwargs.get(name), getattr(generation_config, name, None), getattr(getattr(base, "generation_config", None), name, None)):
            if place is not None:
                return place
        return None

    return kwargs, generation_config, setting


def _mask(source: Tensor, setting: Any) -> Tensor:
    """The mask that ``generate`` would find by itself: padding is not seen, unless the same token also ends an answer."""
    pad, ends = setting("pad_token_id"), setting("eos_token_id")
    if source.is_floating_point() or pad is None or pad in (ends if isinstance(ends, (list, tuple)) else [ends]):
        return torch.ones(source.shape[:2], dtype=torch.long, device=source.device)
    return source.ne(pad).long()


def _decoder_mask(kwargs: Inputs, source: Tensor) -> Tensor:
    mask, ids = kwargs.pop("decoder_attention_mask", None), kwargs.get("decoder_input_ids")
    return mask if mask is not None else torch.ones(len(source), 1 if ids is None else ids.shape[1], dtype=torch.long, device=source.device)


def copies_made(base: nn.Module, kwargs: Inputs) -> int:
    """`_copies` of a call with these arguments."""
    return _copies(_settled(base, kwargs, kwargs.get("generation_config"))[2])


def _copies(setting: Any) -> int:
    """How many sequences ``generate`` makes of each sample: a cache has to have them from the beginning."""
    return max(setting("num_beams") or 1, setting("num_return_sequences") or 1)


def _count_new(kwargs: Inputs, generation_config: Any, setting: Any, length: int) -> None:
    """Say lengths in new tokens: ``generate`` would count the prompt's embeddings into the others."""
    for whole, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        wanted = setting(whole)
        if wanted and setting(new) is None:
            kwargs[new] = max(wanted - length, 0)
        kwargs.pop(whole, None)
        if getattr(generation_config, whole, None) is not None:
            setattr(generation_config, whole, None)
