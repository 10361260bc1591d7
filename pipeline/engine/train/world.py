"""The workers of a run: who takes which part of a batch, and how sums over all of them are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def _alone(values: Tensor) -> Tensor:
    return values


def _only(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class WorkerRank:
    """Worker `rank` of `size`, on its machine `local_rank`.

    `add` returns the sum of a tensor over all workers, maybe in the tensor itself; `gather` the values of all by rank,
    which are pickled. Every worker calls each of them equally often, in the same order, and waits there for the others.
    """

    rank: int = 0
    size: int = 1
    add: Callable[[Tensor], Tensor] = _alone
    gather: Callable[[Any], list[Any]] = _only
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this worker writes what is written once."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This worker's items."""
        return items[self.rank :: self.size]

    def total(self, value: float) -> float:
        """The sum of a number over all workers."""
        return value if self.size == 1 else float(self.add(torch.tensor([value], dtype=torch.float64))[0])

    def add_gradients(self, weights: Sequence[Tensor]) -> None:
        """Sum the gradients over all workers; a weight has none if no worker has one for it."""
        if self.size == 1:
            return
        present = self.add(torch.tensor([float(weight.grad is not None) for weight in weights]))
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        summed = self.add(torch.cat([grad.flatten() for grad in grads]))
        parts = torch.split(summed, [grad.numel() for grad in grads])
        for weight, some, part in zip(weights, present.tolist(), parts, strict=True):
            weight.grad = part.view_as(weight).clone() if some else None
