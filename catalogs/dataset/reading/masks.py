"""The masks of an image in a few lists: a batch of images has thousands of masks."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from operator import itemgetter
from typing import Any, overload

from segmint.catalogs.dataset.reader import MaskAnnotation

_VALUES = itemgetter(
    "id", "area", "predicted_iou", "stability_score", "bbox", "crop_box", "point_coords", "segmentation"
)


class Masks(Sequence[MaskAnnotation]):
    """The masks of an image, equal to a list of them. Each access makes a new annotation: keep what you use twice.

    A list of them would be a thousand objects an image, through which Python's garbage collector goes together with
    all else that the process holds: half of the time of reading. They also are sent faster between processes.
    """

    def __init__(self, annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> None:
        """Read `annotations` of an image of this (height, width).

        Raises `KeyError`, `TypeError` or `ValueError` for other ones than those of an image's JSON.
        """
        self._size = size
        columns = zip(*map(_VALUES, annotations), strict=True) if annotations else [()] * 8
        ids, areas, ious, stability, boxes, crops, points, shapes = columns
        self._plain = ids, [shape["counts"] for shape in shapes], areas, ious, stability
        self._boxes = _flat(boxes, 4)
        self._crops = _flat(crops, 4)
        self._points = _flat(list(chain.from_iterable(points)), 2)
        self._starts = list(accumulate(map(len, points), initial=0))

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
        points = tuple(_tuples(self._points, 2))[self._starts[place] : self._starts[place + 1]]
        box, crop = (tuple(values[4 * place : 4 * place + 4]) for values in (self._boxes, self._crops))
        return self._annotation((*(column[place] for column in self._plain), box, crop, points))

    def __iter__(self) -> Iterator[MaskAnnotation]:
        points = tuple(_tuples(self._points, 2))
        of_each = [points[start:stop] for start, stop in pairwise(self._starts)]
        boxes, crops = _tuples(self._boxes, 4), _tuples(self._crops, 4)
        return map(self._annotation, zip(*self._plain, boxes, crops, of_each, strict=True))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Masks | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"<{len(self)} masks>"

    def _annotation(self, values: tuple[Any, ...]) -> MaskAnnotation:
        mask = object.__new__(MaskAnnotation)
        own = mask.__dict__  # five times as fast as the constructor
        own["size"] = self._size
        (
            own["id"],
            own["counts"],
            own["area"],
            own["predicted_iou"],
            own["stability_score"],
            own["bbox"],
            own["crop_box"],
            own["point_coords"],
        ) = values
        return mask


def _tuples(values: Sequence[Any], length: int) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of the next `length` values."""
    each = iter(values)
    return zip(*[each] * length, strict=True)


def _flat(values: Sequence[Sequence[Any]], length: int) -> list[Any]:
    """Chain lists that have one length; raises `ValueError` for another one."""
    if not set(map(len, values)) <= {length}:
        raise ValueError(f"expected lists of {length} numbers")
    return list(chain.from_iterable(values))
