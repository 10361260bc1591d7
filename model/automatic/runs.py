"""Run lengths on a device: only the places where drawn masks begin and end are copied to the host."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def changes(flat: Tensor) -> NDArray[np.int64]:
    """Places where `flat` (N,) of 0 and 1, N under 2^31, differs from the place before it; from 0 at its start.

    Columns of masks are drawn one after another with a pixel of background after each, so that no run of foreground
    continues into the next column or mask: places come in pairs, the start of a run and the place after its end, and
    one search finds those of all masks.
    """
    different = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    different[:1] = flat[:1] != 0
    torch.ne(flat[1:], flat[:-1], out=different[1:])
    # int32 halves the bytes to copy.
    places = torch.nonzero(different).flatten().to(torch.int32).cpu().numpy()
    return places.astype(np.int64)
