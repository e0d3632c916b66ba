"""Ragged rows as training gets them, of random tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.data.render import IGNORED, Rendered


def random_rows(lengths: Sequence[int], alike: int = 0, first: int = 3, vocab: int = 384) -> list[Rendered]:
    """Rows of these lengths from the tokens ``first`` … ``vocab`` - 1; the last two thirds learned, the first ``alike`` common to all."""
    draw = torch.Generator().manual_seed(1)
    start = torch.randint(first, vocab, (alike,), generator=draw).tolist()
    made = []
    for n in lengths:
        ids = (start + torch.randint(first, vocab, (n,), generator=draw).tolist())[:n]
        made.append(Rendered(ids, [IGNORED if t < n // 3 else i for t, i in enumerate(ids)], []))
    return made
