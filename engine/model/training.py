"""What methods ask of a training loop beside the gradient's step: an extra loss, a schedule. A loop makes three calls.

    error = …                              # of each pass, summed over the learned tokens
    more = model.extra_error(where, targets)    # of the pass just made (ShadowPEFT's own error); added to it
    loss = model.extra_loss()              # once a step, of the adapters' tensors alone (AdaLoRA, KaSA, MonteCLoRA)
    optimizer.step(); model.on_step(number)     # while the gradients are still there (AdaLoRA's and AdaMSS's schedules)

Gradients need no call: OSF projects its own within the law, LoRA-FA within its optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from engine.checkpoint.shared import by_law
from engine.law import Method, Schedule, Tensors


class TrainingHooks:
    """For every adapter that trains and is heard; mixed into `Tuner`."""

    def _training_laws(self) -> Iterator[tuple[str, Method, Any, dict[str, Tensors]]]:
        """(adapter, law, config, module path → the adapter's live tensors there)."""
        for name in self.stack.heard():
            tenants = self.tenants(name) if name in self.trained else {}
            paths = {id(tenant): path for path, tenant in tenants.items()}
            for group in by_law(tenants.values()):
                yield name, group[0].method, group[0].config, {
                    paths[id(t)]: self.layers[paths[id(t)]].all_tensors(name) for t in group}

    def extra_loss(self, only_own: bool = False) -> Tensor | None:
        """What the adapters add to the loss of a step; ``only_own``: what belongs to the loss of the model's own forward, too."""
        found = [law.extra_loss(cfg, layers) for _, law, cfg, layers in self._training_laws() if law.adds_to_loss or not only_own]
        found = [loss for loss in found if loss is not None]
        return sum(found) if found else None

    def extra_error(self, where: Tensor, targets: Tensor) -> Tensor | None:
        """Adapters in layers have no error of their own (see `Shadows`)."""
        return None

    def on_step(self, step: int) -> None:
        """To be called in every step (from 1), after the optimizer's and before the gradients are cleared."""
        for schedule in self._schedules().values():
            schedule.update_and_allocate(step)

    update_and_allocate = on_step          # PEFT's name

    def _schedules(self) -> dict[str, Schedule]:
        for name, law, cfg, layers in self._training_laws():
            if name not in self.schedules and (schedule := law.schedule(cfg, layers)) is not None:
                self.schedules[name] = schedule
        return {name: schedule for name, schedule in self.schedules.items() if name in self.trained}

    def schedule_state(self) -> dict[str, Tensor]:
        """Of all schedules, for a checkpoint: ``<adapter>/…``."""
        return {f"{name}/{key}": tensor for name, schedule in self._schedules().items() for key, tensor in schedule.state().items()}

    def restore_schedules(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `schedule_state` gave."""
        for name, schedule in self._schedules().items():
            schedule.restore({key.removeprefix(f"{name}/"): tensor for key, tensor in state.items() if key.startswith(f"{name}/")})
