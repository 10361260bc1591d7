"""Boxes of a file become one mask each, as `segmint.PromptedMasks` makes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from segmint.infra.assets import resolve
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.segmenter.prompted import PromptedMasks
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.folder_documents import read_masks
from segmint.pipeline.masks.images import PhotographBoxes, read_boxes

pytestmark = pytest.mark.usefixtures("embedded_once", "one_thread")

BOXES = [[20.0, 30.0, 60.0, 40.0], [5.0, 5.0, 100.0, 80.0]]
NOTHING: dict[str, Any] = {"width": 1.0, "height": 1.0, "prompts": []}


@pytest.fixture
def folder(tmp_path: Path, coffee: NDArray[np.uint8]) -> Path:
    """Two photographs of 120 x 100 pixels, of which one is turned by its metadata, and a wider one."""
    photos = tmp_path / "photos"
    photos.mkdir()
    picture = Image.fromarray(coffee).resize((120, 100))
    picture.save(photos / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(photos / "b.png", exif=turned)
    picture.resize((180, 100)).save(photos / "c.png")
    return photos


def coco_file(path: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    names = ("set/a.png", "b.png", "c.png", "elsewhere.png")
    images = [{"id": id, "file_name": name, "width": 120, "height": 100} for id, name in enumerate(names, 1)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cup"}]}
    path.write_text(json.dumps({**document, **changes}))
    return path


def annotation(image: int, box: list[float], **changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image, "category_id": 7, "bbox": box, **changes}


def run(folder: Path, output: Path, *options: object) -> tuple[int, str]:
    arguments = ["masks", str(folder), "-o", str(output), "--weights", "mobile_sam", "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, *map(str, options)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def annotations_of(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_bytes())["annotations"]
    return found


@pytest.mark.usefixtures("weights")
def test_each_box_gets_the_mask_of_the_segmenter_with_its_label(folder: Path, tmp_path: Path) -> None:
    (folder / "c.png").unlink()
    given = [annotation(1, BOXES[0], score=0.5), annotation(1, BOXES[1]), annotation(1, BOXES[1], iscrowd=1)]
    file, output = coco_file(tmp_path / "boxes.json", *given), tmp_path / "out"
    code, told = run(folder, output, "--boxes", file, "--overlay")
    assert code == 0, told
    assert "no photograph has the name of c.png, elsewhere.png" in told
    assert "boxes.json: 1 crowd" in told
    segmenter = PromptedMasks(str(resolve("mobile_sam")), device="cpu")
    pixels = np.asarray(Image.open(folder / "a.png"))
    nothing = dict.fromkeys(("points", "point_labels", "label", "score"))
    expected = segmenter.find(segmenter.predictor.embed(pixels), [{**nothing, "box": box} for box in BOXES])
    found = annotations_of(output / "a.json")
    assert len(found) == 2
    for mask, other, box in zip(found, expected, BOXES, strict=True):
        assert np.array_equal(coco.decode(mask["segmentation"]).astype(bool), other.pixels)
        assert mask["predicted_iou"] == other.score
        assert 0 < mask["stability_score"] <= 1
        assert mask["prompts"] == [{"kind": "box", **dict(zip("xywh", box, strict=True))}]
        assert (mask["label"], mask["point_coords"]) == ("cup", [])
    assert [mask.get("label_score") for mask in found] == [0.5, None]
    assert annotations_of(output / "b.json") == []
    read = read_masks((output / "a.json").read_bytes(), "a.json", "0" * 64)
    assert [(mask["label"], mask["label_source"]) for mask in read.masks] == [("cup", "import")] * 2
    assert (output / "a.overlay.png").exists()
    code, told = run(folder, output, "--boxes", file)
    assert (code, "2 already made" in told) == (0, True), told
    code, told = run(folder, output, "--boxes", coco_file(file, given[0]))
    assert code == 2
    assert "was started with different settings" in told


@pytest.mark.usefixtures("weights")
def test_labels_of_yolo_give_the_same_masks_as_a_coco_file(folder: Path, tmp_path: Path) -> None:
    (folder / "c.png").unlink()
    one, other = tmp_path / "one", tmp_path / "other"
    box = [30.0, 25.0, 60.0, 50.0]
    file = coco_file(tmp_path / "boxes.json", annotation(1, box), annotation(2, box))
    assert run(folder, one, "--boxes", file)[0] == 0
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in "ab":
        (labels / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [cup]")
    code, told = run(folder, other, "--boxes", labels, "--names", tmp_path / "data.yaml")
    assert code == 0, told
    for name in ("a.json", "b.json"):
        assert len(annotations_of(one / name)) == 1
        assert annotations_of(one / name) == annotations_of(other / name)


@pytest.mark.usefixtures("weights")
def test_boxes_that_do_not_fit_are_named_and_stop_no_other(folder: Path, tmp_path: Path) -> None:
    given = [annotation(1, BOXES[0]), annotation(1, [90.0, 5.0, 60.0, 20.0]), annotation(3, BOXES[0])]
    code, told = run(folder, tmp_path / "out", "--boxes", coco_file(tmp_path / "boxes.json", *given), "--json")
    assert code == 1
    results = {result["image"].rpartition("/")[2]: result for result in json.loads(told[told.index("[\n") :])}
    assert results["a.png"]["outcome"] == results["b.png"]["outcome"] == "made"
    assert results["a.png"]["masks"] == 1
    assert results["c.png"]["outcome"] == "refused"
    assert results["c.png"]["error"].startswith("prompts_misfit: the prompts' frame is 120 x 100")
    assert results["boxes.json"]["error"].startswith("annotation number 2: ")
    (folder / "c.png").unlink()
    code, told = run(folder, tmp_path / "other", "--boxes", tmp_path / "boxes.json")
    assert code == 3
    assert "boxes.json: annotation number 2: " in told


def test_an_image_is_found_by_the_end_of_its_name() -> None:
    def by_place(places: list[str], *names: str, with_endings: bool = True) -> tuple[list[str], list[str]]:
        found, left_out = PhotographBoxes("f", tuple((name, NOTHING) for name in names), with_endings).by_place(places)
        return sorted(found), left_out

    assert by_place(["a.jpg", "x/b.jpg"], "val/a.jpg", "b.jpg") == (["a.jpg", "x/b.jpg"], [])
    assert by_place(["x/a.jpg"], "./x/a.jpg", "y/a.jpg") == (["x/a.jpg"], ["f: no photograph has the name of y/a.jpg"])
    assert by_place(["x/a.jpg"], "x\\a", with_endings=False) == (["x/a.jpg"], [])
    for places, names in ((["x/a.jpg", "y/a.jpg"], ["a.jpg"]), (["a.jpg"], ["x/a.jpg", "y/a.jpg"])):
        with pytest.raises(UsageError, match="expected names that end differently"):
            by_place(places, *names)
    with pytest.raises(UsageError, match="f has no image with the name of one of the 1 photographs"):
        by_place(["a.jpg"], "a.png")


def test_options_and_files_that_make_no_sense_are_refused(folder: Path, tmp_path: Path) -> None:
    file, output = coco_file(tmp_path / "boxes.json", annotation(1, BOXES[0])), tmp_path / "out"
    for options in (["--boxes", file, "--box", "1,2,3,4"], ["--boxes", file, "--all-masks"], ["--names", file]):
        code, told = run(folder, output, *options)
        assert (code, "--boxes makes one mask for each box of a file" in told) == (2, True), told
    for options, said in (
        (["--boxes", file, "--set", "points_per_side=4"], "has no effect on prompts"),
        (["--boxes", tmp_path / "absent.json"], "expected a COCO file, or a folder of YOLO labels with --names"),
        (["--boxes", folder], "expected a COCO file, or a folder of YOLO labels with --names"),
        (["--boxes", folder, "--names", file], "has no `names`"),
    ):
        code, told = run(folder, output, *options)
        assert (code, said in told) == (2, True), told
    assert not output.exists()
    assert read_boxes(Storage(), str(file), None).sha256 != PhotographBoxes("f", (), True).sha256
