"""The masks of an image in arrays are those of a list, and odd ones are refused as they are read."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.dataset.reader import MaskAnnotation, MaskSequence

NUMBERS = st.floats(0, 5000)
SCORES = st.none() | st.floats(0, 1)
ANNOTATIONS = st.fixed_dictionaries(
    {
        "id": st.integers(1, 2**53),
        "segmentation": st.fixed_dictionaries({"size": st.just([60, 80]), "counts": st.text("0123PQ", max_size=8)}),
        "bbox": st.lists(NUMBERS, min_size=4, max_size=4),
        "area": st.integers(0, 4800),
        "predicted_iou": SCORES,
        "stability_score": SCORES,
        "crop_box": st.lists(NUMBERS, min_size=4, max_size=4),
        "point_coords": st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=3),
    }
)


def annotation_of(value: dict, output: int | None, container: int | None) -> MaskAnnotation:
    """The mask of one entry of the JSON, by the constructor of annotations."""
    plain = {name: value[name] for name in ("id", "area", "predicted_iou", "stability_score")}
    boxes = {name: tuple(value[name]) for name in ("bbox", "crop_box")}
    return MaskAnnotation(
        **plain,
        **boxes,
        size=(60, 80),
        counts=value["segmentation"]["counts"],
        point_coords=tuple(map(tuple, value["point_coords"])),
        output=output,
        container=container,
    )


@given(st.lists(ANNOTATIONS, max_size=6), st.slices(6))
def test_they_are_those_of_a_list(annotations: list[dict], part: slice) -> None:
    outputs = [(None, 0, 1, 2)[place % 4] for place in range(len(annotations))]
    containers = [value["id"] if value["area"] % 2 else None for value in annotations]
    masks = MaskSequence(annotations, (60, 80), {}, outputs, containers)
    expected = [*map(annotation_of, annotations, outputs, containers)]
    assert list(masks) == expected
    assert masks == expected
    assert masks == pickle.loads(pickle.dumps(masks))
    assert [masks[place] for place in range(len(masks))] == expected
    assert [masks[-place - 1] for place in range(len(masks))] == expected[::-1]
    assert masks[part] == expected[part]
    assert masks != [*expected, None]
    with pytest.raises(IndexError):
        masks[len(expected)]


GOOD = {
    "id": 10000,
    "segmentation": {"size": [60, 80], "counts": "0"},
    "bbox": [1.0, 2.0, 3.0, 4.0],
    "area": 12,
    "predicted_iou": 0.9,
    "stability_score": None,
    "crop_box": [0.0, 0.0, 80.0, 60.0],
    "point_coords": [[1.0, 2.0]],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [1.0, 2.0, 3.0]},
        {"crop_box": [1.0, 2.0, 3.0, 4.0, 5.0]},
        {"point_coords": [[1.0]]},
        {"point_coords": None},
        {"segmentation": {"size": [60, 80]}},
        {"segmentation": []},
    ],
)
def test_odd_ones_are_refused(changes: dict) -> None:
    assert len(MaskSequence([GOOD], (60, 80), {}, [None], [None])) == 1
    with pytest.raises((KeyError, TypeError, ValueError)):
        MaskSequence([GOOD, {**GOOD, **changes}], (60, 80), {}, [None] * 2, [None] * 2)


@pytest.mark.parametrize("key", list(GOOD))
def test_none_may_lack_a_key(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        MaskSequence([{name: value for name, value in GOOD.items() if name != key}], (60, 80), {}, [None], [None])
