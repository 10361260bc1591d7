"""Opening a dataset for the viewer, on a disk and on S3, and what is left behind."""

import socket
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.audit import audit_dataset
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.audit.result import to_json
from segmint.pipeline.quality.view.app import SessionKeys, make_app, open_viewer, serve
from tests.support.bombs import jpeg_saying
from tests.support.everything import upload
from tests.support.foreign_data import Document, loosen, pack
from tests.support.locations import location_of

KINDS = (("api/images", ""), ("images", ".jpg"), ("thumbnails", ".jpg"))


def client_of(viewer) -> TestClient:
    access = SessionKeys(8123)
    client = TestClient(make_app(viewer, access), base_url="http://127.0.0.1:8123")
    assert client.get(access.address()).status_code == 200
    return client


@pytest.mark.s3
def test_from_s3_as_from_a_disk(small_dataset: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/small"
    upload(small_dataset, Location(storage, uri))
    with open_viewer(location_of(small_dataset)) as local, open_viewer(Location(storage, uri)) as remote:
        ours, theirs = client_of(local), client_of(remote)
        assert theirs.get("/api/dataset").json() == {**ours.get("/api/dataset").json(), "uri": uri}
        paths = ["/api/images?masks_min=1", "/api/images?sort=coverage&descending=1", "/api/images/5/neighbors"]
        paths += [f"/{kind}/{image}{end}" for image in (7, 1, 5) for kind, end in KINDS]
        for path in paths:
            answer = theirs.get(path)
            assert answer.status_code == 200, answer.text
            assert answer.content == ours.get(path).content, path


def test_nothing_is_left_behind(small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_viewer(location_of(small_dataset)):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_no_dataset_and_no_audit_are_told(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a dataset"), open_viewer(location_of(tmp_path)):
        pass
    absent = location_of(tmp_path / "a")
    with pytest.raises(UsageError, match="a does not exist"), open_viewer(location_of(small_dataset), absent):
        pass


def test_an_audit_of_another_version_is_refused(dataset: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.json"
    report = audit_integrity(location_of(dataset))
    audit.write_text(to_json(report))
    with open_viewer(location_of(dataset), location_of(audit)) as viewer:
        assert (viewer.version, viewer.note) == (report.version, None)
        assert client_of(viewer).get("/api/dataset").json()["digest"] == str(report.version)
    (dataset / "tombstones").mkdir()
    (dataset / "tombstones" / "0.json").write_text("{}")
    with pytest.raises(UsageError, match="is the audit of another version"):
        open_viewer(location_of(dataset), location_of(audit)).__enter__()


def test_a_port_that_is_taken_is_told(small_dataset: Path) -> None:
    with socket.socket() as taken, open_viewer(location_of(small_dataset)) as viewer:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: cannot listen on 127.0.0.1:{port}"):
            serve(viewer, port, open_browser=False, on_ready=lambda _: pytest.fail("nothing can be opened"))


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "tars"])
def test_data_that_segmint_did_not_write(small_dataset: Path, tmp_path: Path, packed: bool) -> None:
    folder = loosen(small_dataset, tmp_path / "loose")
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.jpg")}
    folder = pack(folder, tmp_path / "packed") if packed else folder
    with open_viewer(location_of(folder)) as foreign, open_viewer(location_of(small_dataset)) as local:
        ours, theirs = client_of(local), client_of(foreign)
        told = theirs.get("/api/dataset").json()
        assert (told["name"], told["kind"], told["images"]) == (folder.name, "sa1b", 6)
        assert told["masks"] == ours.get("/api/dataset").json()["masks"]
        for image in (1, 5, 7):
            assert theirs.get(f"/images/{image}.jpg").content == pictures[f"sa_{image}.jpg"]
            assert theirs.get(f"/thumbnails/{image}.jpg").content == ours.get(f"/thumbnails/{image}.jpg").content
            masks = [client.get(f"/api/images/{image}").json()["masks"] for client in (ours, theirs)]
            assert [mask["segmentation"] for mask in masks[0]] == [mask["segmentation"] for mask in masks[1]]


def test_findings_in_data_that_segmint_did_not_write_stand_at_their_image(small_dataset: Path, tmp_path: Path) -> None:
    def change(document: Document) -> None:
        for annotation in document["annotations"]:
            annotation["id"] += 10_000  # which would be a mask of the image of the next number, were it ours
        if document["image"]["image_id"] == 4:
            document["annotations"][0]["stability_score"] = 7.0

    folder = loosen(small_dataset, tmp_path / "loose", change)
    audit = tmp_path / "audit.json"
    audit.write_text(to_json(audit_dataset(location_of(folder))))
    with open_viewer(location_of(folder), location_of(audit)) as viewer:
        client = client_of(viewer)
        told = client.get("/api/images/4").json()
        (finding,) = told["findings"]
        assert (finding["code"], finding["mask"]) == ("score_range", told["masks"][0]["annotation_id"])
        assert [image["id"] for image in client.get("/api/images?finding=any").json()["images"]] == [4]


def test_a_picture_that_is_not_beside_its_annotations_is_told(small_dataset: Path, tmp_path: Path) -> None:
    folder = loosen(small_dataset, tmp_path / "loose")
    (folder / "sa_5.jpg").unlink()
    (folder / "sa_4.jpg").write_bytes(jpeg_saying(65_500, 65_500))
    with open_viewer(location_of(folder)) as viewer:
        client = client_of(viewer)
        answer = client.get("/images/5.jpg")
        assert answer.status_code == 404
        assert "no JPEG next to" in answer.json()["error"]
        answer = client.get("/thumbnails/4.jpg")
        assert answer.status_code == 404
        assert "can't decode this image: 65500 x 65500 is 4,290,250,000 pixels" in answer.json()["error"]
        assert client.get("/thumbnails/1.jpg").status_code == 200


def test_nothing_of_an_image_that_is_taken_down_meanwhile_is_shown(dataset: Path) -> None:
    paths = [f"/{kind}/2{end}" for kind, end in (*KINDS, ("api/images", "/masks"))]
    with open_viewer(location_of(dataset)) as viewer:
        client = client_of(viewer)
        viewer.pictures.look_s = 60.0  # the last look still holds after the takedown
        for path in paths:
            assert client.get(path).status_code == 200
        (named,) = [row for row in client.get("/api/images").json()["images"] if row["id"] == 2]
        takedown(
            location_of(dataset),
            TakedownRequest(ids=(named["image_id"],)),
            "asked for",
            datetime(2026, 3, 4, tzinfo=UTC),
        )
        # At first the tables can no longer be read, and the reason is what is told.
        for path in paths:
            answer = client.get(path)
            assert answer.status_code == 404, path
            assert "Restart the viewer" in answer.json()["error"]
        rows = {row["id"]: row for row in client.get("/api/images").json()["images"]}
        assert {row["image_id"] for image, row in rows.items() if image < 4} == {None}
        assert rows[4]["image_id"] == "image-3"
        assert client.get("/thumbnails/4.jpg").status_code == 200
        assert client.get("/api/images/4").json()["image"]["image_id"] == "image-3"
