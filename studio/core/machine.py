"""What this computer is, in words a shopkeeper understands. Looks at sizes only; loads no driver."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass

import psutil

from studio.core.text import frame as text


@dataclass(frozen=True)
class Machine:
    """``graphics`` names the kind of card there seems to be: nvidia, amd, apple or nothing."""

    cores: int
    memory: float                          # gigabytes
    graphics: str = ""

    @classmethod
    def here(cls) -> "Machine":
        return cls(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                   psutil.virtual_memory().total / 1e9, _graphics())

    def sentence(self) -> str:
        """"2 cores, 24 GB memory, no graphics card: models up to about 1 billion parameters can be taught overnight."""
        card = {"nvidia": text.card_nvidia, "amd": text.card_amd, "apple": text.card_apple}.get(self.graphics, text.card_none)()
        return text.machine(cores=text.cores(self.cores), memory=round(self.memory), card=card, reach=self._reach())

    def _reach(self) -> str:
        """A careful guess: training a small adapter needs about 4 bytes a parameter, and on processors alone it needs patience."""
        billions = self.memory / (4 if self.graphics else 8)
        if not self.graphics:
            billions = min(billions, self.cores / 2)
        return text.reach_night(size=round(billions)) if billions >= 0.8 else text.reach_small()


def _graphics() -> str:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "apple"
    if os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi"):
        return "nvidia"
    return "amd" if os.path.exists("/dev/kfd") else ""
