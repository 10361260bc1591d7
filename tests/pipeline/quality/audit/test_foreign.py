"""Data in the layouts of COCO, YOLO, and SA-1B: an audit finds every planted fault, and nothing in sound data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segmint.catalogs.findings import Code
from segmint.infra.errors import UsageError
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.audit.result import AuditReport, from_json, result_lines, to_json
from tests.support.foreign_data import loosen
from tests.support.foreign_layouts import (
    coco_document,
    crops,
    encoded,
    gps_exif,
    put_json,
    thumbnail_exif,
    write_coco,
    write_sa1b,
    write_yolo,
    yolo_polygon,
)
from tests.support.locations import location_of
from tests.support.tars import tar_of

pytestmark = pytest.mark.usefixtures("processes")

Plant = Callable[[Path, list[Image.Image]], None]
Fault = tuple[Plant, Code, str, str]  # what to do, and the code, file, and place of its finding


def audit(folder: Path, **options: Any) -> AuditReport:
    return audit_dataset(location_of(folder), AuditOptions(sample=0, **{"privacy_sample": 0, **options}))


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Image.Image]:
    return crops(photos)


def sound(pictures: list[Image.Image], first: int, last: int) -> list[bytes]:
    return [encoded(picture) for picture in pictures[first:last]]


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Plant:
    def plant(folder: Path, _: list[Image.Image]) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return plant


def picture(name: str, number: int, **options: Any) -> Plant:
    """Encode a picture again with `options`, whose functions get all pictures."""

    def plant(folder: Path, pictures: list[Image.Image]) -> None:
        made = {key: value(pictures) if callable(value) else value for key, value in options.items()}
        (folder / name).write_bytes(encoded(pictures[number], **made))

    return plant


def document(name: str, change: Callable[[dict[str, Any]], None]) -> Plant:
    def plant(folder: Path, _: list[Image.Image]) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        put_json(folder / name, found)

    return plant


def mask(name: str, index: int, **values: Any) -> Plant:
    return document(name, lambda found: found["annotations"][index].update(values))


def copy(source: str, target: str) -> Plant:
    return lambda folder, _: (folder / target).write_bytes((folder / source).read_bytes()) and None


def smaller(source: int, target: str) -> Plant:
    def plant(folder: Path, pictures: list[Image.Image]) -> None:
        again = pictures[source].resize((120, 100)).resize(pictures[source].size)
        (folder / target).write_bytes(encoded(again))

    return plant


def text(name: str, content: str) -> Plant:
    return lambda folder, _: (folder / name).write_text(content) and None


TRAIN, VAL = "annotations/instances_train.json", "annotations/instances_val.json"
ZEROS = {"size": [200, 240], "counts": [48_000]}
SHORT = {"size": [200, 240], "counts": [100, 50]}
OTHER = {"size": [100, 240], "counts": [24_000 - 500, 500]}

# Pictures 0 to 11 are in `train`, and 12 to 17 in `val`. Image 1 is picture 0, and its masks are 10 and 11.
COCO: dict[str, Fault] = {
    "position": (picture("train/000.jpg", 0, exif=lambda _: gps_exif()), Code.GPS_POSITION, "train/000.jpg", ""),
    "comment": (picture("train/001.jpg", 1, comment=b"by me"), Code.JPEG_METADATA, "train/001.jpg", ""),
    "thumbnail": (
        picture("train/002.jpg", 2, exif=lambda all: thumbnail_exif(all[9])),
        *(Code.OTHER_THUMBNAIL, "train/002.jpg", ""),
    ),
    "more bytes": (bytes_of("train/003.jpg", lambda data: data + b"more"), Code.JPEG_METADATA, "train/003.jpg", ""),
    "torn": (bytes_of("train/004.jpg", lambda data: data[: len(data) // 2]), Code.BAD_JPEG, "train/004.jpg", ""),
    "no picture": (bytes_of("train/005.jpg", lambda _: b"no picture"), Code.BAD_JPEG, "train/005.jpg", ""),
    "empty": (mask(TRAIN, 12, segmentation=ZEROS, bbox=None, area=0), Code.MASK_AREA, TRAIN, "train/006.jpg, mask 70"),
    "runs": (mask(TRAIN, 13, segmentation=SHORT), Code.BAD_RLE, TRAIN, "train/006.jpg, mask 71"),
    "mask size": (mask(TRAIN, 14, segmentation=OTHER), Code.RLE_SIZE, TRAIN, "train/007.jpg, mask 80"),
    "polygon": (mask(TRAIN, 15, segmentation=[[1, 2, 3]]), Code.BAD_RLE, TRAIN, "train/007.jpg, mask 81"),
    "box": (mask(TRAIN, 16, bbox=[50, 40, 80, 80]), Code.MASK_BOX, TRAIN, "train/008.jpg, mask 90"),
    "area": (mask(TRAIN, 17, area=9), Code.MASK_AREA, TRAIN, "train/008.jpg, mask 91"),
    "outside": (
        mask(TRAIN, 18, segmentation=None, bbox=[200, 0, 90, 9]),
        Code.BOX_OUTSIDE,
        TRAIN,
        "train/009.jpg, mask 100",
    ),
    "flat box": (
        mask(TRAIN, 19, segmentation=None, bbox=[2, 3, 0, 9]),
        Code.BOX_OUTSIDE,
        TRAIN,
        "train/009.jpg, mask 101",
    ),
    "no polygon": (mask(TRAIN, 22, segmentation=[]), Code.MASK_AREA, TRAIN, "train/011.jpg, mask 120"),
    "category": (mask(TRAIN, 20, category_id=7), Code.BAD_LABEL, TRAIN, "mask 110"),
    "image": (mask(TRAIN, 21, image_id=700), Code.ROW_IDENTITY, TRAIN, "mask 111"),
    "license": (
        document(TRAIN, lambda all: all["images"][11].pop("license")),
        Code.LICENSE_NOT_ALLOWED,
        TRAIN,
        "011.jpg",
    ),
    "size": (
        document(VAL, lambda all: all["images"][0].update(width=250) or all["annotations"].pop(1)),
        *(Code.JPEG_SIZE, VAL, "val/000.jpg"),
    ),
    "copy": (copy("train/006.jpg", "train/007.jpg"), Code.REPEATED_SOURCE, "train/007.jpg", ""),
    "copy in a split": (copy("train/008.jpg", "val/001.jpg"), Code.SPLIT_LEAK, "val/001.jpg", ""),
    "near copy in a split": (smaller(9, "val/002.jpg"), Code.SPLIT_LEAK, "val/002.jpg", ""),
    "near copy": (smaller(10, "train/011.jpg"), Code.SIMILAR_IMAGE, "train/011.jpg", ""),
    "missing": (lambda folder, _: (folder / "val/003.jpg").unlink(), Code.MISSING_FILE, VAL, "val/003.jpg"),
    "damaged file": (
        text("annotations/instances_test.json", '{"images": ['),
        *(Code.BAD_JSON, "annotations/instances_test.json", ""),
    ),
    "escape": (
        document(VAL, lambda all: all["images"][4].update(file_name="../../secret.jpg")),
        *(Code.MISSING_FILE, VAL, "val/../../secret.jpg"),
    ),
}

LABELS = "labels/train/{:03}.txt"
YOLO: dict[str, Fault] = {
    "position": (
        picture("images/train/000.jpg", 0, exif=lambda _: gps_exif()),
        Code.GPS_POSITION,
        "images/train/000.jpg",
        "",
    ),
    "XMP": (picture("images/train/001.jpg", 1, xmp=b"<x:xmpmeta/>"), Code.JPEG_METADATA, "images/train/001.jpg", ""),
    "torn": (bytes_of("images/train/002.jpg", lambda data: data[:900]), Code.BAD_JPEG, "images/train/002.jpg", ""),
    "values": (text(LABELS.format(3), "0 0.1 0.2 0.3"), Code.BAD_RLE, LABELS.format(3), "images/train/003.jpg, line 1"),
    "class": (
        text(LABELS.format(4), f"{yolo_polygon()}\n9 0.5 0.5 0.2 0.2"),
        Code.BAD_LABEL,
        LABELS.format(4),
        "images/train/004.jpg, line 2",
    ),
    "outside": (
        text(LABELS.format(5), "0 0.9 0.5 0.4 0.2"),
        Code.BOX_OUTSIDE,
        LABELS.format(5),
        "images/train/005.jpg, mask of line 1",
    ),
    "pixels": (
        text(LABELS.format(6), "0 40 50 90 50 60 80"),
        Code.BAD_RLE,
        LABELS.format(6),
        "images/train/006.jpg, mask of line 1",
    ),
    "line": (
        text(LABELS.format(7), "0 0.1 0.1 0.5 0.5 0.9 0.9"),
        Code.MASK_AREA,
        LABELS.format(7),
        "images/train/007.jpg, mask of line 1",
    ),
    "no image": (text("labels/train/900.txt", ""), Code.MISSING_PAIR, "labels/train/900.txt", ""),
    "copy in a split": (copy("images/train/006.jpg", "images/val/000.jpg"), Code.SPLIT_LEAK, "images/val/000.jpg", ""),
    "license": (
        bytes_of("data.yaml", lambda data: data.replace(b"license: CC-BY-4.0", b"nc: 2")),
        *(Code.LICENSE_NOT_ALLOWED, "data.yaml", ""),
    ),
}

SA1B: dict[str, Fault] = {
    "position": (picture("sa_1.jpg", 0, exif=lambda _: gps_exif()), Code.GPS_POSITION, "sa_1", ""),
    "more bytes": (bytes_of("sa_2.jpg", lambda data: data + bytes(99)), Code.JPEG_METADATA, "sa_2", ""),
    "torn": (bytes_of("sa_3.jpg", lambda data: data[:-500]), Code.BAD_JPEG, "sa_3", ""),
    "box": (mask("sa_4.json", 0, bbox=[1, 2, 3, 4]), Code.MASK_BOX, "sa_4.json", "mask 40"),
    "empty": (mask("sa_5.json", 0, segmentation=ZEROS, area=0), Code.MASK_AREA, "sa_5.json", "mask 50"),
    "size": (
        document("sa_6.json", lambda all: all["image"].update(height=7) or all.update(annotations=[])),
        Code.JPEG_SIZE,
        "sa_6.jpg",
        "",
    ),
    "copy": (copy("sa_4.jpg", "sa_7.jpg"), Code.REPEATED_SOURCE, "sa_7", ""),
    "near copy": (smaller(4, "sa_8.jpg"), Code.SIMILAR_IMAGE, "sa_8", ""),
    "no JSON": (lambda folder, _: (folder / "sa_9.json").unlink(), Code.MISSING_PAIR, "sa_9.jpg", ""),
}


def plant(faults: dict[str, Fault], folder: Path, pictures: list[Image.Image]) -> AuditReport:
    for damage, *_ in faults.values():
        damage(folder, pictures)
    return audit(folder)


@pytest.fixture(scope="module")
def reports(pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> dict[str, AuditReport]:
    folder = tmp_path_factory.mktemp("foreign")
    splits = {"train": sound(pictures, 0, 12), "val": sound(pictures, 12, 18)}
    (folder / "coco").mkdir()
    (folder / "coco" / "about.json").write_text("{}")
    datasets = {
        "coco": (COCO, write_coco(folder / "coco", splits)),
        "yolo": (YOLO, write_yolo(folder / "yolo", {"train": splits["train"][:9], "val": splits["val"][:2]})),
        "sa1b": (SA1B, write_sa1b(folder / "sa1b", splits["train"][:9])),
    }
    return {kind: plant(faults, data, pictures) for kind, (faults, data) in datasets.items()}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, faults in (("coco", COCO), ("yolo", YOLO), ("sa1b", SA1B)) for name in faults],
)
def test_a_planted_fault_is_found_once(reports: dict[str, AuditReport], kind: str, name: str) -> None:
    _, code, file, where = {"coco": COCO, "yolo": YOLO, "sa1b": SA1B}[kind][name]
    found = [each for each in reports[kind].findings if (each.code, each.file) == (code, file)]
    assert [each.where for each in found if each.where == where] == [where], [each.line() for each in found]


@pytest.mark.parametrize(("kind", "faults"), [("coco", COCO), ("yolo", YOLO), ("sa1b", SA1B)])
def test_nothing_else_is_found(reports: dict[str, AuditReport], kind: str, faults: dict[str, Fault]) -> None:
    report = reports[kind]
    expected = sorted((code, file, where) for _, code, file, where in faults.values())
    assert sorted((each.code, each.file, each.where) for each in report.findings) == expected
    assert report.kind == kind
    assert from_json(to_json(report), "audit.json") == report


def test_a_second_coco_dataset_with_files_that_the_user_names(pictures: list[Image.Image], tmp_path: Path) -> None:
    """Uncompressed run lengths, PNG and WebP, names with folders, and splits that hold the same file."""
    folder = tmp_path / "photos" / "all"
    folder.mkdir(parents=True)
    forms = {"a.png": "PNG", "b.webp": "WEBP", "c.jpg": "JPEG", "d.jpeg": "JPEG"}
    for number, (name, form) in enumerate(forms.items()):
        (folder / name).write_bytes(encoded(pictures[number], form))
    names = [f"all/{name}" for name in forms]
    files = []
    for split, listed in (("val", names[2:]), ("train", names[:2])):
        files.append(tmp_path / f"{split}.json")
        put_json(files[-1], coco_document(listed, compressed=False))

    both = coco_document([*names[2:], "all/a.png"], compressed=False)
    both["images"][1]["width"] = "wide"
    both["annotations"][3]["id"] = both["annotations"][2]["id"]
    both["annotations"] += [{"id": 90, "image_id": 3, "category_id": 9, "bbox": "none"}, 7]
    both["annotations"] += [{"id": 91, "image_id": 3, "caption": "a photograph"}]
    put_json(files[0], both)
    report = audit(files[0], more=(location_of(files[1]),), images=location_of(tmp_path / "photos"))
    assert sorted((each.code, each.where) for each in report.findings) == [
        (Code.BAD_JSON, "all/d.jpeg"),
        (Code.BAD_LABEL, "mask 90"),
        (Code.BOX_OUTSIDE, "all/a.png, mask 90"),
        (Code.ROW_IDENTITY, "annotation number 8"),
        (Code.ROW_IDENTITY, "mask 20"),
        (Code.SPLIT_LEAK, ""),
    ]
    assert report.duplicates is not None
    assert report.duplicates.across_splits == 1
    assert report.checked.images == report.checked.jpegs_decoded == 5, "an image of two splits counts in both"
    assert report.dataset == f"{files[0]}, {files[1]}"


def test_coco_files_of_the_same_images_count_them_once(pictures: list[Image.Image], tmp_path: Path) -> None:
    """COCO's download has files of instances, keypoints, and captions, of which each lists all images of its split."""
    data = write_coco(tmp_path / "coco", {"train": sound(pictures, 0, 2), "val": sound(pictures, 2, 4)})
    captions = json.loads((data / TRAIN).read_text())
    captions["annotations"] = [{"id": 1, "image_id": 1, "caption": "a photograph"}]
    put_json(data / "annotations/captions_train.json", captions)
    keypoints = json.loads((data / TRAIN).read_text())
    keypoints["annotations"] = [keypoints["annotations"][0], {**keypoints["annotations"][2], "segmentation": SHORT}]
    put_json(data / "annotations/person_keypoints_train.json", keypoints)
    (data / "train/001.jpg").write_bytes(encoded(pictures[1].resize((120, 100))))
    (data / "train/000.jpg").unlink()
    report = audit(data)
    assert sorted((each.code, each.file, each.where) for each in report.findings) == [
        (Code.BAD_RLE, "annotations/person_keypoints_train.json", "train/001.jpg, mask 20"),
        (Code.JPEG_SIZE, TRAIN, "train/001.jpg"),
        (Code.MISSING_FILE, TRAIN, "train/000.jpg"),
    ]
    assert (report.checked.images, report.checked.masks) == (4, 8)
    assert report.statistics is not None
    assert report.statistics.images == 4
    assert [note.partition(":")[0] for note in report.notes[1:]] == [
        "annotations/captions_train.json",
        "annotations/person_keypoints_train.json",
    ]
    assert "2 images of an earlier file" in report.notes[1]


def test_a_coco_file_without_any_mask_is_one_of_boxes(pictures: list[Image.Image], tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco", {"train": sound(pictures, 0, 2)})
    boxes = json.loads((data / TRAIN).read_text())
    for annotation in boxes["annotations"]:
        annotation["segmentation"] = []
    put_json(data / TRAIN, boxes)
    report = audit(data)
    assert (report.findings.counts, report.checked.masks, report.checked.boxes) == ({}, 0, 4)


def test_images_without_annotations_are_counted(pictures: list[Image.Image], tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", {"train": sound(pictures, 0, 2)})
    write_yolo(tmp_path / "yolo", {"train": sound(pictures, 0, 2)})
    write_sa1b(tmp_path / "pairs", sound(pictures, 0, 2))
    pairs = write_sa1b(tmp_path / "all", sound(pictures, 2, 4))
    for layout in ("coco", "yolo", "pairs", "tar"):
        data = tmp_path / layout
        data.mkdir(exist_ok=True)
        tar = {path.name: path.read_bytes() for path in pairs.iterdir()} if layout == "tar" else {}
        if tar:
            (data / "all.tar").write_bytes(tar_of(tar))
        assert len(audit(data).notes) == 1, layout
        face = encoded(pictures[5], "PNG")
        if tar:
            (data / "all.tar").write_bytes(tar_of({**tar, "face.PNG": face}))
        else:
            (data / "face.PNG").write_bytes(face)
        why = "that aren't JPEGs" if layout in ("pairs", "tar") else "that the audited files don't list"
        assert audit(data).notes[1] == f"not looked at: 1 image file {why}"


def test_the_license_of_a_yolo_dataset_may_be_beside_its_images(pictures: list[Image.Image], tmp_path: Path) -> None:
    """As in the downloads of Ultralytics, whose YAML files are elsewhere."""
    data = write_yolo(tmp_path / "coco128", {"train": sound(pictures, 0, 1)})
    settings = tmp_path / "coco128.yaml"
    settings.write_text("path: ../coco128\ntrain: images/train\nval: images/train\ntest:\nnames: {0: a, 1: b}\n")
    (data / "data.yaml").unlink()
    assert [each.code for each in audit(settings).findings] == [Code.LICENSE_NOT_ALLOWED]
    (data / "LICENSE").write_text("CC-BY-4.0")
    assert list(audit(settings).findings) == []


def test_metadata_of_sound_pictures(pictures: list[Image.Image], tmp_path: Path) -> None:
    """A turned picture fits both sizes, a thumbnail may be turned, and damaged metadata is no damaged picture."""
    turned = Image.Exif()
    turned[0x0112] = 6
    thumbnail = thumbnail_exif(pictures[2].rotate(90, expand=True))
    damaged = thumbnail[: thumbnail.index(b"\xff\xd8")] + b"no JPEG"
    exifs = (turned.tobytes(), turned.tobytes(), thumbnail, damaged)
    made = [encoded(picture, exif=exif) for picture, exif in zip(pictures, exifs, strict=False)]
    data = write_coco(tmp_path / "coco", {"train": made})
    document(TRAIN, lambda found: found.update(annotations=[]))(data, pictures)
    document(TRAIN, lambda found: found["images"][1].update(width=200, height=240))(data, pictures)
    found = [(each.code, each.file, each.found) for each in audit(data).findings]
    assert found == [
        *((Code.JPEG_METADATA, f"train/00{index}.jpg", "EXIF") for index in range(3)),
        (Code.JPEG_METADATA, "train/003.jpg", "EXIF, EXIF that can't be read"),
    ]


def test_exports_of_a_dataset_have_no_findings(small_dataset: Path, tmp_path: Path) -> None:
    for form in (Format.COCO, Format.YOLO):
        export_dataset(location_of(small_dataset), ExportOptions(form), location_of(tmp_path / form))
    for kind, folder in (
        ("coco", tmp_path / "coco"),
        ("yolo", tmp_path / "yolo"),
        ("sa1b", loosen(small_dataset, tmp_path / "loose")),
    ):
        report = audit(folder)
        assert list(report.findings) == []
        assert (report.kind, report.checked.images) == (kind, 6)
        assert report.checked.masks > 10


@pytest.mark.usefixtures("weights")
def test_faces_are_found_without_a_named_detector(photos: Path, tmp_path: Path) -> None:
    with Image.open(photos / "multiface.jpg") as photo, Image.open(photos / "groceries.jpg") as other:
        data = write_coco(tmp_path / "coco", {"val": [encoded(other), encoded(photo.convert("RGB"))]})
    document(VAL, lambda found: found.update(annotations=[]))(data, [])
    for place, (width, height) in enumerate(((800, 534), (1200, 630))):
        sizes = {"width": width, "height": height}
        document(VAL, lambda found, place=place, sizes=sizes: found["images"][place].update(sizes))(data, [])
    report = audit(data, privacy_sample=None)
    assert {(each.code, each.file) for each in report.findings} == {(Code.STILL_DETECTED, "val/001.jpg")}
    lines = result_lines(report)
    assert "only segmint's own face and plate detectors searched, and they miss some" in lines[0]


def test_what_is_in_none_of_the_layouts_is_refused(pictures: list[Image.Image], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(pictures[0]))
    with pytest.raises(UsageError, match=r"neither dataset\.json, nor images in the layout of COCO"):
        audit(tmp_path)
    (tmp_path / "notes.json").write_text('{"images": 1}')
    with pytest.raises(UsageError, match="because it has no list `images`"):
        audit(tmp_path / "notes.json")
    for name in ("gone.json", "gone.yaml"):
        with pytest.raises(UsageError, match="gone"):
            audit(tmp_path / name)
    with pytest.raises(UsageError, match="only COCO files"):
        audit(tmp_path, more=(location_of(tmp_path / "notes.json"),))
    (tmp_path / "data.yaml").write_text("names: [a]")
    with pytest.raises(UsageError, match="names no images"):
        audit(tmp_path)
    with pytest.raises(UsageError, match="Remove --complete, --strict"):
        audit(tmp_path, complete=True, strict=True)


def test_json_files_that_are_not_cocos_are_named(reports: dict[str, AuditReport]) -> None:
    assert "not checked, because they aren't COCO files: about.json" in reports["coco"].notes
