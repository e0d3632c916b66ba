"""Answers-only cross-entropy that never holds the whole logits.

The backbone gives hidden states; only those whose next token is learned go through the output head, `CHUNK` at a time. Each chunk's
loss is differentiated at once and only its gradient with respect to the hidden states is kept; one backward through the backbone
follows. So the logits in memory are ``[CHUNK, vocabulary]`` whatever the batch. Losses are *sums*: the caller divides by the learned
tokens of the whole step, so that accumulation equals one big batch (a mean of means does not).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.render import Rendered
from engine.train.attention import fits, side_by_side
from engine.train.batching import Batch, collate

CHUNK = 256                                # learned tokens whose logits exist at one time
_RESCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale", "output_multiplier", "lm_head_multiplier")


class Objective:
    """Error of a causal language model on the learned tokens of a batch.

    ``model`` is the adapted model (`PeftModel`) or any causal LM of transformers. Whether the head can be applied by itself is not
    assumed but tried: where a model does more between hidden states and logits (scaling, soft caps, prompts), the whole logits are
    computed by its own forward instead: correct for all, lean for most (`lean` tells). In the same way `side_by_side` tells whether
    rows may share their common beginning.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.device = inner.get_input_embeddings().weight.device
        self.head = inner.get_output_embeddings()
        self.backbone = getattr(inner, getattr(inner, "base_model_prefix", "") or " ", None)
        self.config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
        with _undisturbed(model):
            self.lean = self._head_stands_alone()
            self.side_by_side = self.lean and fits(self.backbone, self.config, self.config.vocab_size, self.device)

    @torch.no_grad()
    def _head_stands_alone(self) -> bool:
        if getattr(self.model, "needs_whole_passes", False) or self.head is None or self.backbone is None:
            return False
        if any(getattr(self.config, name, None) not in (None, 1, 1.0) for name in _RESCALED):
            return False
        ids = torch.arange(8, device=self.device).reshape(1, 8) % self.config.vocab_size
        whole = self.model(input_ids=ids, use_cache=False).logits.float()
        alone = self.head(self.backbone(input_ids=ids, use_cache=False).last_hidden_state).float()
        return whole.shape == alone.shape and torch.allclose(whole, alone, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))

    def collate(self, rows: list[Rendered]) -> Batch:
        """Rows → the kind of micro-batch that this model takes."""
        return collate(rows, share=self.side_by_side)

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states ``[learned, hidden]`` from which the learned tokens are predicted."""
        ids = batch.ids.to(self.device)
        # No attention mask: rows are padded on the right. No cache: with one, some models ignore positions.
        if batch.layout is None:
            states = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        else:
            with side_by_side(self.config, batch.layout):
                states = self.backbone(input_ids=ids, position_ids=batch.layout.positions.to(self.device), use_cache=False).last_hidden_state
        return states.flatten(0, 1).index_select(0, batch.where.to(self.device))

    def backward(self, batch: Batch, learned: int) -> float:
        """Add the gradient of (summed error / ``learned``) to the parameters. Returns the summed error in nats."""
        where, targets = batch.where.to(self.device), batch.targets.to(self.device)
        if not self.lean:
            logits = self.model(input_ids=batch.ids.to(self.device), use_cache=False).logits.flatten(0, 1)[where]
            error = F.cross_entropy(logits.float(), targets, reduction="sum")
            more = self.model.extra_error(where, targets) if hasattr(self.model, "extra_error") else None
            ((error if more is None else error + more) / learned).backward()
            return float(error.detach())
        chosen = self._hidden(batch)
        leaf = chosen.detach().requires_grad_()
        total = 0.0
        for part, target in zip(leaf.split(CHUNK), targets.split(CHUNK)):
            error = F.cross_entropy(self.head(part).float(), target, reduction="sum")
            (error / learned).backward()   # into leaf.grad, and into the head's own parameters where it has trainable ones
            total += float(error.detach())
        chosen.backward(leaf.grad)
        return total

    @torch.no_grad()
    def error(self, batch: Batch) -> float:
        """Summed error in nats, without gradients; the model should be in eval mode."""
        where, targets = batch.where.to(self.device), batch.targets.to(self.device)
        if not self.lean:
            logits = self.model(input_ids=batch.ids.to(self.device), use_cache=False).logits.flatten(0, 1)[where]
            return float(F.cross_entropy(logits.float(), targets, reduction="sum"))
        chosen = self._hidden(batch)
        return sum(float(F.cross_entropy(self.head(part).float(), target, reduction="sum"))
                   for part, target in zip(chosen.split(CHUNK), targets.split(CHUNK)))


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
