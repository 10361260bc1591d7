"""Run lengths on a device: only the places where drawn masks begin and end are copied to the host."""

import torch
from torch import Tensor


def changes(flat: Tensor, room: int) -> Tensor:
    """Places where `flat` (N,) of 0 and 1, N under 2^31, differs from the place before it; from 0 at its start.

    Columns of masks are drawn one after another with a pixel of background after each, so that no run of foreground
    continues into the next column or mask: places come in pairs, the start of a run and the place after its end, and
    one search finds those of all masks.

    Returns (1 + room,) int32 on the device: how many places there are, and the first of them; -1 where there are no
    more. The host has to wait only to read it.
    """
    different = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    different[:1] = flat[:1] != 0
    torch.ne(flat[1:], flat[:-1], out=different[1:])
    places = torch.nonzero_static(different, size=room, fill_value=-1).flatten()
    return torch.cat([torch.count_nonzero(different)[None], places]).to(torch.int32)
