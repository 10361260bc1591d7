"""Workers of a training run: rank, division of a batch, and sums over all workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class WorkerRank:
    """Worker of a run, with its rank among all `size` workers and its rank on its machine.

    `add` returns the sum of a tensor over all workers and may modify the tensor. `gather` pickles a value and returns
    the values of all workers, by rank. Both block until every worker has called them, so all workers must make the same
    calls in the same order.
    """

    rank: int = 0
    size: int = 1
    add: Callable[[Tensor], Tensor] = _alone
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """True for the worker that writes shared files."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Return this worker's share of the items."""
        return items[self.rank :: self.size]

    def total(self, value: float) -> float:
        """Return the sum of a number over all workers."""
        return value if self.size == 1 else float(self.add(torch.tensor([value], dtype=torch.float64))[0])

    def add_gradients(self, weights: Sequence[Tensor]) -> None:
        """Sum the gradients over all workers. If no worker has a gradient for a weight, it stays None."""
        if self.size == 1:
            return
        present = self.add(torch.tensor([float(weight.grad is not None) for weight in weights]))
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        summed = self.add(torch.cat([grad.flatten() for grad in grads]))
        parts = torch.split(summed, [grad.numel() for grad in grads])
        for weight, some, part in zip(weights, present.tolist(), parts, strict=True):
            weight.grad = part.view_as(weight).clone() if some else None
