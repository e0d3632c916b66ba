"""Answers-only cross-entropy that never holds the whole logits.

The model's own forward is run with its output head taken out; of the hidden states that would have gone into it, only those whose next
token is learned go through the head, a few at a time (`_chunk`), so that few logits are in memory whatever the batch. Each
chunk's loss is differentiated at once and only its gradient with respect to the hidden states is kept; one backward through the model
follows. Losses are *sums*: the caller divides by the learned tokens of the whole step, so that accumulation equals one big batch (a
mean of means does not).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.render import Rendered
from engine.hosts.learning import is_watched
from engine.hosts.turned import back
from engine.train.attention import fits, reach, side_by_side
from engine.train.batching import Batch, collate, common_prefix, micro_batches
from engine.train.lean import Lean

LOGITS = 48_000_000                        # bytes of logits and their gradients that may always exist at one time
AT_ONCE = 256                              # hidden states in one product with the head: with fewer its rate falls, with more it does not rise
CACHED = 2_000_000                         # bytes of logits whose errors a processor works out in one go
SHAKE = 0.02                               # how far a fresh adapter is moved for the trials: one without effect would pass them all

Tail = Callable[[Tensor], Tensor]          # what a model still does to its head's output


class Objective:
    """Error of a causal language model on the learned tokens of a batch.

    ``model`` is the adapted model (`PeftModel`) or any causal LM of transformers. What an architecture allows is not assumed but tried, on
    the very model: whether its head can be applied by itself (`lean` tells; else the whole logits are computed by its own forward), whether
    rows may stand side by side and share their beginning (`side_by_side`). Prompts stand before the rows and learn through them.

    Args:
        checkpointing: keep only what goes into each block, and run the block again in the backward pass. Where an architecture cannot, it is
            left off (`checkpointing` tells).
    """

    def __init__(self, model: nn.Module, checkpointing: bool = False):
        self.model = model
        self.inner = inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.device = inner.get_input_embeddings().weight.device
        self.head = inner.get_output_embeddings()
        self.backbone = getattr(inner, getattr(inner, "base_model_prefix", "") or " ", None)
        self.config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
        self._tail: Tail | None = None
        with _undisturbed(model), _shaken(model):
            self._tail = self._found_tail()
            self.side_by_side = self.lean and _takes_positions(model) and fits(self.backbone, self.config, self._alone, self.device)
        self._reach = reach(self.config)
        self._sparing = Lean(inner)
        self.checkpointing = False
        if checkpointing:
            self.checkpoint()

    def checkpoint(self) -> bool:
        """Keep only what goes into each block from now on. False if that is so already, or the architecture cannot."""
        before, self.checkpointing = self.checkpointing, self.checkpointing or _checkpointed(self.inner)
        return self.checkpointing and not before

    @property
    def lean(self) -> bool:
        """Whether the logits are computed a few at a time."""
        return self._tail is not None

    def shares(self, rows: list[Rendered]) -> bool:
        """Whether these rows stand side by side: the model allows it, and none is longer than a window of its attention."""
        return self.side_by_side and (self._reach is None or max(len(row.ids) for row in rows) <= self._reach)

    def batches(self, rows: list[Rendered], budget: int) -> Iterator[Batch]:
        """The rows in micro-batches of at most ``budget`` computed tokens."""
        for part in micro_batches([len(row.ids) for row in rows], budget, common_prefix(rows) if self.shares(rows) else None):
            yield self.collate([rows[i] for i in part])

    def collate(self, rows: list[Rendered]) -> Batch:
        """Rows → the kind of micro-batch that this model takes."""
        return collate(rows, share=self.shares(rows))

    def backward(self, batch: Batch, learned: int) -> float:
        """Add the gradient of (summed error / ``learned``) to the parameters. Returns the summed error in nats."""
        with self._sparing(), self._laid_out(batch):           # to the very end: checkpointed blocks run again in the backward pass
            if not self.lean:
                error = self._whole_error(batch)
                more = self.model.extra_error(batch.where.to(self.device), batch.targets.to(self.device)) if hasattr(
                    self.model, "extra_error") else None
                ((error if more is None else error + more) / learned).backward()
                return float(error.detach())
            chosen = self._hidden(batch)
            total, gradient = self._head_backward(chosen.detach(), batch.targets.to(self.device), learned)
            if chosen.requires_grad:       # not where only the head learns
                chosen.backward(gradient)
            return total

    @torch.no_grad()
    def error(self, batch: Batch) -> float:
        """Summed error in nats, without gradients; the model should be in eval mode."""
        with self._laid_out(batch):
            if not self.lean:
                return float(self._whole_error(batch))
            return float(sum(self.errors(batch)))

    @torch.no_grad()
    def errors(self, batch: Batch) -> list[float]:
        """The error in nats of each learned token, in the batch's order. Only where the model is `lean`, or for a single row."""
        with self._laid_out(batch):
            if not self.lean:
                return self._whole_error(batch, "none").tolist()
            chosen, targets = self._hidden(batch), batch.targets.to(self.device)
            size = self._chunk(chosen)
            return [e for part, target in zip(chosen.split(size), targets.split(size))
                    for e in self._errors(self._tail(self.head(part)), target).tolist()]

    # --- from ids to hidden states ---

    @contextlib.contextmanager
    def _laid_out(self, batch: Batch) -> Iterator[None]:
        with contextlib.nullcontext() if batch.layout is None else side_by_side(self.config, batch.layout):
            yield

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states ``[learned, hidden]`` from which the learned tokens are predicted."""
        ids = batch.ids.to(self.device)
        # No attention mask: rows are padded on the right. No cache: with one, some models ignore positions.
        if batch.layout is None:
            states = self._alone(ids)
        else:
            states = self.backbone(input_ids=ids, position_ids=batch.layout.positions.to(self.device), use_cache=False).last_hidden_state
        return states.flatten(0, 1).index_select(0, batch.where.to(self.device))

    def _alone(self, ids: Tensor) -> Tensor:
        """What the model would give to its head for these tokens ``[rows, length, hidden]``; nothing of a prompt before them."""
        seen: list[Tensor] = []

        def stand_in(states: Tensor) -> Tensor:
            seen.append(states)
            return states[..., :1].detach()

        own = self.head.__dict__.get("forward")
        self.head.forward = stand_in
        try:
            self.model(input_ids=ids, use_cache=False)
        finally:
            del self.head.forward
            if own is not None:
                self.head.forward = own
        states, = seen
        return states[:, -ids.shape[1]:]

    # --- from hidden states to the error ---

    def _chunk(self, states: Tensor) -> int:
        """How many of these hidden states go through the head together, so that what it makes of them stays below `LOGITS`.

        Or below a quarter of what the head's own weight takes, where that is more: the wider a model, the dearer is a pass over that weight.
        """
        count, hidden = states.shape
        room = max(8, hidden // 8, LOGITS // (2 * states.element_size() * self.config.vocab_size))
        return max(1, -(-count // -(-max(1, count) // min(room, AT_ONCE))))    # none has many fewer than another

    def _head_backward(self, states: Tensor, targets: Tensor, learned: int) -> tuple[float, Tensor]:
        """(summed error, gradient of error / ``learned`` with respect to ``states``); a head that learns gets its own gradient."""
        total, gradient, size = 0.0, torch.empty_like(states), self._chunk(states)
        for start in range(0, len(states), size):
            part = states[start:start + size].requires_grad_()
            out = self.head(part)
            logits = self._tail(out)
            wrong = torch.empty_like(logits)
            total += float(self._errors(logits.detach(), targets[start:start + size], wrong, 1 / learned).sum())
            if logits is out and self._plain_head():
                gradient[start:start + size] = back(wrong, self.head.weight, dear=True)
            else:
                logits.backward(wrong)
                gradient[start:start + size] = part.grad
            del out, logits, wrong
        return total, gradient

    def _plain_head(self) -> bool:
        """Whether it is one product, and nobody learns from it or looks at it."""
        return type(self.head) is nn.Linear and not is_watched(self.head) and not any(p.requires_grad for p in self.head.parameters())

    def _errors(self, logits: Tensor, targets: Tensor, wrong: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """The error in nats of each token, float32; into ``wrong`` goes the gradient of their sum times ``factor``.

        A processor does it for a few rows at a time, all of whose steps then find them in its cache.
        """
        found = torch.empty(len(targets), device=logits.device)
        size = max(1, CACHED // (4 * logits.shape[-1])) if logits.device.type == "cpu" else max(1, len(targets))
        for start in range(0, len(targets), size):
            own = slice(start, start + size)
            part, target = logits[own].float(), targets[own, None]
            chances = torch.softmax(part, dim=-1)
            # The likeliest token's chance, from whose logarithm that of the sum is told, is never too small to be a number.
            likeliest = part.amax(1, keepdim=True) - chances.amax(1, keepdim=True).log()
            found[own] = (likeliest - part.gather(1, target))[:, 0]
            if wrong is not None:
                wrong[own] = chances.scatter_add_(1, target, chances.new_full(target.shape, -1.0)).mul_(factor)
        return found

    def _whole_error(self, batch: Batch, reduction: str = "sum") -> Tensor:
        ids = batch.ids.to(self.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1]:]
        return F.cross_entropy(logits.flatten(0, 1)[batch.where.to(self.device)].float(), batch.targets.to(self.device), reduction=reduction)

    @torch.no_grad()
    def _found_tail(self) -> Tail | None:
        """What the model does to its head's output; None if its logits cannot be had by the head alone."""
        if self.head is None or getattr(self.model, "needs_whole_passes", False):
            return None
        ids = torch.arange(16, device=self.device).reshape(2, 8) % self.config.vocab_size
        try:
            whole = self.model(input_ids=ids, use_cache=False).logits[:, -8:].float()
            plain = self.head(self._alone(ids))
        except (ValueError, TypeError, AttributeError):
            return None                    # the head is not called at all, or more than once
        tails = (tail(value) for tail, value in [(_nothing, 0), *((tail, getattr(self.config, name)) for name, tail in _TAILS.items()
                                                                  if isinstance(getattr(self.config, name, None), (int, float)))])
        return next((tail for tail in tails if whole.shape == plain.shape and
                     torch.allclose(whole, tail(plain).float(), rtol=1e-6, atol=1e-6 * float(whole.abs().max()))), None)


def _nothing(value: float) -> Tail:
    return lambda logits: logits


_TAILS: dict[str, Callable[[float], Tail]] = {               # setting of a model → what it does with it
    "final_logit_softcapping": lambda cap: lambda logits: torch.tanh(logits / cap) * cap,          # Gemma
    "logits_scaling": lambda divisor: lambda logits: logits / divisor,                             # Granite
    "logit_scale": lambda factor: lambda logits: logits * factor,                                  # Cohere
    "lm_head_multiplier": lambda factor: lambda logits: logits * factor,                           # Falcon
}


def _takes_positions(model: nn.Module) -> bool:
    """Whether nothing reads the ids beside the backbone: prompts stand before each row, an aLoRA looks for its invocation in each."""
    return getattr(model, "prompts", None) is None and not any(
        getattr(config, "alora_invocation_tokens", None) for config in getattr(model, "peft_config", {}).values())


def _checkpointed(inner: nn.Module) -> bool:
    try:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except (ValueError, AttributeError, NotImplementedError):
        return False
    return True


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Try something in eval mode; random generator and modes are as before afterwards."""
    training, state = [m for m in model.modules() if m.training], torch.get_rng_state()
    model.eval()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        for module in training:
            module.training = True


@contextlib.contextmanager
def _shaken(model: nn.Module) -> Iterator[None]:
    """What learns is moved a little for a while, and is then what it was, bit by bit."""
    learns = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    before = [p.detach().clone() for p in learns]
    dice = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for p in learns:
                p.add_(torch.randn(p.shape, generator=dice).to(p.device, p.dtype), alpha=SHAKE)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(learns, before):
                p.copy_(value)
