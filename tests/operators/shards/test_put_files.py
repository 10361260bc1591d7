"""A shard's files: SA-1B's layout, and bytes that depend on the rows alone."""

import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from segmint.operators.rows import IMAGES, MASKS, REJECTS
from segmint.operators.shards.put import annotation_id, annotations_json, build_shard_files
from tests.support.described_rows import accepted_row, described, rejected_row

ROWS = [accepted_row(0), rejected_row(1), accepted_row(2, masks=0), accepted_row(3, masks=3)]


def test_the_tar_holds_pairs_in_order_with_neutral_headers() -> None:
    files = build_shard_files(described(ROWS).to_pylist(), with_images=True)
    with tarfile.open(fileobj=io.BytesIO(files.tar)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            name for id in (1, 3, 4) for name in (f"sa_{id}.jpg", f"sa_{id}.json")
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        assert archive.extractfile("sa_1.jpg").read() == ROWS[0]["release"]


def test_the_json_has_the_keys_of_sa_1b_in_their_order() -> None:
    content = json.loads(annotations_json(4, "sa_4.jpg", (30, 40), described(ROWS).to_pylist()[3]["masks"]))
    assert content["image"] == {"image_id": 4, "width": 40, "height": 30, "file_name": "sa_4.jpg"}
    assert [annotation["id"] for annotation in content["annotations"]] == [40_000, 40_001, 40_002]
    assert list(content["annotations"][0]) == [
        "id",
        "segmentation",
        "bbox",
        "area",
        "predicted_iou",
        "stability_score",
        "crop_box",
        "point_coords",
    ]
    assert all(isinstance(value, float) for value in content["annotations"][0]["bbox"])
    assert coco_mask.decode(content["annotations"][0]["segmentation"]).sum() == content["annotations"][0]["area"]


def test_the_json_has_the_masks_outputs_beside_them_if_any_is_known() -> None:
    masks = described(ROWS).to_pylist()[3]["masks"]
    without = annotations_json(4, "sa_4.jpg", (30, 40), masks)
    assert list(json.loads(without)) == ["image", "annotations"]
    outputs = [{**mask, "output": output} for mask, output in zip(masks, (2, None, 0), strict=True)]
    document = json.loads(annotations_json(4, "sa_4.jpg", (30, 40), outputs))
    assert document == {**json.loads(without), "outputs": [2, None, 0]}


def test_every_row_is_counted_once() -> None:
    files = build_shard_files(described(ROWS).to_pylist(), with_images=True)
    assert files.counts == {"rows": 4, "images": 3, "masks": 5, "rejected": 1, "rejected:not_found": 1}
    images, masks, rejects = (pq.read_table(io.BytesIO(data)) for data in (files.images, files.masks, files.rejects))
    assert (images.schema, masks.schema, rejects.schema) == (IMAGES, MASKS, REJECTS)
    assert images.column("ordinal").to_pylist() == [0, 2, 3]
    assert images.column("masks").to_pylist() == [2, 0, 3]
    assert masks.column("annotation_id").to_pylist() == [10_000, 10_001, 40_000, 40_001, 40_002]
    assert rejects.to_pylist()[0]["reason"] == "not_found"


def test_the_bytes_do_not_depend_on_how_rows_came_in_blocks() -> None:
    import pyarrow as pa

    whole = described(ROWS)
    in_pieces = pa.concat_tables([described(ROWS[:1]), described(ROWS[1:])])
    assert build_shard_files(whole.to_pylist(), with_images=True) == build_shard_files(
        in_pieces.to_pylist(), with_images=True
    )


def test_a_dataset_without_images_leaves_them_out() -> None:
    files = build_shard_files(described(ROWS).to_pylist(), with_images=False)
    with tarfile.open(fileobj=io.BytesIO(files.tar)) as archive:
        assert archive.getnames() == ["sa_1.json", "sa_3.json", "sa_4.json"]


def test_an_empty_shard_has_all_four_files() -> None:
    files = build_shard_files(described([rejected_row(0)]).to_pylist(), with_images=True)
    with tarfile.open(fileobj=io.BytesIO(files.tar)) as archive:
        assert archive.getnames() == []
    assert pq.read_table(io.BytesIO(files.masks)).schema == MASKS


def test_ids_never_collide() -> None:
    assert annotation_id(1, 9_999) + 1 == annotation_id(2, 0)
    with pytest.raises(ValueError, match="10000"):
        annotation_id(1, 10_000)
