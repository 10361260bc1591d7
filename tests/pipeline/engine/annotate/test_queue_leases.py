"""Leases spare people work that somebody else does; they end by themselves."""

from segmint.pipeline.engine.annotate.queue import Leases


class FrozenClock:
    """A clock that stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_is_one_persons_until_it_ends() -> None:
    clock = FrozenClock()
    leases = Leases(60.0, clock)
    assert leases.take((7, 0), "ann")
    assert not leases.take((7, 0), "bo")
    assert leases.take((7, 1), "bo")  # the other assignment
    assert (leases.holder((7, 0)), leases.holder((7, 1)), leases.holder((8, 0))) == ("ann", "bo", None)
    clock.now += 59.9
    assert not leases.take((7, 0), "bo")
    clock.now += 0.1
    assert leases.holder((7, 0)) is None
    assert leases.of("bo") == []
    assert leases.take((7, 0), "bo")


def test_each_request_starts_the_time_again_for_its_owner_alone() -> None:
    clock = FrozenClock()
    leases = Leases(60.0, clock)
    leases.take((7, 0), "ann")
    leases.take((7, 1), "bo")
    clock.now += 40
    leases.renew(7, "ann")
    leases.renew(8, "ann")  # of which she has none
    clock.now += 40
    assert (leases.holder((7, 0)), leases.holder((7, 1)), leases.holder((8, 0))) == ("ann", None, None)
    assert leases.take((7, 0), "ann")
    clock.now += 59
    assert leases.holder((7, 0)) == "ann"


def test_what_somebody_has_is_listed_and_given_back() -> None:
    clock = FrozenClock()
    leases = Leases(60.0, clock)
    for image in (9, 3, 5):
        leases.take((image, 0), "ann")
        clock.now += 1
    leases.take((4, 1), "bo")
    leases.renew(9, "ann")
    assert leases.of("ann") == [(3, 0), (5, 0), (9, 0)]  # the oldest first
    leases.release(5, "bo")
    leases.release(3, "ann")
    assert leases.of("ann") == [(5, 0), (9, 0)]
    clock.now += 1
    assert leases.take((3, 0), "bo")
    assert leases.of("bo") == [(4, 1), (3, 0)]
