"""Where the faces and plates of the test photographs are, drawn by hand and eye; pixels, x0, y0, x1, y1."""

from collections.abc import Iterable

import cv2
import numpy as np

Box = tuple[float, float, float, float]

MULTIFACE: tuple[Box, ...] = (
    (226, 249, 305, 357),
    (420, 133, 503, 240),
    (554, 45, 633, 158),
    (622, 198, 695, 297),
    (722, 464, 798, 573),
    (859, 437, 954, 559),
)

SOLVAY: tuple[Box, ...] = (
    (140, 1036, 220, 1138),
    (233, 1142, 317, 1246),
    (411, 1076, 493, 1183),
    (470, 763, 545, 863),
    (548, 1150, 635, 1268),
    (692, 835, 761, 925),
    (721, 1048, 796, 1144),
    (843, 895, 919, 990),
    (858, 1145, 940, 1248),
    (1048, 1043, 1133, 1157),
    (1089, 880, 1166, 979),
    (1191, 1151, 1280, 1271),
    (1369, 898, 1449, 1004),
    (1409, 1025, 1485, 1121),
    (1587, 1130, 1678, 1248),
    (1590, 852, 1664, 946),
    (1669, 1031, 1748, 1133),
    (1840, 859, 1917, 957),
    (1860, 1131, 1954, 1249),
    (1952, 1051, 2030, 1158),
    (2083, 848, 2164, 952),
    (2110, 1136, 2193, 1246),
    (2277, 1055, 2361, 1167),
    (2294, 845, 2370, 937),
    (2453, 753, 2528, 852),
    (2454, 1148, 2539, 1264),
    (2575, 1073, 2660, 1183),
    (2598, 845, 2679, 944),
    (2689, 1188, 2777, 1301),
)

ASTRONAUT: tuple[Box, ...] = ((172, 62, 276, 190),)

PLATE_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "plate_car_1.png": ((306, 191), (387, 189), (388, 208), (307, 211)),
    "plate_car_2.webp": ((20, 324), (181, 358), (177, 389), (17, 353)),
}


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(first: Box, second: Box) -> float:
    """IoU of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (area(first) + area(second) - shared)


def found_again(labels: Iterable[Box], boxes: Iterable[Box], scale: float = 1.0) -> list[Box]:
    """The labeled things that some box, found in the image resized by `scale`, meets by an IoU of 0.2 or more."""
    boxes = list(boxes)
    return [b for b in labels if any(overlap(tuple(scale * v for v in b), other) >= 0.2 for other in boxes)]


def haar_faces(image: np.ndarray) -> list[Box]:
    """Boxes of OpenCV's frontal-face cascade, which has false alarms: compare with labels, never count."""
    path = cv2.data.haarcascades + "haarcascade_frontalface_default.xml"
    found = cv2.CascadeClassifier(path).detectMultiScale(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1.1, 3)
    return [(x, y, x + w, y + h) for x, y, w, h in np.reshape(found, (-1, 4)).tolist()]
