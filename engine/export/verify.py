"""Proof that an exported folder is what was heard: opened again by transformers alone and compared, check by check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from engine.errors import BadAdapter, Cancelled
from engine.events import Checked, Progress
from engine.export.probe import ANSWER, Distance, Probe, distance, logits_of, loudness
from engine.generate.sampling import Speech, end_tokens, prompt_ids
from engine.merge.plan import MergePlan
from engine.store.library import ModelInfo, read_model

STAGE = "Checking the finished model"


@dataclass(frozen=True)
class Tolerance:
    """How far a correct export may be from the live stack, both computed in float32: what rounding the weights costs, with room.

    ``largest`` in logits, ``kl`` in nats, ``agreement`` as a share of places; ``strength``: how far the export's strength may be from 1.
    Measured on SmolLM2-135M with an audible adapter: bfloat16 0.18 and 6e-5, 99 %, see `Verification`.
    """

    largest: float
    kl: float
    agreement: float
    strength: float


EXACT = Tolerance(1e-3, 1e-5, 0.99, 0.001)
TOLERANCES = {"F32": EXACT, "F64": EXACT, "F16": Tolerance(0.2, 1e-3, 0.97, 0.02), "BF16": Tolerance(1.0, 1e-2, 0.9, 0.1)}
COARSE = Tolerance(4.0, 0.1, 0.8, 0.2)     # where memory is too small to compute both in float32


def comparing_format(base: ModelInfo) -> str:
    """The number format in which live stack and export are computed for comparison: float32 wherever that fits into memory."""
    import psutil

    return "float32" if 4 * base.parameters < 0.7 * psutil.virtual_memory().available else "bfloat16"


def refuse_silence(probes: list[Probe]) -> Distance:
    """How far the live stack is from its base. Raises `BadAdapter` if it is the base: there is nothing to export."""
    effect = distance([(probe.live, probe.base) for probe in probes])
    if effect.finite and effect.largest < 1e-5:
        raise BadAdapter("The stack changes nothing.", "With it the model gives exactly the answers of the plain model.",
                         "Raise the strengths, or choose adapters that were taught something.")
    return effect


class Verification:
    """Opens ``folder`` and yields one `Checked` a claim, with `Progress` between. Afterwards: ``passed``, ``checks``, ``answers``
    (question → answer). Raises `Cancelled`."""

    def __init__(self, folder: Path, plan: MergePlan, probes: list[Probe], tokenizer, compare: str, stopped: Callable[[], bool]):
        self.folder, self.plan, self.probes, self.tokenizer, self.compare, self.stopped = folder, plan, probes, tokenizer, compare, stopped
        self.checks: list[Checked] = []
        self.answers: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def __iter__(self) -> Iterator[Checked | Progress]:
        yield Progress(STAGE, 0, len(self.probes), "questions")
        for event in self._all():
            if isinstance(event, Checked):
                self.checks.append(event)
            yield event
            if self.stopped():
                raise Cancelled()

    def _all(self) -> Iterator[Checked | Progress]:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            read_model(self.folder)
            model, report = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.compare), local_files_only=True,
                                                                 use_safetensors=True, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:         # whatever transformers says: the folder cannot be opened, and that is the finding
            yield Checked("reloads", False, f"The finished folder cannot be opened: {error}"[:400])
            return
        finally:
            if bars:
                logging.enable_progress_bar()
        lost = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
        yield Checked("reloads", not lost, "The folder opens again in plain transformers, without the studio." if not lost else
                      f"Opened again, {len(lost)} of its tensors are missing or do not belong: {lost[0]}.")
        yield self._untouched()
        yield from self._same_words(model.eval(), tokenizer)
        yield from self._same_numbers(model, tokenizer)

    # --- files ---

    def _untouched(self) -> Checked:
        """Tensors that no adapter touches are the base's bit by bit (or exactly its values in another format)."""
        touched = {name for name in self.plan.touched} | set(self.plan.missed)
        new = read_model(self.folder)
        place = {name: header.path for header in new.headers for name in header.tensors}
        same = other = absent = moved = 0
        with ExitStack() as held:          # a file's table of contents is read once, and not for each tensor in it
            opened = {path: held.enter_context(safe_open(path, "pt")) for path in {*place.values()}}
            for shard in self.plan.shards:
                old = held.enter_context(safe_open(shard.header.path, "pt"))
                for item in shard.items:
                    if item.name not in place:
                        absent += not self.plan.missed
                        continue
                    equal = _equal(old.get_tensor(item.source), opened[place[item.name]].get_tensor(item.name))
                    if item.name in touched:
                        moved += not equal
                    else:
                        same, other = same + equal, other + (not equal)
                if self.stopped():
                    raise Cancelled()
        passed = not other and not absent and (moved > 0 or not touched)
        sentence = (f"{moved} of {len(touched)} adapted tensors changed; the other {same} are the base's, bit by bit." if passed else
                    f"{absent} tensors are missing, {other} changed that should not have, {moved} of {len(touched)} adapted ones changed.")
        return Checked("untouched", passed, sentence, float(other), 0.0)

    # --- words ---

    def _same_words(self, model, tokenizer) -> Iterator[Checked]:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "ä €\n c"}]
        same = prompt_ids(tokenizer, chat) == prompt_ids(self.tokenizer, chat) and tokenizer.chat_template == self.tokenizer.chat_template
        sentence = "The chat template is the base's." if same else "The chat template is not the base's."
        if not self.plan.base.has_chat_template:
            sentence = "It chats by the plain template that it was heard with." if same else "It does not chat as it was heard."
        yield Checked("chat-template", same, sentence)
        # of the base: its generation settings and tokenizer; the skeleton is the base's architecture with its own config
        ends, wanted = end_tokens(model, tokenizer), end_tokens(_with_generation_config(self.plan), self.tokenizer)
        yield Checked("stop-tokens", ends == wanted, f"It stops at {_names(tokenizer, ends)}, as the base does." if ends == wanted else
                      f"It stops at {_names(tokenizer, ends)}, but the base at {_names(self.tokenizer, wanted)}.")
        same = tokenizer.get_vocab() == self.tokenizer.get_vocab()
        yield Checked("vocabulary", same, f"All {len(self.tokenizer):,} tokens are the base's." if same else "The vocabulary is not the base's.",
                      float(len(tokenizer)), float(len(self.tokenizer)))

    # --- numbers ---

    def _same_numbers(self, model, tokenizer) -> Iterator[Checked | Progress]:
        heard = []
        for probe in self.probes:
            heard.append(logits_of(model, probe.ids, probe.positions))
            speech = Speech(model, tokenizer, prompt_ids(tokenizer, [{"role": "user", "content": probe.question}]), max_new_tokens=ANSWER,
                            stopped=self.stopped) if bool(torch.isfinite(heard[-1]).all()) else []
            self.answers[probe.question] = "".join(speech).strip()
            yield Progress(STAGE, len(heard), len(self.probes), "questions")
        exact = self.compare == "float32" and _format(self.folder) in ("F32", "F64")
        limit = TOLERANCES[_format(self.folder)] if self.compare == "float32" else COARSE
        apart = distance([(probe.live, mine) for probe, mine in zip(self.probes, heard, strict=True)])
        effect = distance([(probe.live, probe.base) for probe in self.probes])
        from_base = distance([(probe.base, mine) for probe, mine in zip(self.probes, heard, strict=True)])
        questions = f"{len(self.probes)} questions, {sum(probe.positions for probe in self.probes)} places"

        passed = from_base.finite and from_base.largest > effect.largest / 4
        yield Checked("differs-from-base", passed, "It answers differently from the plain model, as the stack does." if passed else
                      "It answers like the plain model: the stack is not in it.", from_base.largest, effect.largest / 4)
        passed = apart.finite and apart.largest <= limit.largest
        yield Checked("equals-live-stack", passed, f"Over {questions}, no token's score is further than {apart.largest:.2g} from the live stack's.",
                      apart.largest, limit.largest)
        yield Checked("same-probabilities", apart.finite and apart.kl <= limit.kl,
                      f"Its probabilities differ by {apart.kl:.2g} nats from the live stack's; those differ by {effect.kl:.2g} from the base's.",
                      apart.kl, limit.kl)
        loud = loudness([(probe.base, probe.live, mine) for probe, mine in zip(self.probes, heard, strict=True)])
        yield Checked("same-strength", abs(loud - 1) <= limit.strength, f"The stack is in it at {loud:.1%} of the strength that you heard.",
                      abs(loud - 1), limit.strength)
        yield Checked("same-likeliest-word", apart.agreement >= limit.agreement,
                      f"In {apart.agreement:.1%} of the places the likeliest next token is the live stack's.", apart.agreement, limit.agreement)
        if exact:
            differing = [probe for probe, mine in zip(self.probes, heard, strict=True)
                         if self.answers[probe.question] != probe.live_answer and not _tie(probe, mine, limit.largest)]
            yield Checked("same-answers", not differing, "Asked again, it gives the same answers word for word." if not differing else
                          f"It answers “{differing[0].question}” otherwise than the live stack.", float(len(differing)), 0.0)


def _equal(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and (torch.equal(_bits(old), _bits(new)) if old.dtype == new.dtype else torch.equal(old.to(new.dtype), new))


def _bits(tensor: Tensor) -> Tensor:
    """Raw bytes, so that not even the sign of a zero may differ."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _tie(probe: Probe, mine: Tensor, tolerance: float) -> bool:
    """Whether every token that the live stack chose is, for the export too, the likeliest but for rounding."""
    told = torch.tensor(probe.ids[len(probe.ids) - probe.spoken:], dtype=torch.long)
    rows = mine[len(mine) - probe.spoken - 1:len(mine) - 1]    # the row before a token is the one that chose it
    return bool((rows.max(-1).values - rows.gather(1, told[:, None])[:, 0] <= 2 * tolerance).all()) if probe.spoken else False


def _format(folder: Path) -> str:
    """The number format of most of the weights."""
    dtype = read_model(folder).dtype
    return dtype if dtype in TOLERANCES else "BF16"


def _names(tokenizer, ids: set[int]) -> str:
    return ", ".join(sorted(str(tokenizer.convert_ids_to_tokens(i)) for i in ids)) or "no token"


def _with_generation_config(plan: MergePlan):
    from transformers import GenerationConfig

    from engine.generate.sampling import base_of

    model = base_of(plan.stack.model)
    if (plan.base.path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(plan.base.path, local_files_only=True)
    return model
