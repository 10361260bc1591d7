"""The masks of an image in a few arrays: a batch of images has thousands of masks."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, overload

from segmint.catalogs.dataset.reader import MaskAnnotation

_FIELDS = ("id", "counts", "area", "predicted_iou", "stability_score", "size", "bbox", "crop_box", "point_coords")


class Masks(Sequence[MaskAnnotation]):
    """The masks of an image, equal to a list of them. An access makes the annotation anew: keep what you use twice.

    A list of them would be a thousand objects an image, through which Python's garbage collector goes together with
    all else that the process holds: half of the time of reading. They also are sent faster between processes.
    """

    def __init__(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        """Read `annotations` of an image's JSON; raises `KeyError`, `TypeError` or `ValueError` for other ones."""
        shapes = [value["segmentation"] for value in annotations]
        points = [value["point_coords"] for value in annotations]
        self._plain = (
            [value["id"] for value in annotations],
            [shape["counts"] for shape in shapes],
            [value["area"] for value in annotations],
            [value["predicted_iou"] for value in annotations],
            [value["stability_score"] for value in annotations],
        )
        self._sizes = array("q", _flat([shape["size"] for shape in shapes], 2))
        self._boxes = array("d", _flat([value["bbox"] for value in annotations], 4))
        self._crops = array("d", _flat([value["crop_box"] for value in annotations], 4))
        self._points = array("d", _flat(list(chain.from_iterable(points)), 2))
        self._starts = array("q", accumulate(map(len, points), initial=0))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> MaskAnnotation: ...
    @overload
    def __getitem__(self, index: slice) -> list[MaskAnnotation]: ...
    def __getitem__(self, index: int | slice) -> MaskAnnotation | list[MaskAnnotation]:
        if isinstance(index, slice):
            return list(self)[index]
        place = range(len(self))[index]
        fields = (
            *(column[place] for column in self._plain),
            tuple(self._sizes[2 * place : 2 * place + 2]),
            tuple(self._boxes[4 * place : 4 * place + 4]),
            tuple(self._crops[4 * place : 4 * place + 4]),
            tuple(_tuples(self._points, 2))[self._starts[place] : self._starts[place + 1]],
        )
        return _annotation(fields)

    def __iter__(self) -> Iterator[MaskAnnotation]:
        points = tuple(_tuples(self._points, 2))
        return map(
            _annotation,
            zip(
                *self._plain,
                _tuples(self._sizes, 2),
                _tuples(self._boxes, 4),
                _tuples(self._crops, 4),
                (points[start:stop] for start, stop in pairwise(self._starts)),
                strict=True,
            ),
        )

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Masks | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"<{len(self)} masks>"


def _annotation(fields: tuple[Any, ...]) -> MaskAnnotation:
    mask = object.__new__(MaskAnnotation)
    mask.__dict__.update(zip(_FIELDS, fields, strict=True))  # three times as fast as the constructor
    return mask


def _tuples(values: Sequence[Any], length: int) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of the next `length` values."""
    each = iter(values)
    return zip(*[each] * length, strict=True)


def _flat(values: Sequence[Sequence[Any]], length: int) -> Iterable[Any]:
    """Chain lists that have one length; raises `ValueError` for another one."""
    if not set(map(len, values)) <= {length}:
        raise ValueError(f"expected lists of {length} numbers")
    return chain.from_iterable(values)
