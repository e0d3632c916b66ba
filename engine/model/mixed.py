"""PeftMixedModel: a stack of adapters of any kinds, in an order and with strengths that are saved as one mix.

A saved mix is ordinary PEFT folders, one for each adapter, plus ``mix.json``, which says which of them are heard, in which order, how strongly.
Each folder loads in PEFT by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.checkpoint.hub import upload
from engine.checkpoint.save import Saving, save_adapters
from engine.errors import BadAdapter
from engine.law import PeftConfig
from engine.model.peft_model import PeftModel
from engine.store.atomic import write_json
from engine.store.library import read_json

MIX = "mix.json"
FORMAT = 1


class PeftMixedModel(PeftModel):
    """Adapters of different methods on one base (PEFT class of the same name, which can neither save nor load nor weigh).

    `set_adapter` takes one name, a list in order, or ``{name: strength}``; merging bakes exactly what is heard, in that order.
    """

    def save_pretrained(self, save_directory: Path | str, safe_serialization: bool = True, selected_adapters: list[str] | None = None,
                        save_embedding_layers: bool | str = "auto", is_main_process: bool = True,
                        path_initial_model_for_weight_conversion: Path | str | None = None, state_dict: Mapping[str, Tensor] | None = None,
                        **hub: Any) -> None:
        """Write every adapter (or those named) into a sub-folder of its name, and the stack into ``mix.json``, last.

        Arguments and errors as of `PeftModel.save_pretrained`. Raises `ValueError` for ``path_initial_model_for_weight_conversion``, too.
        """
        if path_initial_model_for_weight_conversion is not None:
            raise ValueError("A mix is saved as it is: convert one of its adapters by itself.")
        names = self.base_model.known(selected_adapters if selected_adapters is not None else list(self.peft_config))
        saving, folder = Saving(safe_serialization, save_embedding_layers, None, state_dict), Path(save_directory)
        push = hub.pop("push_to_hub", False)
        if not is_main_process:
            return
        save_adapters(self, {name: folder / name for name in names}, folder, saving)
        write_json(folder / MIX, {"format": FORMAT, "adapters": names, "stack": [[n, s] for n, s in self.stack.entries if n in names]})
        if push:
            upload(folder, hub.pop("repo_id", folder.name), **hub)

    @classmethod
    def from_pretrained(cls, model: nn.Module, model_id: Path | str, adapter_name: str = "default", is_trainable: bool = False,
                        config: PeftConfig | None = None, autocast_adapter_dtype: bool = True, ephemeral_gpu_offload: bool = False,
                        low_cpu_mem_usage: bool = False, key_mapping: Mapping[str, str] | None = None, **hub: Any) -> "PeftMixedModel":
        """A saved mix as it was heard, or one saved adapter. All or nothing: if one does not fit, ``model`` comes back as it was.

        Raises: as `PeftModel.load_adapter`; `BadAdapter` for a ``mix.json`` that makes no sense.
        """
        folder = Path(model_id)
        if not (folder / MIX).is_file():
            return super().from_pretrained(model, model_id, adapter_name, is_trainable, config, autocast_adapter_dtype, ephemeral_gpu_offload,
                                           low_cpu_mem_usage, key_mapping, **hub)
        names, stack = _read_mix(folder)
        first, *rest = names
        self = super().from_pretrained(model, folder / first, first, is_trainable, None, autocast_adapter_dtype, key_mapping=key_mapping)
        try:
            for name in rest:
                self.load_adapter(folder / name, name, is_trainable, key_mapping=key_mapping)
        except BaseException:
            self.unload()
            raise
        self.set_adapter(stack, inference_mode=not is_trainable)
        return self


def _read_mix(folder: Path) -> tuple[list[str], dict[str, float]]:
    data = read_json(folder / MIX, BadAdapter)
    names, stack = data.get("adapters"), data.get("stack")
    sound = (isinstance(names, list) and names and all(isinstance(n, str) and n and n not in (".", "..") and not set(n) & set("/\\") for n in names)
             and isinstance(stack, list) and all(isinstance(e, list) and len(e) == 2 and e[0] in names and isinstance(e[1], (int, float))
                                                 and math.isfinite(e[1]) for e in stack))
    if data.get("format") != FORMAT or not sound:
        raise BadAdapter(f"The mix {folder.name} cannot be read.", f"Its list of adapters ({MIX}) makes no sense to this version.",
                         "Save the mix again, or load its adapters one by one.", path=str(folder))
    return names, {name: float(strength) for name, strength in stack}
