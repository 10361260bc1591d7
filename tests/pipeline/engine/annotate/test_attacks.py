"""Ways to write what one may not, through the whole application: refused, with the dataset as it was."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from segmint.catalogs.dataset.submissions import MOST_BYTES, read_submissions
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.model.automatic.rle import encode
from segmint.pipeline.engine.annotate.app import ServedView, open_view
from segmint.pipeline.engine.annotate.decoder import Embeddings
from segmint.pipeline.engine.annotate.requests import PROMPT_BYTES, SMALL_BYTES
from tests.support.annotating import ORIGIN, WRITE, Annotators, click, draft, options, saved_files
from tests.support.locations import location_of

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def untouched(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the annotator view that all attacks share that change nothing."""
    folder = tmp_path_factory.mktemp("attacked") / "dataset"
    shutil.copytree(small_dataset, folder)
    return folder


@pytest.fixture(scope="module")
def shared(untouched: Path, embedded_once: None) -> Iterator[ServedView]:
    """The annotator view of that dataset; no embedding is made ahead."""
    with pytest.MonkeyPatch.context() as patch, open_view(location_of(untouched), options()) as annotator_view:
        patch.setattr(Embeddings, "prepare", lambda *_: None)
        yield annotator_view


@pytest.fixture
def outside(shared: ServedView, untouched: Path) -> Iterator[Annotators]:
    """Ann and Bob on the annotator view that is shared; nothing is saved by the end."""
    yield Annotators(shared, "ann", "bob")
    assert not saved_files(untouched)


@pytest.fixture
def team(opened: ServedView) -> Annotators:
    """Ann, who started the server, and Bob."""
    return Annotators(opened, "ann", "bob")


@pytest.fixture
def paired(dataset: Path, unhurried: None) -> Iterator[ServedView]:
    """An annotator view on which every image is for two people."""
    with open_view(location_of(dataset), options(overlap=1.0)) as annotator_view:
        yield annotator_view


def disk(height: int, width: int) -> np.ndarray:
    """A disk in the middle of an image."""
    rows, columns = np.ogrid[:height, :width]
    inside: np.ndarray = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < min(height, width) ** 2 / 16
    return inside


def counts(size: list[int]) -> str:
    """The run lengths of a disk in an image."""
    return encode(disk(*size)).counts


def test_every_write_needs_session_header_and_origin(outside: Annotators) -> None:
    told = outside.who("ann").get("/api/images/1").json()
    body = draft(told, [counts(told["size"])])
    writes = [
        ("POST", "/api/next", {}),
        ("POST", "/api/images/1/embed", {}),
        ("POST", "/api/images/1/predict", {"prompt": {"points": [[5, 5, 1]]}}),
        ("PUT", "/api/images/1/submissions/1", body),
        ("POST", "/api/images/1/release", {}),
        ("POST", "/api/address", {"annotator": "eve"}),
        ("POST", "/api/images/1/assignments/0", {"n": 1, "comment": "x"}),
    ]
    inside = outside.who("ann")
    del inside.headers["x-segmint"], inside.headers["origin"]
    stranger = outside.stranger()
    for method, path, content in writes:
        assert stranger.request(method, path, json=content, headers=WRITE).status_code == 403
        for headers in ({}, {"x-segmint": "1"}, {"origin": ORIGIN}, {**WRITE, "origin": "https://evil.example"}):
            assert inside.request(method, path, json=content, headers=headers).status_code == 403, (path, headers)
        assert inside.request(method, path, json=content, headers={**WRITE, "host": "evil"}).status_code == 421
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/", "/api/session", "/images/1.jpg", "/api/progress", "/assets/index.html", "/api/images/1"):
            assert inside.request(method, path, headers=WRITE).status_code in (404, 405)


def test_only_the_owner_gives_addresses(outside: Annotators) -> None:
    assert outside.who("bob").post("/api/address", json={"annotator": "eve"}).status_code == 403
    ann = outside.who("ann")
    for name in ("", "a\nb", "x" * 101, 5, None):
        assert ann.post("/api/address", json={"annotator": name}).status_code == 400
    given = ann.post("/api/address", json={"annotator": SCRIPT}).json()
    assert outside.stranger().get(given["address"]).status_code == 303
    assert outside.who(SCRIPT).get("/api/session").json()["annotator"] == SCRIPT  # JSON; the page shows it as text


def test_only_the_owner_sees_and_returns_what_others_saved(team: Annotators, dataset: Path) -> None:
    ann, bob = team.who("ann"), team.who("bob")
    for client, image in ((ann, 1), (bob, 2)):
        told = client.get(f"/api/images/{image}").json()
        assert client.put(f"/api/images/{image}/submissions/1", json=draft(told, [])).status_code == 201
    before = saved_files(dataset)
    body = {"n": 1, "comment": "x"}
    for path in ("/api/table", "/api/images/1/assignments/0", "/api/images/2/assignments/0"):
        assert bob.get(path).status_code == team.stranger().get(path).status_code == 403
        assert path == "/api/table" or bob.post(path, json=body).status_code == 403
    odd: list[Any] = [*({}, [], None, {**body, "n": "1"}), *({**body, "comment": each} for each in ("", "a\x00", 5))]
    for each in (*odd, {**body, "comment": "x" * 2001}):
        assert ann.post("/api/images/2/assignments/0", json=each).status_code == 400, each
    for path in ("2/assignments/1", "2/assignments/2", "2/assignments/x", "4/assignments/0"):
        assert ann.get(f"/api/images/{path}").status_code == 400, path
        assert ann.post(f"/api/images/{path}", json=body).status_code == 400, path
    for path in ("show=x", "show=", "start=-1", "start=x", "start=" + "9" * 99):
        assert ann.get(f"/api/table?{path}").status_code == 400, path
    assert saved_files(dataset) == before
    assert ann.post("/api/images/2/assignments/0", json=body).status_code == 200


def test_no_address_leads_elsewhere(outside: Annotators) -> None:
    ann = outside.who("ann")
    told = ann.get("/api/images/1").json()
    body = draft(told, [counts(told["size"])])
    images = ("0", "3", "99", "-1", "1.0", "٣", "..%2f1", "9" * 30, "9" * 300)
    numbers = ("0", "-1", "2", "1e3", "9999999999", "..%2f1", "9" * 300)
    for path in (*(f"{image}/submissions/1" for image in images), *(f"1/submissions/{number}" for number in numbers)):
        answer = ann.put(f"/api/images/{path}", json=body)
        assert answer.status_code in (400, 404), (path, answer.text)


def test_what_is_no_answer_to_this_image_is_refused(team: Annotators, dataset: Path) -> None:
    ann = team.who("ann")
    told = ann.get("/api/images/1").json()
    height, width = told["size"]
    disk_ = counts(told["size"])
    good = draft(told, [disk_])
    mask, old = good["masks"][0], told["masks"][0]
    former = {"id": old["annotation_id"], "counts": old["segmentation"]["counts"]}

    def point(x: float) -> list[dict[str, Any]]:
        return [{"kind": "point", "x": x, "y": 1.0, "label": 1}]

    bad: list[Any] = [
        *(None, [], "x", 5, {}),
        {**good, "image": 2},
        {**good, "assignment": 1},
        {**good, "annotator": "bob"},
        {**good, "size": [1, 1]},
        {**good, "masks": [{**mask, "counts": counts([height + 1, width])}]},
        {**good, "masks": [{**mask, "counts": counts([width, height])[:-1]}]},
        {**good, "masks": [{**mask, "counts": ""}]},
        {**good, "masks": [{**mask, "counts": SCRIPT}]},
        {**good, "masks": [{**mask, "counts": encode(disk(height, width) & False).counts}]},
        {**good, "masks": [{**mask, "source": "automatic"}]},
        {**good, "masks": [{**mask, "label": "a\x00b"}]},
        {**good, "masks": [{**mask, "prompts": point(width + 1)}]},
        {**good, "masks": [{**mask, "seconds": -1}]},
        {**good, "masks": [{**mask, "parent": 20_001}]},  # of another image
        {**good, "deleted": [{**former, "id": 20_000}]},
        {**good, "deleted": [{**former, "id": old["annotation_id"] + 5_000}]},  # which the image does not have
        {**good, "deleted": [{**former, "counts": disk_}]},  # not as it was
        {**good, "deleted": [former, former]},
        {**good, "seconds": "5"},
        {**good, "masks": [mask] * 10_001},
    ]
    for body in bad:
        answer = ann.put("/api/images/1/submissions/1", json=body)
        assert answer.status_code == 400, (answer.status_code, str(body)[:200])
    text = json.dumps(good)
    surrogates = ('{"\\ud800": 1}', text.replace('"masks"', '"\\udfff"'), text.replace("assisted", "\\uDBFF"))
    for broken in (
        *surrogates,
        "{",
        "[" * 100_000,
        text.replace("5.0", "NaN"),
        text.replace("5.0", "1e999"),
        "9" * 5_000,
        "\xff",
    ):
        answer = ann.put("/api/images/1/submissions/1", content=broken.encode("latin-1"))
        assert answer.status_code == 400, broken[:50]
    assert ann.put("/api/images/1/submissions/1", json={**good, "base": "0" * 64}).status_code == 409
    assert not saved_files(dataset)
    assert ann.put("/api/images/1/submissions/1", json={**good, "deleted": [former]}).status_code == 201


def test_odd_prompts_are_refused(outside: Annotators) -> None:
    ann = outside.who("ann")
    height, width = ann.get("/api/images/1").json()["size"]
    prompts: list[Any] = [
        *({}, {"points": []}, {"points": [[1, 1, 0]]}, {"points": [[1, 1]]}, {"points": [[1, 1, 2]]}),
        *({"points": [[width + 1, 1, 1]]}, {"points": [["1", 1, 1]]}, {"points": [[True, 1, 1]]}, {"points": 5}),
        *({"points": [[1e400, 1, 1]]}, {"points": [[10**400, 1, 1]]}, {"points": [[1, 1, 1]] * 1001}),
        *({"box": [1, 1, 0, 5]}, {"box": [1, 1, width, 5]}, {"box": "x"}, {"mask": "x"}, {"mask": ""}, {"mask": 5}),
        *({"text": "cup"}, {"points": [[1, 1, 1]], "text": "cup"}),
        *({"mask": counts([height + 1, width])}, {"points": [[1, 1, 1]], "from": 5}, {"points": [[1, 1, 1]], "x": 1}),
    ]
    for prompt in (*prompts, {"\ud800": 1}, {"points": [[5, 5, 1]], "from": "\udfff"}):
        answer = ann.post("/api/images/1/predict", content=json.dumps({"prompt": prompt}))
        assert answer.status_code == 400, (answer.status_code, str(prompt)[:100])
    for part in ("x", [], None):
        prompt = {"points": [[5, 5, 1]]}
        assert ann.post("/api/images/1/predict", json={"prompt": prompt, "part": part}).status_code == 400
    assert ann.post("/api/next", json={"after": "1"}).status_code == 400
    assert ann.post("/api/next", json={"after": 10**300}).status_code == 400


@pytest.mark.parametrize("told", [True, False], ids=["content-length", "chunked"])
def test_bodies_of_100_mb_are_refused(outside: Annotators, told: bool) -> None:
    piece, sent = b"x" * (1 << 20), []

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            sent.append(1)
            yield piece

    ann = outside.who("ann")
    headers = {"content-length": str(100 << 20)} if told else {}
    for path, method in (
        ("/api/images/1/submissions/1", "PUT"),
        ("/api/images/1/predict", "POST"),
        ("/api/next", "POST"),
    ):
        answer = ann.request(method, path, content=pieces(), headers=headers)
        assert answer.status_code == 413
        most = MOST_BYTES if method == "PUT" else PROMPT_BYTES if "predict" in path else SMALL_BYTES
        assert f"{most:,}" in answer.json()["error"]


def test_a_handle_is_its_annotators_and_its_images(outside: Annotators) -> None:
    ann, bob = outside.who("ann"), outside.who("bob")
    handle = click(ann, 1, (60.5, 60.5, 1))["handle"]
    assert click(bob, 1, (60.5, 60.5, 1), after=handle)["handle_lost"]
    assert click(ann, 2, (60.5, 60.5, 1), after=handle)["handle_lost"]
    assert not click(ann, 1, (60.5, 60.5, 1), after=f"{handle}.2")["handle_lost"]
    for odd in (f"{handle}.3", f"{handle}.-1", f"{handle}.x", "", "../x"):
        assert click(ann, 1, (60.5, 60.5, 1), after=odd)["handle_lost"]


def test_what_was_taken_down_stays_so(team: Annotators, dataset: Path, opened: ServedView) -> None:
    ann = team.who("ann")
    told = ann.get("/api/images/1").json()
    body = draft(told, [counts(told["size"])])
    assert click(ann, 1, (5, 5, 1))["masks"]
    image = RemovedImage(ordinal=0, id=1, image_id=told["image"]["image_id"], uri="x", sha256=None)
    put_tombstone(
        location_of(dataset),
        Tombstone(request=TakedownRequest(ids=("1",)), reason="x", when="2026-11-22T00:00:00Z", images=(image,)),
    )
    assert ann.post("/api/images/1/predict", json={"prompt": {"points": [[5, 5, 1]]}}).status_code == 410
    assert ann.post("/api/next", json={}).json()["image"] == 2
    assert ann.put("/api/images/1/submissions/1", json=body).status_code == 410
    gone = ann.get("/api/images/1")
    assert (gone.status_code, gone.json()["error"]) == (410, "image 1 was taken down")
    assert ann.get("/images/1.jpg").status_code == 410
    assert ann.post("/api/images/1/embed").status_code == 410
    assert ann.post("/api/images/1/predict", json={"prompt": {"points": [[5, 5, 1]]}}).status_code == 410
    assert opened.annotator_view.embeddings.recent.get(1) is None
    assert not saved_files(dataset)
    assert ann.post("/api/next", json={}).json()["image"] == 2


def test_one_wins_and_the_other_sees_it(team: Annotators, dataset: Path) -> None:
    ann, bob = team.who("ann"), team.who("bob")
    told = [client.get("/api/images/1").json() for client in (ann, bob)]
    assert [each["assignment"] for each in told] == [0, 0]
    disk_ = counts(told[0]["size"])
    assert ann.put("/api/images/1/submissions/1", json=draft(told[0], [disk_])).status_code == 201
    lost = bob.put("/api/images/1/submissions/1", json=draft(told[1], []))
    assert lost.status_code == 409
    winner = lost.json()["winner"]
    assert (winner["annotator"], winner["n"], winner["masks"][0]["counts"]) == ("ann", 1, disk_)
    assert bob.put("/api/images/1/submissions/2", json=draft(told[1], [])).status_code == 409  # the assignment is Ann's
    assert bob.put("/api/images/1/submissions/1", json=draft(told[1], [disk_])).status_code == 409  # not the same work
    (kept,) = read_submissions(location_of(dataset), 0)
    assert kept.annotator == "ann"
    assert bob.post("/api/next", json={}).json()["image"] == 2


def test_two_people_have_an_assignment_each(paired: ServedView, dataset: Path) -> None:
    team = Annotators(paired, "ann", "bob", "eve")
    ann, bob, eve = (team.who(name) for name in ("ann", "bob", "eve"))
    given = [client.post("/api/next", json={}).json() for client in (ann, bob, eve)]
    assert [(each["image"], each["assignment"]) for each in given] == [(1, 0), (1, 1), (2, 0)]
    told = [client.get("/api/images/1").json() for client in (ann, bob)]
    assert [each["assignment"] for each in told] == [0, 1]
    disk_ = counts(told[0]["size"])
    for client, each in zip((ann, bob), told, strict=True):
        assert client.put("/api/images/1/submissions/1", json=draft(each, [disk_])).status_code == 201
    assert [(kept.assignment, kept.annotator) for kept in read_submissions(location_of(dataset), 0)] == [
        (0, "ann"),
        (1, "bob"),
    ]
    third = eve.get("/api/images/1").json()
    assert eve.put("/api/images/1/submissions/1", json=draft(third, [])).status_code == 409
    assert eve.put("/api/images/1/submissions/2", json=draft(third, [])).status_code == 409
    assert ann.post("/api/next", json={}).json()["image"] == 2  # and not the other assignment of 1
    assert ann.get("/api/progress").json()["agreement"] == {"images": 1, "pairs": 1, "mean_iou": 1.0}
    assert len(saved_files(dataset)) == 2


def test_texts_are_data(team: Annotators, dataset: Path) -> None:
    ann: TestClient = team.who("ann")
    told = ann.get("/api/images/1").json()
    body = draft(told, [counts(told["size"])])
    body["masks"][0]["label"] = SCRIPT
    assert ann.put("/api/images/1/submissions/1", json=body).status_code == 201
    reopened = ann.get("/api/images/1")
    assert reopened.headers["content-type"] == "application/json"
    assert reopened.headers["x-content-type-options"] == "nosniff"
    assert reopened.json()["submission"]["masks"][0]["label"] == SCRIPT
