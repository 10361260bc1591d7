"""The viewer's answers on a small real dataset, against its files read by other means."""

import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from segmint.pipeline.quality.view.app import ASSETS, SessionKeys, make_app, open_viewer
from segmint.pipeline.serving import responses
from tests.support.locations import location_of
from tests.support.viewed import HOSTILE, image_rows, mask_rows, reject_rows, vary, write_audit

PORT = 8123
PAGE_FILES = [*ASSETS.iterdir(), *(path for path in responses.ASSETS.iterdir() if path.suffix != ".j2")]
NUMBERED = (
    "/api/images/{}",
    "/api/images/{}/masks",
    "/api/images/{}/neighbors",
    "/images/{}.jpg",
    "/thumbnails/{}.jpg",
)


@pytest.fixture(scope="module")
def looked_at(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small real dataset whose rows differ: images 1, 2, 4 to 7."""
    folder = tmp_path_factory.mktemp("looked_at")
    shutil.copytree(small_dataset, folder / "dataset")
    return vary(folder / "dataset")


@pytest.fixture(scope="module")
def client(looked_at: Path) -> Iterator[TestClient]:
    """A browser that has entered."""
    findings = [{"where": "id 4"}, {"where": "mask 40000", "found": HOSTILE}, {"where": "row 1"}]
    audit = write_audit(looked_at.parent / "audit.json", findings)
    with open_viewer(location_of(looked_at), location_of(audit)) as viewer:
        access = SessionKeys(PORT)
        client = TestClient(make_app(viewer, access), base_url=f"http://127.0.0.1:{PORT}")
        assert client.get(access.address()).status_code == 200
        yield client


def ids(client: TestClient, **asked: str) -> list[int]:
    answer = client.get("/api/images", params=asked)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert page["total"] == len(page["images"])
    return [image["id"] for image in page["images"]]


def test_the_head_says_what_there_is(client: TestClient, looked_at: Path) -> None:
    rows = image_rows(looked_at)
    told = client.get("/api/dataset").json()
    assert (told["name"], told["kind"], told["images"]) == ("small", "segmint", len(rows))
    assert told["masks"] == sum(row["masks"] for row in rows)
    assert told["findings_elsewhere"] == 1
    countries = {choice["value"]: choice["images"] for choice in told["choices"]["country"]}
    assert countries == {None: 4, "FR": 2, "DE": 1} or countries == {None: 3, "FR": 2, "DE": 1}
    assert sum(countries.values()) == len(rows)


def test_filters_change_the_rows(client: TestClient, looked_at: Path) -> None:
    rows = image_rows(looked_at)
    assert ids(client) == [row["id"] for row in rows] == [1, 2, 4, 5, 6, 7]
    assert ids(client, country="FR") == [1, 5]
    assert ids(client, unknown="country") == [row["id"] for row in rows if row["country"] is None]
    assert ids(client, provider=HOSTILE) == ids(client, text="<SCRIPT>") == [2]
    assert ids(client, finding="any") == [4]
    middle = sorted(row["masks"] for row in rows)[3]
    assert ids(client, masks_min=str(middle)) == [row["id"] for row in rows if row["masks"] >= middle]
    falling = sorted(rows, key=lambda row: (-row["statistics"]["coverage"], row["id"]))
    assert ids(client, sort="coverage", descending="1") == [row["id"] for row in falling]


def test_masks_for_thumbnails_are_the_largest_first(client: TestClient, looked_at: Path) -> None:
    for image in (1, 4):
        rows = sorted(mask_rows(looked_at, image), key=lambda row: -row["area"])
        assert rows
        assert client.get(f"/api/images/{image}/masks").json() == {"masks": [row["segmentation"] for row in rows]}


def test_pages_after_the_first(client: TestClient) -> None:
    page = client.get("/api/images", params={"after": "4"}).json()
    assert [image["id"] for image in page["images"]] == [5, 6, 7]
    assert page["next"] is None
    assert "total" not in page
    assert client.get("/api/images/4/neighbors").json() == [2, 5]
    assert client.get("/api/images/5/neighbors", params={"country": "FR"}).json() == [1, None]


def test_rejected_rows_have_their_reasons(client: TestClient, looked_at: Path) -> None:
    rows = reject_rows(looked_at)
    assert len(rows) == 2
    shown = [{**row, "shard": (row["id"] - 1) // 3} for row in rows]
    for row in shown:
        del row["ordinal"], row["uri"]
    counts = Counter(row["reason"] for row in rows)
    reasons = [
        {"reason": reason, "rows": counts[reason]} for reason in sorted(counts, key=lambda each: (-counts[each], each))
    ]
    assert client.get("/api/rejects").json() == {"rows": shown, "next": None, "reasons": reasons}
    (first, *_) = reasons
    one = client.get("/api/rejects", params={"reason": first["reason"]}).json()
    assert one == {"rows": [row for row in shown if row["reason"] == first["reason"]], "next": None, "reasons": reasons}
    assert client.get("/api/rejects?reason=other").json()["rows"] == []
    assert client.get(f"/api/rejects?after={shown[0]['id']}").json() == {"rows": shown[1:], "next": None}
    assert client.get(f"/api/rejects?after={'9' * 40}").json() == {"rows": [], "next": None}
    assert client.get("/api/rejects?after=x").json()["error"] == "after: expected an id, not 'x'"


def test_an_image_has_all_its_columns_and_masks(client: TestClient, looked_at: Path) -> None:
    for row in image_rows(looked_at):
        told = client.get(f"/api/images/{row['id']}").json()
        shard = told["image"].pop("shard")
        assert shard == (row["id"] - 1) // 3
        assert told["image"] == {**row, "hashes": [f"{each:016x}" for each in row["hashes"]]}
        masks = mask_rows(looked_at, row["id"])
        assert [{**mask, "shard": shard} for mask in masks] == told["masks"]
        assert len(masks) == row["masks"]


def test_findings_are_told_as_text(client: TestClient) -> None:
    findings = client.get("/api/images/4").json()["findings"]
    assert [finding["code"] for finding in findings] == ["mask_area", "mask_area"]
    assert findings[1]["text"] == f"mask 40000: expected 1; found {HOSTILE}"
    assert findings[1]["mask"] == 40000
    assert client.get("/api/images/4").headers["content-type"] == "application/json"


def test_pictures_are_the_tars(client: TestClient, looked_at: Path) -> None:
    seen = 0
    for path in sorted((looked_at / "shards").iterdir()):
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.name.endswith(".jpg"):
                    continue
                stream = archive.extractfile(member)
                assert stream is not None
                answer = client.get(f"/images/{member.name.removeprefix('sa_')}")
                assert answer.headers["content-type"] == "image/jpeg"
                assert answer.content == stream.read()
                seen += 1
    assert seen == 6


def test_thumbnails_are_the_pictures_made_small(client: TestClient) -> None:
    small, large = (Image.open(io.BytesIO(client.get(f"/{kind}/1.jpg").content)) for kind in ("thumbnails", "images"))
    scale = min(1, 480 / max(large.size))
    assert small.size == (round(large.width * scale), round(large.height * scale))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/images/3", 404),  # refused
        ("/api/images/99", 404),
        (f"/api/images/{'9' * 40}", 404),
        *((path.format("9" * 4301), 404) for path in NUMBERED),
        *((f"/api/images?{name}={'9' * 4301}", 400) for name in ("after", "masks_min", "megapixels_max", "sort", "9")),
        (f"/api/images?{'9' * 4301}=1", 400),
        ("/api/images/٣", 404),
        ("/api/images/-1", 404),
        ("/api/images/3/neighbors", 404),
        ("/images/3.jpg", 404),
        ("/thumbnails/8.jpg", 404),
        ("/images/../../etc/passwd", 404),
        ("/images/..%2f..%2fetc%2fpasswd", 404),
        ("/images/sa_1.jpg", 404),
        ("/assets/document.css.j2", 404),
        ("/assets/../view.py", 404),
        ("/assets/..%2fview.py", 404),
        ("/api/images?masks_min=x", 400),
        ("/api/images?after=x", 400),
        ("/api/rejects?after=x", 400),
        ("/api/images?after=99", 404),
        ("/api/images?column=id", 400),
    ],
)
def test_what_is_not_there_or_not_asked_well(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert 0 < len(answer.json()["error"]) < 200


def test_a_long_number_to_search_for_is_found_nowhere(client: TestClient) -> None:
    assert ids(client, text="9" * 4301) == ids(client, country="9" * 4301) == ids(client, finding="9" * 4301) == []


def test_every_file_of_the_page_is_served_and_none_is_missing(client: TestClient) -> None:
    page = client.get("/").text
    for path in PAGE_FILES:
        served = client.get(f"/assets/{path.name}")
        if path.name != "index.html":
            assert served.content == path.read_bytes()
            assert served.headers["content-type"].partition(";")[0] in ("text/javascript", "text/css", "image/svg+xml")
    for name in ("style.css", "image.css", "main.js", "icon.svg"):
        assert f'"/assets/{name}"' in page


def test_the_page_names_nothing_outside() -> None:
    for path in PAGE_FILES:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name
        assert "innerHTML" not in text, path.name


def test_a_damaged_picture_is_told(small_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(small_dataset, tmp_path / "dataset")
    (tar,) = (tmp_path / "dataset" / "shards").glob("sa_000000-*")
    tar.write_bytes(b"x" * tar.stat().st_size)
    with open_viewer(location_of(tmp_path / "dataset")) as viewer:
        access = SessionKeys(PORT)
        client = TestClient(make_app(viewer, access), base_url=f"http://127.0.0.1:{PORT}")
        client.get(access.address())
        for path in ("/images/1.jpg", "/thumbnails/1.jpg"):
            answer = client.get(path)
            assert answer.status_code == 500
            assert "can't be read as a tar" in answer.json()["error"]
        assert client.get("/api/images/1").status_code == 200
        assert client.get("/images/4.jpg").status_code == 200
