"""Actors and threads of one machine without a GPU, by its cores and memory."""

import pytest

from segmint.pipeline.building.first_numerics import actors_that_fit, memory_here, threads_of_an_actor

GIB = 2**30
MOBILE_SAM, VIT_H = 40_728_226, 2_564_550_879


@pytest.mark.parametrize(
    ("cores", "memory", "weights", "actors", "threads"),
    [
        (2, 24 * GIB, MOBILE_SAM, 2, 1),
        (8, 16 * GIB, MOBILE_SAM, 5, 1),
        (8, 8 * GIB, MOBILE_SAM, 2, 4),
        (64, 256 * GIB, MOBILE_SAM, 64, 1),
        (64, 256 * GIB, VIT_H, 20, 3),
        (2, 24 * GIB, VIT_H, 1, 2),
        (1, 1 * GIB, VIT_H, 1, 1),
    ],
)
def test_a_core_has_an_actor_as_far_as_the_memory_goes(
    cores: int, memory: int, weights: int, actors: int, threads: int
) -> None:
    assert actors_that_fit(cores, weights, memory) == actors
    assert threads_of_an_actor(cores, weights, memory) == threads


def test_no_thread_has_less_than_a_core() -> None:
    for cores in range(1, 40):
        for memory in (4, 16, 64):
            actors = actors_that_fit(cores, MOBILE_SAM, memory * GIB)
            threads = threads_of_an_actor(cores, MOBILE_SAM, memory * GIB)
            assert 1 <= actors * threads <= cores


def test_this_machine_has_memory() -> None:
    assert memory_here() > GIB
    assert actors_that_fit(1, MOBILE_SAM) == 1
