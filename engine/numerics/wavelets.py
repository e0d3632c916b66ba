"""One level of an orthogonal wavelet transform in one dimension, as a linear map and its transpose."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_COIFLETS = {                              # Daubechies 1993; they have no closed form
    1: (-0.07273261951252645, 0.3378976624574818, 0.8525720202116004, 0.3848648468648578, -0.07273261951252645, -0.01565572813579199),
    2: (0.01638733646320364, -0.04146493678687178, -0.0673725547237256, 0.3861100668227629, 0.8127236354494135, 0.4170051844232391,
        -0.07648859907828076, -0.05943441864643109, 0.02368017194684777, 0.005611434819368834, -0.001823208870911032, -0.000720549445520347),
    3: (-0.003793512864380802, 0.007782596425672746, 0.02345269614207717, -0.06577191128146936, -0.06112339000297255, 0.4051769024091182,
        0.7937772226260872, 0.42848347637737, -0.07179982161915484, -0.08230192710629983, 0.03455502757329774, 0.01588054486366945,
        -0.009007976136730624, -0.002574517688136797, 0.00111751877083063, 0.0004662169598204029, -7.0983302506379e-05, -3.459977319727278e-05),
}
_SYMLETS = {2: (), 3: (), 4: (1,), 5: (0,), 6: (0, 2), 7: (0,), 8: (1, 3), 9: (1, 2), 10: (0, 2, 4)}   # order → roots taken from outside the circle
FAMILIES = (*(f"db{n}" for n in range(1, 11)), *(f"sym{n}" for n in _SYMLETS), *(f"coif{n}" for n in _COIFLETS))


def synthesis(bands: Tensor, family: str, length: int) -> Tensor:
    """``S · c`` for vectors c ``(…, 2k)`` of k smooth and k detail coefficients → ``(…, length)``."""
    pair = filters(family, bands.dtype, bands.device)
    joined = F.conv_transpose1d(bands.reshape(-1, 2, bands.shape[-1] // 2), pair, stride=2, padding=pair.shape[-1] - 2)
    return joined[..., :length].reshape(*bands.shape[:-1], length)


def analysis(x: Tensor, family: str, size: int) -> Tensor:
    """``Sᵀ · x`` for vectors x ``(…, length)`` → ``(…, size)``."""
    pair = filters(family, x.dtype, x.device)
    whole = F.pad(x.reshape(-1, 1, x.shape[-1]), (0, size - pair.shape[-1] + 2 - x.shape[-1]))
    return F.conv1d(whole, pair, stride=2, padding=pair.shape[-1] - 2).reshape(*x.shape[:-1], size)


@lru_cache
def filters(family: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The smooth and the detail filter of the reconstruction ``(2, 1, taps)``."""
    low = low_pass(family)
    high = [(-1) ** i * value for i, value in enumerate(reversed(low))]
    with torch.inference_mode(False):      # what is kept must serve training, too
        return torch.tensor([low, high], dtype=dtype, device=device)[:, None]


@lru_cache
def low_pass(family: str) -> tuple[float, ...]:
    """The scaling filter of an orthogonal wavelet: Daubechies' by factoring her polynomial, symlets with some roots from outside the circle."""
    name, order = family.rstrip("0123456789"), int(family.lstrip("abcdefghijklmnopqrstuvwxyz"))
    if name == "coif":
        return _COIFLETS[order]
    halves = 1 - 2 * np.roots([math.comb(order - 1 + k, k) for k in reversed(range(order))])
    roots = [min((half + s * np.sqrt(complex(half**2 - 1)) for s in (1, -1)), key=abs) for half in halves]
    upper = sorted((root for root in roots if root.imag > -1e-12), key=abs)   # one of each conjugate pair
    turned = [1 / root if name == "sym" and i in _SYMLETS[order] else root for i, root in enumerate(upper)]
    whole = np.poly([-1] * order + [r for root in turned for r in ((root,) if abs(root.imag) < 1e-9 else (root, root.conjugate()))]).real
    return tuple((whole * math.sqrt(2) / whole.sum()).tolist())
