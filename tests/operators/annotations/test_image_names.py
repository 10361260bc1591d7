"""Names of images in files of other tools."""

import pytest

from segmint.operators.annotations.image import image_number, name_and_stem


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("sa_12.jpg", 12),
        ("images/train/sa_12.png", 12),
        ("/data/local-files/?d=images/sa_12.jpg", 12),
        ("/data/upload/3/0a1b2c3d-sa_12.jpg", 12),
        ("s3://bucket/out/images/sa_12.jpg", 12),
        ("visa_12.jpg", None),
        ("sa_12.jpg/other.jpg", None),
        ("12.jpg", None),
        (f"sa_{'9' * 30}.jpg", None),
    ],
)
def test_images_are_known_by_their_names(path: str, number: int | None) -> None:
    assert image_number(path) == number


def test_the_last_part_of_a_path_with_and_without_its_ending() -> None:
    assert name_and_stem("s3://a/b/photo 1.tar.jpg") == ("photo 1.tar.jpg", "photo 1.tar")
    assert name_and_stem("C:\\masks\\photo.png") == ("photo.png", "photo")
    assert name_and_stem("photo") == ("photo", "photo")
