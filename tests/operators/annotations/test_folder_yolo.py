"""YOLO's segmentation labels: polygons become masks, and a line that can't be read costs no other."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.operators.annotations.folder import is_yolo, read_yolo_folder, read_yolo_labels
from tests.support.locations import location_of

NAMES = {0: "object", 1: "cup"}
SIZE = (30, 40)
SQUARE = "1 0.25 0.2 0.75 0.2 0.75 0.8 0.25 0.8"


def test_polygons_enclose_pixels_and_those_of_segmint_run_through_them() -> None:
    expected = np.zeros(SIZE, bool)
    expected[6:24, 10:30] = True
    around = read_yolo_labels(f"{SQUARE}\n\n".encode(), "a.jpg", SIZE, NAMES)
    corners = ((10, 6), (29, 6), (29, 23), (10, 23))
    centers = " ".join(f"{(x + 0.5) / 40:.6f} {(y + 0.5) / 30:.6f}" for x, y in corners)
    through = read_yolo_labels(f"0 {centers}".encode(), "a.jpg", SIZE, NAMES, through_centers=True)
    assert (around.size, around.unreadable, through.unreadable) == (SIZE, [], [])
    assert [(mask.label, mask.id, mask.polygon) for mask in around.masks] == [("cup", None, True)]
    assert [mask.label for mask in through.masks] == ["object"]
    for image in (around, through):
        np.testing.assert_array_equal(image.masks[0].pixels(), expected)


def test_what_a_polygon_encloses_twice_is_outside() -> None:
    """It goes around the square, and then around a smaller one inside it."""
    line = f"{SQUARE} 0.25 0.2 0.5 0.4 0.6 0.4 0.6 0.6 0.5 0.6 0.5 0.4"
    (mask,) = read_yolo_labels(line.encode(), "a.jpg", SIZE, NAMES).masks
    assert not mask.pixels()[13:17, 21:23].any()
    assert mask.pixels()[7:11, 12:28].all()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1 0.5 0.5 0.2 0.2", "none of its polygons"),
        ("1 0.5 0.5 0.2 0.2 0.9", "one of its polygons"),
        ("2 0.1 0.1 0.5 0.1 0.5 0.5", "found the class '2', which has no name"),
        ("-1 0.1 0.1 0.5 0.1 0.5 0.5", "found the class '-1', which has no name"),
        (f"{'9' * 5000} 0.1 0.1", "found the class '999"),
        ("1 0.1 0.1 0.5 0.1 0.5 x", "could not convert string to float: 'x'"),
        ("1 0.1 0.1 0.5 0.1 0.5 nan", "a polygon has the coordinate nan"),
        ("1 0.1 0.1 0.5 0.1 0.5 0.5 0.6", "one of its polygons is not a list x, y, x, y"),
        ("1 0.1 0.1", "none of its polygons"),
        ("1 10 10 300 10 300 200", "a polygon has the coordinate"),
        ("1", "none of its polygons"),
    ],
)
def test_a_line_that_cannot_be_read_costs_no_other(line: str, why: str) -> None:
    image = read_yolo_labels(f"{line}\n{SQUARE}\n".encode(), "a.jpg", SIZE, NAMES)
    assert len(image.masks) == 1
    (problem,) = image.unreadable
    assert problem.startswith(f"line 1: {why}")


def test_a_folder_is_read_with_the_names_and_sizes_of_its_pictures(tmp_path: Path) -> None:
    for name in ("labels/train/sa_1.txt", "labels/train/wide.txt", "labels/labels/tall.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{SQUARE}\n")
    (tmp_path / "labels/empty.txt").write_text("")
    (tmp_path / "readme.txt").write_text("not of masks")
    (tmp_path / "data.yaml").write_text("names: [object, cup]\n")
    for name in ("images/train", "labels/images"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(tmp_path / "images/train/wide.PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "labels/images/tall.jpg", exif=exif)
    Image.new("RGB", (40, 30)).save(tmp_path / "train.jpg")  # not in `images`
    (tmp_path / "images/empty.jpg").write_bytes(b"not a picture")
    assert is_yolo([path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")])
    assert not is_yolo(["data.yaml", "sa_1.txt"])
    assert not is_yolo(["labels/sa_1.txt"])
    hashed = hashlib.sha256()
    sizes = {"labels/train/sa_1.txt": SIZE, "labels/train/wide.txt": SIZE}
    found = {image.name: image for image in read_yolo_folder(location_of(tmp_path), hashed.update, sizes.get)}
    assert {name: (image.size, len(image.masks), image.unreadable) for name, image in found.items()} == {
        "images/empty.jpg": (None, 0, []),
        "labels/images/tall.jpg": ((40, 30), 1, []),
        "labels/train/sa_1.txt": (SIZE, 1, []),
        "images/train/wide.PNG": ((60, 80), 1, []),
    }
    (tmp_path / "labels/train/sa_1.txt").write_text("")
    again = hashlib.sha256()
    assert len(list(read_yolo_folder(location_of(tmp_path), again.update))) == 4
    assert again.digest() != hashed.digest()


def test_without_a_size_a_label_is_unreadable_and_without_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text(SQUARE)
    with pytest.raises(NotFoundError):
        list(read_yolo_folder(location_of(tmp_path), len))
    (tmp_path / "data.yaml").write_text("names: {0: object, 1: cup}\n")
    (image,) = read_yolo_folder(location_of(tmp_path), len)
    assert image.unreadable == ["line 1: it is a polygon, but the file has no height and width for its image"]
    (tmp_path / "data.yaml").write_text("train: images\n")
    with pytest.raises(UsageError, match="has no `names`"):
        list(read_yolo_folder(location_of(tmp_path), len))


def test_an_export_says_which_images_lack_masks(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for number in (1, 2):
        (tmp_path / f"labels/sa_{number}.txt").write_text(SQUARE)
    (tmp_path / "data.yaml").write_text("names: [object, cup]\nsegmint: {}\n")
    (tmp_path / "left_out.csv").write_text("image,mask,area,reason\nsa_2.jpg,20003,1,too small\n")
    one, two = read_yolo_folder(location_of(tmp_path), len, lambda name: SIZE)
    assert (one.unreadable, two.unreadable) == ([], ["left_out.csv lists masks that aren't in its labels"])
    assert one.masks[0].area == 360 + 20 + 19  # its polygon goes through pixels
    (tmp_path / "data.yaml").write_text("names: [object, cup]\n")
    one, two = read_yolo_folder(location_of(tmp_path), len, lambda name: SIZE)
    assert (one.masks[0].area, two.unreadable) == (360, [])
