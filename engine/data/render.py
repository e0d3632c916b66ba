"""One row → exactly the tokens that the model sees, and which of them are learned. Preview and training both use `render`.

Only answers are learned. Where an answer begins and ends is found by asking the model's own chat template twice: once up to
the question with the cue to answer, once up to the answer. The difference is the answer with its end-of-turn sign, which is
learned too (a model that never learns to stop talks on). Both texts must be prefixes of the whole text; a template that
rewrites earlier turns fails this, and then only the last answer of a conversation is learned. No generation mask of the
template is needed (most have none and then report nothing as learned, silently).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from engine.data.rows import Row
from engine.errors import BadData, BadModel

IGNORED = -100                             # the label of a token that is not learned (PyTorch's convention)
PLAIN_TEMPLATE = (                         # for a model that was never taught to chat; ends every answer with its end-of-text sign
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}Question: {{ message['content'] }}\n"
    "{% else %}Answer: {{ message['content'] }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}")


@dataclass(frozen=True)
class Rendered:
    """``ids`` token numbers; ``labels`` the same or `IGNORED`; ``spans`` [(text, learned)], joined the exact text."""

    ids: list[int]
    labels: list[int]
    spans: list[tuple[str, bool]]
    partly: bool = False                   # only the last answer is learned, because the template rewrites earlier turns

    @property
    def learned(self) -> int:
        """Tokens that are predicted and learned; the very first token of a text can never be predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


class Unusable(Exception):
    """Why a single row cannot be rendered; completes "2 examples were left out because …"."""


def prepare_tokenizer(tokenizer):
    """Give a tokenizer without chat template the plain one (`PLAIN_TEMPLATE`). Returns the tokenizer. Raises `BadModel`."""
    if not getattr(tokenizer, "is_fast", False):
        raise BadModel("This model's tokenizer cannot say which letters a token stands for.", "It has no tokenizer.json.",
                       "Get the model in a newer format (with tokenizer.json).")
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def chat_text(tokenizer, messages: list[dict], cue: bool = False) -> str:
    """The template's text for these messages; ``cue`` adds the sign after which the model answers.

    A template that refuses a system message gets it in front of the first question instead.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=cue)
    except TemplateError as problem:
        if len(messages) > 1 and messages[0]["role"] == "system":
            first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
            return chat_text(tokenizer, [first, *messages[2:]], cue)
        raise BadModel("The model's chat template does not accept these messages.", str(problem),
                       "Look at the order of the messages: user and assistant must take turns.") from problem


def render(row: Row | list[dict], tokenizer, system: str = "") -> Rendered:
    """Render one row. ``tokenizer`` comes from `prepare_tokenizer`; ``system`` is put first unless the row has its own.

    Raises `Unusable` for this row, `BadModel` when the template cannot be used for training at all.
    """
    messages = list(row.messages if isinstance(row, Row) else row)
    forbidden = next((mark for m in messages for mark in control_signs(tokenizer) if mark in m["content"]), None)
    if forbidden:
        raise Unusable(f"they contain the model's own control sign {forbidden}")
    if messages[0]["role"] == "text":
        return _render_plain(messages[0]["content"], tokenizer)
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    text = chat_text(tokenizer, messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [_answer(tokenizer, messages, i, text) for i in answers]
    if learned[-1] is None:
        raise BadModel("This model's chat template cannot be used for training.",
                       "What it writes for a question changes when the answer follows.", "Choose another model, or mend its chat template.")
    spans = [span for span in learned if span is not None]
    return _tokenize(tokenizer, text, spans, partly=len(spans) < len(learned))


def _answer(tokenizer, messages: list[dict], i: int, text: str) -> tuple[int, int] | None:
    """Character range [start, end) of answer ``i`` with its end-of-turn sign, or None if the template is not prefix-stable there."""
    before = chat_text(tokenizer, messages[:i], cue=True)
    after = text if i == len(messages) - 1 else chat_text(tokenizer, messages[:i + 1])
    if not text.startswith(after):         # Phi-3 ends every text with the sign, but not every answer
        after = after.removesuffix(tokenizer.eos_token or "")
    if not (text.startswith(before) and text.startswith(after) and len(after) > len(before)):
        return None
    return len(before), len(after.rstrip())    # the line break behind the end-of-turn sign is never spoken


def _render_plain(content: str, tokenizer) -> Rendered:
    text = content + (tokenizer.eos_token or "")
    begin = tokenizer.bos_token or ""
    text = begin + text if begin and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else text
    return _tokenize(tokenizer, text, [(len(text) - len(content) - len(tokenizer.eos_token or ""), len(text))], partly=False)


def _tokenize(tokenizer, text: str, spans: list[tuple[int, int]], partly: bool) -> Rendered:
    ids, offsets = _encode(tokenizer, text, [])
    edges = [start for start, _ in spans]
    if any(start < edge < end for edge in edges for start, end in offsets):   # a token glues cue and answer: cut as when the model is asked
        ids, offsets = _encode(tokenizer, text, edges)
    flags, k = [], 0
    for start, end in offsets:             # both lists are in order of the text: one walk
        while k < len(spans) and start >= spans[k][1]:
            k += 1
        flags.append(k < len(spans) and end > start >= spans[k][0] and end <= spans[k][1])
    for _, end in spans:                   # an answer whose template has no end sign gets the tokenizer's, at the end of the text
        last = max((i for i, (s, e) in enumerate(offsets) if e == end and e > s), default=None)
        if end == len(text.rstrip()) and last is not None and ids[last] not in _mark_ids(tokenizer) and tokenizer.eos_token_id is not None:
            ids, flags = [*ids[:last + 1], tokenizer.eos_token_id], [*flags[:last + 1], True]
            offsets, text = [*offsets[:last + 1], (end, end + len(tokenizer.eos_token))], text[:end] + tokenizer.eos_token
    rendered = Rendered(ids, [i if flag else IGNORED for i, flag in zip(ids, flags)], _spans(text, offsets, flags), partly)
    if rendered.learned == 0:
        raise Unusable("nothing in them would be learned")
    return rendered


def _encode(tokenizer, text: str, cuts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Token numbers and their character ranges, the text being cut at ``cuts`` before it is encoded."""
    ids, offsets = [], []
    for begin, end in zip([0, *cuts], [*cuts, len(text)]):
        encoded = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
        ids += encoded["input_ids"]
        offsets += [(start + begin, stop + begin) for start, stop in encoded["offset_mapping"]]
    return ids, offsets


def _spans(text: str, offsets: list[tuple[int, int]], flags: list[bool]) -> list[tuple[str, bool]]:
    """Cut the text where the learned flag of its tokens changes; letters without a token go with what stands before them."""
    cuts: list[tuple[int, bool]] = []
    for (start, end), flag in zip(offsets, flags):
        if end > start and (not cuts or cuts[-1][1] != flag):
            cuts.append((start if cuts else 0, flag))
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    return [(text[start:end], flag) for (start, flag), end in zip(cuts, ends)]


@lru_cache(4)
def _mark_ids(tokenizer) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)


@lru_cache(4)
def control_signs(tokenizer) -> list[str]:
    """Signs that people do not write: control tokens in brackets. (Short ones such as “a” would forbid ordinary text.)"""
    return [token.content for token in tokenizer.added_tokens_decoder.values()
            if token.special and len(token.content) > 2 and not token.content.isalnum()]


def render_all(rows: Sequence[Row], tokenizer, system: str, max_length: int) -> tuple[list[Row], list[Rendered], list[str]]:
    """Render many rows. Rows that are too long or unusable are left out, never cut. Returns (rows, rendered, notes in sentences).

    Raises `BadData` when no row is left, `BadModel` if that is because of the chat template.
    """
    kept, done, reasons, longest, partly, refusal = [], [], {}, 0, 0, None
    for row in rows:
        try:
            rendered = render(row, tokenizer, system)
        except Unusable as reason:
            reasons.setdefault(str(reason), []).append(row.line)
            continue
        except BadModel as problem:        # this conversation's turns do not suit the model's template
            refusal = problem
            reasons.setdefault("the model's chat template does not accept these messages", []).append(row.line)
            continue
        if len(rendered.ids) > max_length:
            longest = max(longest, len(rendered.ids))
            reasons.setdefault("too long", []).append(row.line)
            continue
        kept.append(row)
        done.append(rendered)
        partly += rendered.partly
    notes = []
    for reason, lines in reasons.items():
        if reason == "too long":
            reason = f"they are longer than {max_length:,} tokens (the longest has {longest:,})"
        notes.append(f"{len(lines)} example{'s were' if len(lines) > 1 else ' was'} left out because {reason} (first: line {lines[0]}).")
    if partly:
        notes.append(f"In {partly} conversation{'s' if partly > 1 else ''} only the last answer is learned, because the model's chat template "
                     "rewrites earlier turns.")
    if rows and not kept and refusal:
        raise refusal
    if rows and not kept:
        raise BadData("No example can be used with this model.", " ".join(notes),
                      "Shorten the examples or raise “Longest example”." if longest else "Remove these signs from the examples.")
    return kept, done, notes
