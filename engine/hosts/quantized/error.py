"""What merging into a quantized weight costs, measured before it is done.

The weights of a quantized layer sit exactly on its code points, so a small change mostly rounds back to nothing: an adapter of 3 % of the
weights' size can lose more than it holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RequantizationError:
    """``layers``: module path → (‖Q(W) − W‖, ‖W − W0‖), where W is the merged weight, W0 the base's and Q the layer's own format."""

    layers: dict[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, path: str) -> float:
        """What is lost at one layer, relative to what the adapters change there: 0 nothing, 1 as much as they change."""
        lost, changed = self.layers[path]
        return lost / changed if changed else math.inf if lost else 0.0

    @property
    def total(self) -> float:
        """The same over all layers together."""
        lost, changed = (math.hypot(*column) for column in zip(*self.layers.values(), strict=True)) if self.layers else (0.0, 0.0)
        return lost / changed if changed else math.inf if lost else 0.0

    def sentence(self) -> str:
        """What a person should know before it is done."""
        if not self.layers:
            return "No layer with these adapters is quantized: nothing is lost."
        worst = max(self.layers, key=self.of)
        return (f"Merged into the quantized weights, the adapters are off by {self.total:.0%} of what they change "
                f"({self.of(worst):.0%} at {worst}). In 16 bits, as they are kept otherwise, far less is lost.")
