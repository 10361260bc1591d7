"""Copies and what they are copies of, against the rule written down for one row after another."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from segmint.operators.similar import candidates, clusters, near
from segmint.operators.similar import near as partitions
from segmint.operators.similar.candidates import find_candidates
from segmint.operators.similar.clusters import DuplicateMap, ImageRows, find_copies
from segmint.operators.similar.near import MIRROR, NO_HASH, VIEWS, normalized_views, same_view


def catalog(seed: int, count: int = 60) -> tuple[ImageRows, np.ndarray]:
    """Rows around a few pictures, with noise in hashes and thumbnails, and some of equal bytes."""
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 2**64, (1 + seed % 5, VIEWS), np.uint64)
    which = random.integers(0, len(pictures), count)
    hashes = pictures[which]
    for _ in range(4):
        bits = np.uint64(1) << random.integers(0, 64, hashes.shape).astype(np.uint64)
        hashes ^= np.where(random.random(hashes.shape) < 0.3, bits, np.uint64(0))
    hashes[random.random(hashes.shape) < 0.2] = NO_HASH
    shown = np.kron(random.integers(0, 256, (8, 8, 8)), np.ones((8, 8)))[(which + random.integers(0, 2, count)) % 8]
    thumbnails = np.clip(shown + random.normal(0, 25, shown.shape), 0, 255).astype(np.uint8)
    sources = random.integers(1, 2**63, (count, 2)).astype(np.uint64)
    for copy, of in random.integers(0, count, (10, 2)):
        sources[copy], hashes[copy], thumbnails[copy] = sources[of], hashes[of], thumbnails[of]
    sources[random.integers(0, count, 5)] = 0
    allowed, opted_out = random.random(count) < 0.7, random.random(count) < 0.1
    return ImageRows(sources, hashes, random.integers(1, 4, count), allowed, opted_out), thumbnails


def one_by_one(rows: ImageRows, thumbnails: np.ndarray) -> list[int]:
    """What each row is a copy of, -1 for none, by comparing each kept image with all after it."""
    count = len(rows.pixels)
    key = lambda row: (not rows.opted_out[row], not rows.allowed[row], -rows.pixels[row], row)  # noqa: E731
    order = sorted(range(count), key=key)
    first: dict[tuple[int, ...], int] = {}
    image = {row: first.setdefault(tuple(rows.sources[row]), row) if any(rows.sources[row]) else row for row in order}
    views = normalized_views(np.repeat(thumbnails, VIEWS, axis=0), np.tile(np.arange(VIEWS), count))
    views = views.reshape(count, VIEWS, -1)

    def similar(one: int, other: int) -> bool:
        near = np.bitwise_count(rows.hashes[one][:, None] ^ rows.hashes[other]) <= 3
        near &= (rows.hashes[one] != NO_HASH)[:, None] & (rows.hashes[other] != NO_HASH)
        near[MIRROR, MIRROR] = False
        return any(same_view(views[one][[left]], views[other][[right]]).all() for left, right in np.argwhere(near))

    kept: dict[int, int] = {}
    images = [row for row in order if image[row] == row]
    for place, row in enumerate(images):
        if row not in kept:
            later = [other for other in images[place + 1 :] if other not in kept and not rows.opted_out[other]]
            kept.update({other: row for other in later if similar(row, other)})
    found = [kept.get(image[row], image[row]) for row in range(count)]
    return [-1 if found[row] == row else found[row] for row in range(count)]


def copies_of(rows: ImageRows, thumbnails: np.ndarray) -> DuplicateMap:
    return find_copies(rows, lambda numbers: thumbnails[numbers])


@pytest.mark.parametrize("many", [0, 8, 10_000], ids=["crowds", "some crowds", "no crowds"])
@pytest.mark.parametrize("seed", range(5))
def test_copies_are_those_that_the_rule_finds_row_by_row(seed: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MANY", many)
    rows, thumbnails = catalog(seed)
    found = copies_of(rows, thumbnails)
    assert found.kept.tolist() == one_by_one(rows, thumbnails)
    of = found.kept[found.exact]
    assert (rows.sources[found.exact] == rows.sources[of]).all()
    assert (found.kept[of] == -1).all()


@pytest.mark.parametrize(("most", "dense"), [(3, -1.0), (3, 1.0), (40, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_so_are_they_if_few_pairs_are_in_memory(
    seed: int, most: int, dense: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MOST_WAITING", most)
    monkeypatch.setattr(candidates, "LEAST_LISTED", most)
    monkeypatch.setattr(clusters, "DENSE", dense)
    monkeypatch.setattr(clusters, "COMPARED", 40)
    monkeypatch.setattr(clusters, "SKETCHES", 7)
    rows, thumbnails = catalog(seed)
    assert copies_of(rows, thumbnails).kept.tolist() == one_by_one(rows, thumbnails)


def test_memory_does_not_grow_with_near_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST_WAITING", 1 << 14)
    hashes = np.zeros((1 << 12, VIEWS), np.uint64)
    hashes[:, 0] = np.arange(1 << 12, dtype=np.uint64) << np.uint64(20) | np.uint64(1)
    tracemalloc.start()
    found = find_candidates(hashes, np.ones(len(hashes), bool), 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.pairs) == 0
    assert len(set(found.crowds.tolist())) == 1
    assert peak < 20 << 20, "there are 610,304 near pairs"


def three(**changed: list[object]) -> ImageRows:
    """Three pictures in a chain: the frame of each is 3 bits from the next one's, and the outer ones are 6 apart."""
    hashes = np.zeros((3, VIEWS), np.uint64)
    hashes[:, 0] = [0b1_000_111, 0b1_000_000, 0b1_111_000]
    rows = ImageRows(np.zeros((3, 2), np.uint64), hashes, np.full(3, 100), np.ones(3, bool), np.zeros(3, bool))
    return dataclasses.replace(rows, **{name: np.array(values) for name, values in changed.items()})


SAME = np.tile(np.arange(64, dtype=np.uint8), (3, 64, 1))


def test_no_image_is_a_copy_of_another_copy() -> None:
    assert copies_of(three(), SAME).kept.tolist() == [-1, 0, -1]
    assert copies_of(three(pixels=[1, 9, 1]), SAME).kept.tolist() == [1, -1, 1]


def test_an_allowed_license_comes_before_pixels() -> None:
    assert copies_of(three(pixels=[1, 9, 1], allowed=[True, False, True]), SAME).kept.tolist() == [-1, 0, -1]


def test_whatever_is_similar_to_an_image_that_opted_out_is_its_copy() -> None:
    rows = three(pixels=[9, 1, 9], allowed=[True, False, True], opted_out=[False, True, False])
    assert copies_of(rows, SAME).kept.tolist() == [1, -1, 1]


@pytest.mark.parametrize("many", [0, 10_000], ids=["crowd", "no crowd"])
def test_what_is_similar_to_the_second_of_two_that_opted_out_is_its_copy(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MANY", many)
    assert copies_of(three(opted_out=[True, True, False]), SAME).kept.tolist() == [-1, -1, 1]


def test_arrays_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"allowed are of shape \(2,\): expected \(3,\)"):
        three(allowed=[True, False])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_without_hashes_or_known_bytes_are_no_copies(count: int) -> None:
    yes, nothing = np.ones(count, bool), np.zeros((count, VIEWS), np.uint64)
    rows = ImageRows(nothing[:, :2], nothing, np.ones(count, np.int64), yes, ~yes)
    found = copies_of(rows, np.zeros((count, 64, 64), np.uint8))
    assert found.kept.tolist() == [-1] * count
    assert not found.exact.any()


@pytest.mark.parametrize("many", [0, 8, 10_000], ids=["crowds", "some crowds", "no crowds"])
@pytest.mark.parametrize("seed", range(2))
def test_copies_are_the_same_however_many_parts_are_on_disk(
    seed: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MANY", many)
    rows, thumbnails = catalog(seed, 100)
    whole = copies_of(rows, thumbnails)
    monkeypatch.setattr(partitions, "PART_ROWS", 25)
    monkeypatch.setattr(near, "FEW", 8)
    for module, chunk in ((near, "CHUNK"), (candidates, "CHUNK_ROWS"), (clusters, "CHUNK_ROWS")):
        monkeypatch.setattr(module, chunk, 40)
    drained = []
    drain = partitions.Partitions.drain
    monkeypatch.setattr(partitions.Partitions, "drain", lambda self: drained.append(list(drain(self))) or drained[-1])
    found = copies_of(rows, thumbnails)
    assert found.kept.tolist() == whole.kept.tolist()
    assert found.exact.tolist() == whole.exact.tolist()
    assert len(drained) > 2
    assert all(len(parts) > 2 for parts in drained[:3]), "bytes, the table, and the first two bands"


def test_little_of_a_large_table_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PART_ROWS", 1 << 15)
    for module, chunk in ((near, "CHUNK"), (candidates, "CHUNK_ROWS")):
        monkeypatch.setattr(module, chunk, 1 << 14)
    hashes = np.random.default_rng(0).integers(0, 2**64, (1 << 16, VIEWS), np.uint64)
    tracemalloc.start()
    found = find_candidates(hashes, np.ones(len(hashes), bool), 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.values) < 100
    assert peak < 8 << 20, f"{peak:,} bytes; the table takes {3 * hashes.nbytes:,}"
