"""A `DataLoader` over batches that knows what its loop has received, and goes on from there."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from segmint.catalogs.dataset.reading.batches import Batches
from segmint.infra.errors import UsageError

_FORMAT = 1


class BatchLoader(DataLoader[Any]):
    """Loads the batches of `Batches`, an epoch an iteration, and counts those that the loop received.

    An iteration goes on where the one before ended: after a whole epoch with the next one, after a `break` with the
    batch that follows. What workers have read ahead is not counted. `len` is the number of batches of a whole epoch.
    """

    def __init__(self, batches: Batches, **options: Any) -> None:
        """`options` are those of `DataLoader` but `batch_size`: `num_workers`, `collate_fn`, `pin_memory` and so on."""
        if not options.get("in_order", True):
            raise UsageError("in_order=False: expected True, as batches out of their order cannot be counted")
        own = batches.with_own_start()  # several loaders, and ranks that a launcher sent it to, are at different places
        super().__init__(own, batch_size=None, **options)
        self._batches = own
        self._epoch, self._samples = 0, 0
        self._iterations = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._iterations += 1
        if not self._batches.left(self._samples):  # a state of another global batch may leave too few images
            self._epoch, self._samples = self._epoch + 1, 0
        self._batches.begin(self._epoch, self._samples)
        return self._counted(super().__iter__(), self._iterations)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loop is: epoch, images of it that the loop received, and what decides the order.

        Equal on all ranks after equally many batches, and good for any other number of ranks and workers.
        """
        return {"format": _FORMAT, "epoch": self._epoch, "samples": self._samples, **self._batches.order_key()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state in the next iteration; raises `UsageError` for that of another order or dataset."""
        own = {"format": _FORMAT, **self._batches.order_key()}
        wrong = [name for name, value in own.items() if state.get(name) != value]
        if wrong:
            raise UsageError(
                "the state is of another order: "
                + "; ".join(f"{name}: {state.get(name)!r}, here {own[name]!r}" for name in wrong)
                + ". Open the dataset at the version that it was read at, with the same seed and window"
            )
        epoch, samples = state.get("epoch"), state.get("samples")
        if not (isinstance(epoch, int) and isinstance(samples, int) and epoch >= 0 <= samples < self._batches.images):
            raise UsageError(f"epoch={epoch!r}, samples={samples!r} in the state: expected numbers from 0")
        self._iterations += 1
        self._epoch, self._samples = epoch, samples

    def _counted(self, batches: Iterator[Any], iteration: int) -> Iterator[Any]:
        epoch, samples = self._epoch, self._samples
        for batch in batches:
            samples += self._batches.global_batch
            if not self._batches.left(samples):
                epoch, samples = epoch + 1, 0
            if iteration == self._iterations:  # else the loop was begun again, or a state was loaded
                self._epoch, self._samples = epoch, samples
            yield batch
