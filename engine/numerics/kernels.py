"""How many ready-made kernels torch and oneDNN keep, of which they make one for every shape that they meet."""

from __future__ import annotations

import os

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")   # one before the other; both are asked for at a process's first product
KERNELS = 128                              # kept there: more than a micro-batch needs; each is some 0.8 MB, and made in half a millisecond


def few_kernels() -> None:
    """Let them keep fewer: of a training, or of a long chat, it would be 800 MB in the end."""
    for cache in CACHES:
        os.environ.setdefault(cache, str(KERNELS))
