"""The cases need a process of their own, in which `peft` is this engine."""

from __future__ import annotations

import os

INSIDE = "ADAPTER_STUDIO_DROP_IN"
collect_ignore = [] if INSIDE in os.environ else ["cases"]
