"""What PEFT's X-LoRA has and ours has not, put on ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from engine.compat.kinds import BaseTunerLayer, kind
from engine.methods.xlora import CLASSIFIER, METHOD, XLoraConfig, best
from engine.model.xlora import XLoraTuner


class Classifier(nn.ModuleDict):
    """The network that decides: what is on its shelf, and PEFT's view of its settings."""

    def __init__(self, tuner: XLoraTuner):
        super().__init__()
        self.__dict__["_tuner"] = tuner    # which holds this module

    @property
    def config(self) -> XLoraConfig:
        return self._tuner.xlora_config

    @property
    def override_scaling_pass_value(self) -> float:
        """How strongly all experts are heard in the first pass."""
        return self.config.scaling_pass_value


class XLoraViews:
    """What ``XLoraModel`` has in PEFT, for `XLoraTuner`; see `engine.compat.views.attach`."""

    @property
    def lora_model(self: XLoraTuner) -> XLoraTuner:
        """In PEFT the experts have a tuner of their own; here this one has them too."""
        return self

    @property
    def internal_xlora_scalings(self: XLoraTuner) -> Tensor | None:
        return self.get_latest_scalings()

    def _shelf(self: XLoraTuner, name: str, container: type) -> Any:
        if name == CLASSIFIER.partition(".")[0] and name not in self._modules:
            self._modules[name] = Classifier(self)
        return XLoraViews.native["_shelf"](self, name, container)


class XLoraLayer(kind("XLoraLayer", METHOD.config.peft_type)):
    """Any layer with X-LoRA."""

    holds = staticmethod(lambda thing: isinstance(thing, BaseTunerLayer) and any(t.method is METHOD for t in thing.tenants.values()))

    def get_maybe_topk_scalings(self, scalings: Tensor) -> Tensor:
        """The strengths ``(batch, seq, experts)`` at this layer, of those of all layers ``(batch, seq, layers, experts)``."""
        tenant = next(t for t in self.tenants.values() if t.method is METHOD)
        return best(scalings[:, :, tenant.site.index], tenant.config)
