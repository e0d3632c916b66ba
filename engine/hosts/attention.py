"""`torch.nn.MultiheadAttention`: its projections are never called, only read, by forwards that may be fused into one kernel.

As in PEFT an adapter on it adapts the stacked projections of query, key and value, and the output's.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted, unwrapped
from engine.hosts.host import host_of
from engine.hosts.parameter import ParameterLayout, Read
from engine.hosts.quantized.adapted import AdaptedQuantized
from engine.hosts.quantized.protocol import backend_of
from engine.law import Site

IN, OUT = "in_proj_weight", "out_proj"
IN_LAYOUT = ParameterLayout(IN, bias="in_proj_bias")


def is_only_read(layer: nn.Module) -> bool:
    """Whether this linear layer is attention's output projection."""
    return isinstance(unwrapped(layer), NonDynamicallyQuantizableLinear)


def wrapper(layer: nn.Module, parent: nn.Module | None) -> type[Adapted]:
    """What stands round a layer: torch's encoder layer reads its linear layers' weights where it runs as one kernel, and calls them elsewhere."""
    if backend_of(layer) is not None:
        return AdaptedQuantized
    return Read if is_only_read(layer) or isinstance(parent, nn.TransformerEncoderLayer) else Adapted


def projections(path: str, attention: nn.MultiheadAttention) -> tuple[Site, Site]:
    """Sites of the stacked input projections and of the output projection, both by the name of the attention.

    Raises `UnsupportedLayer` where query, key and value have different widths.
    """
    if not attention._qkv_same_embed_dim:
        raise UnsupportedLayer(f"No adapter can sit on the attention {path}.", "Only same embed for query/key/value is supported as of now.",
                               "Leave it out of `target_modules`.")
    out_proj = attention.out_proj.base_layer if isinstance(attention.out_proj, Adapted) else attention.out_proj
    return (replace(IN_LAYOUT.site(path, attention), kind="linear"),
            replace(host_of(out_proj).site(path, out_proj), file=f"{path}.base_layer.{OUT}"))
