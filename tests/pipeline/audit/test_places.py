"""Which images an audit's findings are about."""

import pytest

from segmint.pipeline.audit.places import image_of


@pytest.mark.parametrize(
    ("where", "image"),
    [
        ("mask 20003", 2),
        ("mask 10000", 1),
        ("id 7", 7),
        ("sa_12.jpg", 12),
        ("sa_12.json: annotations[3].area", 12),
        ("ordinal 4", 5),
        ("row 4", None),
        ("", None),
        ("the id 7", None),
        ("id 7x", None),
    ],
)
def test_a_place_names_an_image(where: str, image: int | None) -> None:
    assert image_of(where) == image
