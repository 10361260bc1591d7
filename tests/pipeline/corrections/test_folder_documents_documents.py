"""JSON files of masks: what is read from them, and what an edit keeps."""

import hashlib
import json
from typing import Any

import pytest

from segmint.operators.rows import AUTOMATIC
from segmint.pipeline.corrections.folder_documents import BadFileError, edit_document, new_document, read_masks
from segmint.pipeline.masks.images import Photograph
from segmint.pipeline.masks.outputs import PhotographTask
from tests.support.described_rows import rectangle_mask

HEIGHT, WIDTH = 30, 40


def annotation(number: int, *box: int, **added: Any) -> dict[str, Any]:
    mask = rectangle_mask(HEIGHT, WIDTH, *box)
    keys = ("segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords")
    return {"id": number, **{key: mask[key] for key in keys}, **added}


def document(*annotations: dict[str, Any], **added: Any) -> dict[str, Any]:
    image = {"image_id": 7, "width": WIDTH, "height": HEIGHT, "file_name": "a.jpg"}
    return {"image": image, "annotations": list(annotations), **added}


def read(value: Any) -> Any:
    data = json.dumps(value).encode()
    return read_masks(data, "a.masks.json", hashlib.sha256(data).hexdigest())


def test_rows_have_scores_labels_outputs_and_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = annotation(70_001, 5, 5, 9, 9, predicted_iou=None, stability_score=None, label="cup")
    decode = json.JSONDecoder.decode
    texts: list[str] = []

    def counted(self: json.JSONDecoder, text: str) -> Any:
        texts.append(text)
        return decode(self, text)

    monkeypatch.setattr(json.JSONDecoder, "decode", counted)
    found = read(document(annotation(70_000, 1, 1, 5, 5), drawn, outputs=[2, None]))
    assert len(texts) == 1, "a file is parsed once"
    assert found.size == (HEIGHT, WIDTH)
    automatic, by_hand = found.masks
    assert (automatic["source"], automatic["predicted_iou"], automatic["output"], automatic["label"]) == (
        AUTOMATIC,
        0.93,
        2,
        None,
    )
    assert (by_hand["source"], by_hand["predicted_iou"], by_hand["label"]) == ("imported", None, "cup")


def test_an_edit_keeps_everything_that_it_does_not_change() -> None:
    """Unknown keys, the order, and other programs' numbers and ids stay; a new mask gets an id that none has had."""
    first = annotation(3, 1, 1, 5, 5, mine={"x": [1]})
    gone = annotation(70_400, 2, 2, 9, 9)
    last = annotation(5, 3, 3, 8, 8, label="cup", area=1e3)
    value = document(first, gone, last, made_from={"a": 1}, outputs=[0, 1, 2], containers=[70_400, None, 3])
    rows = [{**each, "label": each["label"]} for each in read(value).masks]
    new = {**rectangle_mask(HEIGHT, WIDTH, 20, 20, 25, 30), "label": "dog", "predicted_iou": None}
    edited = json.loads(edit_document(value, [rows[0], rows[2], new]))
    assert {**edited, "annotations": edited["annotations"][:2]} == {
        **value,
        "annotations": [first, last],
        "outputs": [0, 2, None],
        "containers": [None, 3, None],
        "corrected": True,
    }
    added = edited["annotations"][2]
    assert (added["id"], added["label"], added["area"], added["predicted_iou"]) == (70_401, "dog", 50, None)
    assert edit_document(edited, [rows[0], rows[2], new]) == edit_document(value, [rows[0], rows[2], new])


def test_labels_change_and_go() -> None:
    value = document(annotation(3, 1, 1, 5, 5, label="cup"), annotation(4, 2, 2, 9, 9))
    cup, other = read(value).masks
    edited = json.loads(edit_document(value, [{**cup, "label": None}, {**other, "label": "saucer"}]))
    assert [each.get("label") for each in edited["annotations"]] == [None, "saucer"]
    assert "label" not in edited["annotations"][0]


def test_a_new_document_has_sa1bs_ids() -> None:
    mask = {**rectangle_mask(HEIGHT, WIDTH, 1, 1, 5, 5), "label": None}
    task = PhotographTask(Photograph("photos/a.jpg", "a.jpg"), "photos/a.masks.json", 7)
    edited = json.loads(edit_document(new_document(task, (HEIGHT, WIDTH)), [mask]))
    assert edited["image"] == document()["image"]
    assert edited["annotations"][0]["id"] == 70_000
    assert read(edited).masks[0]["segmentation"] == mask["segmentation"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{", "not SA-1B's JSON"),
        (b'{"image": {"width": 40, "height": 30}, "annotations": [{"segmentation": [[1, 2]]}]}', "run lengths"),
        (b'{"image": {"width": 0, "height": 30}, "annotations": []}', "no width and height"),
        (json.dumps(document({**annotation(3, 1, 1, 5, 5), "segmentation": {"size": [3, 4], "counts": "0<"}})), "3"),
    ],
)
def test_a_bad_file_is_named(data: Any, told: str) -> None:
    raw = data.encode() if isinstance(data, str) else data
    with pytest.raises(BadFileError, match=rf"^a\.masks\.json: .*{told}"):
        read_masks(raw, "a.masks.json", "0" * 64)


def test_values_of_other_programs_are_no_outputs_and_no_labels_that_cannot_be_stored() -> None:
    masks = [annotation(3, 1, 1, 5, 5, label="\ud800cup"), annotation(4, 2, 2, 9, 9), annotation(5, 3, 3, 8, 8)]
    found = read(document(*masks, outputs=[[0], True, 2])).masks
    assert [each["output"] for each in found] == [None, None, 2]
    assert [each["label"] for each in found] == ["?cup", None, None]


def test_an_edit_keeps_ids_labels_and_lists_of_another_form() -> None:
    """Keys with the names of segmint's lists may be another program's."""
    value = document(annotation(3, 1, 1, 5, 5, label=""), outputs={"a": 1}, containers=[1, 2])
    value["annotations"][0]["id"] = ["x"]
    assert json.loads(edit_document(value, read(value).masks)) == value
    strange = document(annotation(3, 1, 1, 5, 5), containers=[["x"]])
    assert json.loads(edit_document(strange, read(strange).masks)) == strange
