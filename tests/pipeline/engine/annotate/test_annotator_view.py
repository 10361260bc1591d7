"""What the annotator view does with answers after they were saved: merges and other changes come while people work."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from segmint.pipeline.corrections.import_merge import ImportMode
from segmint.pipeline.corrections.imports import ImportFormat, ImportRequest, import_masks
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.engine.annotate.app import open_view
from tests.support.annotating import Annotators, draft, options
from tests.support.described_rows import rectangle_mask
from tests.support.locations import location_of


@pytest.fixture
def team(dataset: Path, unhurried: None) -> Iterator[Annotators]:
    """Ann and Bo at the annotator view of a copy of the small real dataset, all of whose images two people annotate."""
    with open_view(location_of(dataset), options(overlap=1.0)) as opened:
        yield Annotators(opened, "ann", "bo")


def rectangle_counts(size: list[int], box: tuple[int, int, int, int]) -> str:
    return str(rectangle_mask(*size, *box)["segmentation"]["counts"])


def told(client: TestClient, image: int) -> Any:
    return client.get(f"/api/images/{image}").json()


def save(client: TestClient, image: int, n: int, counts: list[str], opened: Any = None, **fields: Any) -> Any:
    body = draft(opened or told(client, image), counts, **fields)
    return client.put(f"/api/images/{image}/submissions/{n}", json=body)


def test_answers_go_on_through_a_merge_and_an_import(team: Annotators, dataset: Path) -> None:
    """Image 1 is merged while Bo has it open, 2 without a change, 4 with nobody at it; 5 gets other masks by a file."""
    location = location_of(dataset)
    ann, bo = team.who("ann"), team.who("bo")
    size = told(ann, 1)["size"]
    corner, middle = (rectangle_counts(size, box) for box in ((0, 0, 40, 50), (50, 60, 90, 110)))
    assert save(ann, 1, 1, [corner]).status_code == 201
    assert save(ann, 2, 1, []).status_code == 201
    assert save(ann, 4, 1, [rectangle_counts(told(ann, 4)["size"], (0, 0, 40, 50))]).status_code == 201
    open_at_bos = {image: told(bo, image) for image in (1, 2)}
    assert [each["assignment"] for each in open_at_bos.values()] == [1, 1]
    assert bo.post("/api/next", json={"after": 2}).json()["image"] == 4
    merge_submissions(location)

    # Of image 2 the state is what it was: Bo's is still one to compare. The others have one assignment from now on.
    assert save(bo, 2, 1, [], open_at_bos[2]).status_code == 201
    assert list(given(bo)) == [5, 6, 7]
    lost = save(bo, 1, 1, [middle], open_at_bos[1])
    assert (lost.status_code, lost.json()["winner"]) == (409, None)
    again = told(bo, 1)
    assert (again["assignment"], again["n"], again["submission"], again["state"]) == (0, 1, None, "merged")
    assert save(bo, 1, 2, [middle], again).status_code == 201
    refused = save(ann, 1, 3, [corner])
    assert (refused.status_code, refused.json()["winner"]["annotator"]) == (409, "bo")
    done = merge_submissions(location)
    assert (done.listed.images, done.listed.uncompared, done.listed.masks["added"]) == (1, 0, 1)

    # What was saved before the file came is on the page as far as it fits, and saved again with the next answer.
    opened = told(ann, 5)
    gone, kept = opened["masks"][:2]
    corrected = {"counts": corner, "source": "corrected", "seconds": 3.0, "parent": kept["annotation_id"]}
    unfit = {"counts": middle, "source": "corrected", "seconds": 3.0, "parent": gone["annotation_id"]}
    former = [{"id": mask["annotation_id"], "counts": mask["segmentation"]["counts"]} for mask in (gone, kept)]
    body = {**draft(opened, [rectangle_counts(opened["size"], (100, 0, 120, 30))]), "replaced": former}
    body["masks"] += [corrected, unfit]
    assert ann.put("/api/images/5/submissions/1", json=body).status_code == 201
    replace_one(dataset, opened, gone["annotation_id"])
    now = told(ann, 5)
    assert (now["state"], now["n"], now["base"] == opened["base"]) == ("open", 1, False)
    submission = now["submission"]
    assert (submission["base"], submission["seconds"]) == (now["base"], 0.0)
    assert [mask["counts"] for mask in submission["masks"]] == [body["masks"][0]["counts"], corner]
    assert submission["replaced"] == former[1:]
    fields = {name: submission[name] for name in ("masks", "replaced", "deleted", "base", "complete")}
    assert ann.put("/api/images/5/submissions/2", json={**fields, "seconds": 4.0}).status_code == 201
    listed = merge_submissions(location).listed
    assert (listed.superseded, listed.masks["added"], listed.masks["corrected"], listed.masks["unfit"]) == (1, 1, 1, 0)
    assert told(ann, 5)["image"]["seconds"] == 5.0 + 4.0


def given(client: TestClient) -> Iterator[int]:
    """The images that an annotator is given, one after another."""
    asked: dict[str, int] = {}
    while (image := client.post("/api/next", json=asked).json()["image"]) is not None and image != asked.get("first"):
        yield image
        if image == 7:
            return
        asked = {"after": image}


def replace_one(dataset: Path, opened: Any, gone: int) -> None:
    """Import the masks of an image as they are, but for one."""
    image = opened["image"]["id"]
    height, width = opened["size"]
    annotations = [
        {
            "id": mask["annotation_id"],
            "image_id": image,
            "category_id": 1,
            "segmentation": {"size": opened["size"], "counts": mask["segmentation"]["counts"]},
        }
        for mask in opened["masks"]
        if mask["annotation_id"] != gone
    ]
    document = {
        "images": [{"id": image, "file_name": f"sa_{image}.jpg", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": annotations,
    }
    file = dataset.parent / "masks.json"
    file.write_text(json.dumps(document))
    import_masks(location_of(dataset), ImportRequest(location_of(file), ImportFormat.COCO, ImportMode.REPLACE))
