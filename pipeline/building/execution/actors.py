"""Maps over tables or objects in Ray Data actors, with the results in order."""

import math
import pickle
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from segmint.infra.errors import SegmintError, UnfinishedError, last_line
from segmint.infra.progress import Progress
from segmint.infra.ray_session import RETRIES

_ITEMS = pa.schema([pa.field("item", pa.large_binary())])


class ItemActor:
    """Ray Data actor that maps pickled objects to pickled results or errors. A subclass defines `handle`."""

    raised: ClassVar[type[Exception]] = Exception
    """Class of the errors of `handle` that the driver raises. For Ray, any other error is its own failure."""

    def __call__(self, items: pa.Table) -> pa.Table:
        """Handle the objects of a block."""
        results = [self._handled(pickle.loads(item)) for item in items.column("item").to_pylist()]
        return pa.table([results], schema=_ITEMS)

    def handle(self, item: Any) -> object:
        """Return the result of one object."""
        raise NotImplementedError

    def _handled(self, item: Any) -> bytes:
        try:
            return pickle.dumps(self.handle(item))
        except self.raised as error:
            return _pickled_error(error)


def item_tables(items: Iterable[Any]) -> list[pa.Table]:
    """Return a table for each object, for `map_tables` with an `ItemActor`."""
    return [pa.table([[pickle.dumps(item)]], schema=_ITEMS) for item in items]


def item_results(tables: Iterator[pa.Table], work: str) -> Iterator[Any]:
    """Yield the results in the tables of an `ItemActor`.

    Raises any error that the actor returned, and `UnfinishedError` if Ray itself fails before the `work` is finished.
    """
    import ray.exceptions

    from segmint.pipeline.building.execution.stage_watch import StalledError

    try:
        for table in tables:
            for data in table.column("item").to_pylist():
                result = pickle.loads(data)
                if isinstance(result, Exception):
                    raise result
                yield result
    except (ray.exceptions.RayError, StalledError) as error:
        raise UnfinishedError(f"Ray failed before the {work} finished: {last_line(error)}") from error


def map_tables(
    actor: type,
    arguments: tuple[Any, ...],
    tables: Sequence[Any],
    workers: int,
    progress: Progress,
    stages: Mapping[str, str],
    num_gpus: float | None = None,
) -> Iterator[pa.Table]:
    """Yield the actors' result for each table, in order, from at most `workers` actors with these `arguments`.

    `progress` gets the bars `stages`, by a part of Ray Data's operator name. Ray must be running.
    """
    import ray.data

    from segmint.pipeline.building.execution.stage_watch import watched

    workers = min(len(tables), workers)
    results = ray.data.from_arrow(tables).map_batches(
        actor,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        num_gpus=num_gpus,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    with watched(progress, len(tables), math.inf, stages=stages) as watch:
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            watch.moved()
            yield table


def _pickled_error(error: Exception) -> bytes:
    """Pickle an exception with its traceback as a note. If that fails, pickle a `RuntimeError` with the same text."""
    if not isinstance(error, SegmintError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - the exception's class can raise anything here
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data
