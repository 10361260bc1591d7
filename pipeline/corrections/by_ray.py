"""Corrections of large datasets with Ray: one task per shard, as many at once as there are cores."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions

from segmint.infra.errors import UnfinishedError, last_line
from segmint.infra.ray_session import RETRIES, ray_session
from segmint.pipeline.config.config import ResourcesConfig

Result = TypeVar("Result")

AHEAD = 2
"""Number of tasks per core that are submitted. The others wait in this process."""


def correct_by_ray(
    correct_one: Callable[[int], Result], shards: Sequence[int], resources: ResourcesConfig
) -> Iterator[Result]:
    """Yield `correct_one(shard)` for each shard, in order, on a cluster or a temporary local Ray.

    Ray runs the function in other processes and on other machines. Raises `UnfinishedError` if a shard can't be
    corrected or Ray fails; repeating the correction completes the work.
    """
    with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
        correct: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_correct)
        function = ray.put(correct_one)
        submitted: deque[Any] = deque()
        try:
            for shard in shards:
                submitted.append(correct.remote(function, shard))
                if len(submitted) > AHEAD * cluster.most_workers:
                    yield ray.get(submitted.popleft())
            while submitted:
                yield ray.get(submitted.popleft())
        except ray.exceptions.RayError as error:
            raise UnfinishedError(
                f"the correction isn't finished: {last_line(error)}. Finished work is kept. Repeat the command."
            ) from error


def _correct(correct_one: Callable[[int], Any], shard: int) -> Any:
    return correct_one(shard)
