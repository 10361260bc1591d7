"""The report as a whole: its files, whatever the dataset is and wherever it lies."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.layout import is_known
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import base_name
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.audit.result import read_audit, to_json
from segmint.pipeline.quality.report.page import render_page
from segmint.pipeline.quality.report.report import REUSED, path_to_dataset, pictures_of, statistics_of, write_report
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.statistics.statistics import compute_statistics
from tests.support.builds import digests
from tests.support.everything import upload
from tests.support.foreign_data import loosen
from tests.support.html import parse_page
from tests.support.locations import location_of
from tests.support.reported import ATTRIBUTION, IMAGE_ID, QUICK, SCRIPT
from tests.support.statistics import audit_of

FILES = {"README.md", "croissant.json", "disclosure.md", "index.html", "statistics.json", "statistics.parquet"}
FIGURES = {"masks_per_image", "relative_size", "concavity", "centers", "scores", "licenses", "rejected"}


def test_all_files_are_there(built_report: Path) -> None:
    names = {path.name for path in built_report.iterdir()}
    assert names == FILES | {"figures"}
    figures = {path.stem for path in (built_report / "figures").iterdir()}
    assert figures == FIGURES | {"funnel"}


def test_the_statistics_are_the_dataset_s(small_dataset: Path, built_report: Path) -> None:
    with open_tables(location_of(small_dataset)) as tables:
        expected = compute_statistics(tables, QUICK.sample).to_dict()
    assert json.loads((built_report / "statistics.json").read_text()) == expected
    text = parse_page((built_report / "index.html").read_text()).text
    for number in (f"Images {expected['images']:,}", f"Masks {expected['masks']:,}", "Rejected rows 2"):
        assert number in text
    assert "No findings" in text
    assert "Privacy not audited . Build: faces redacted as found by" in text
    assert "Licenses no findings . Images by license: " in text
    assert "Whether licenses permit commercial use wasn't checked." in text
    assert "Takedowns none Duplicates no findings . 6 images compared." in text
    assert "0 masks made or changed by people, and masks of 0 images reviewed." in text
    assert "(not recorded as a version) " in text or "(version 1) " in text


def test_the_page_shows_every_image_of_a_small_dataset(built_report: Path) -> None:
    page = parse_page((built_report / "index.html").read_text())
    anchors = [element.attributes["id"] for element in page.all("figure") if "id" in element.attributes]
    assert sorted(anchors) == [f"figure-sa_{id}" for id in (1, 2, 4, 5, 6, 7)]
    pictures = page.all("img")
    assert len(pictures) == 6
    assert all(picture.attributes["src"].startswith("data:image/jpeg;base64,/9j/") for picture in pictures)
    assert all("drawn in color over the photograph" in picture.attributes["alt"] for picture in pictures)


def test_the_same_dataset_gives_the_same_report(small_dataset: Path, built_report: Path) -> None:
    again = built_report.parent / "again"
    write_report(location_of(small_dataset), location_of(again), options=QUICK)
    assert digests(again) == digests(built_report)


def test_by_default_it_goes_to_the_folder_that_a_takedown_removes(dataset: Path) -> None:
    before = digests(dataset)
    report = write_report(location_of(dataset), options=QUICK)
    assert Path(report.output) == dataset / "report"
    after = digests(dataset)
    assert {name for name in after if not name.startswith("report/")} == set(before)
    assert {f"report/{name}" for name in report.files} == set(after) - set(before)
    assert before.items() <= after.items()
    assert [name for name in after if not is_known(name)] == []


@pytest.mark.parametrize("name", ["README.md", "index.html"])
def test_a_page_of_something_else_is_never_overwritten(small_dataset: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of a project")
    with pytest.raises(UsageError, match=f"{name} already exists and is not overwritten"):
        write_report(location_of(small_dataset), location_of(tmp_path), options=QUICK)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "of a project"}


def test_damage_is_the_verdict_and_the_rest_is_shown(dataset: Path, tmp_path: Path) -> None:
    tar = max((dataset / "shards").glob("sa_000000-*.tar"))
    tar.write_bytes(tar.read_bytes()[:3000])
    report = write_report(location_of(dataset), location_of(tmp_path / "report"), options=QUICK)
    page = parse_page((tmp_path / "report" / "index.html").read_text())
    assert report.findings_total == 1
    assert report.not_checked == ("shard 0: its files are damaged",)
    assert "1 finding" in page.text
    assert "file_size" in page.text
    assert "Excluded from all numbers below because of damaged files: shard 0." in page.text
    assert "Integrity 1 finding . 1 damaged shard left out of all numbers." in page.text
    assert "Drift wasn't measured. It's only measured between shards with 30 or more images" in page.text
    assert len(page.all("img")) == 4  # of the other shards
    assert json.loads((tmp_path / "report" / "statistics.json").read_text())["images"] == 4


def test_an_audit_s_findings_lead_to_their_images(report_folder: Path) -> None:
    page = parse_page((report_folder / "index.html").read_text())
    assert "103 findings" in page.text
    assert (
        "1 finding . Images by license: CC-BY-4.0 5, LicenseRef-acme 1. Compared on 2026-11-20 with those" in page.text
    )
    assert (
        "mtcnn (for trials); plates not searched for; misses found by people: 1 mark, in 1 of 6 images: at" in page.text
    )
    assert "And 100 more, counted but not listed." in page.text
    ids = {element.attributes["id"] for element in page.elements if "id" in element.attributes}
    links = [link.attributes["href"] for link in page.all("a")]
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert "#figure-sa_5" in links  # ordinal 4
    assert "image-2" not in ids  # a detector still sees a face there
    assert "Images in this table are not shown" in page.text


def test_what_the_data_says_cannot_become_markup(report_folder: Path) -> None:
    page = parse_page((report_folder / "index.html").read_text())
    assert not page.all("script")
    assert not page.all("b")
    for hostile in (ATTRIBUTION, IMAGE_ID, SCRIPT, "street & <b>2026</b>"):
        assert hostile in page.text
    assert not any(name.startswith("on") for element in page.elements for name in element.attributes)
    sources = [value for element in page.elements for name, value in element.attributes.items() if name == "src"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_what_people_found_is_on_the_page_and_the_card(report_folder: Path) -> None:
    text = parse_page((report_folder / "index.html").read_text()).text
    assert (
        "6 of 6 images for regions that detectors missed. The images were drawn at random from 6 of the dataset sha256:"
        in text
    )
    assert "face 1 1 59%" in text
    card = (report_folder / "README.md").read_text()
    assert "face in 1 image (at most 59% of all), plate in 0 images (at most 40% of all)" in card


def test_ratings_by_people_are_on_the_page_and_the_card_without_names(report_folder: Path) -> None:
    text = parse_page((report_folder / "index.html").read_text()).text
    assert "2 raters judged single masks from 1 (no object) to 10 (no visible error)" in text
    found = json.loads((report_folder / "ratings.json").read_text())
    (automatic,) = found["sources"]
    assert (automatic["masks"], automatic["mean"]) == (5, (8.5 + 4.5 + 10 + 9 + 7) / 5)
    assert automatic["interval"] is None
    assert f"automatic 5 {automatic['images']} 7.80 too few images 0 1 1 4 1" in text
    assert "standard deviation of 1.41 on average, over 2 masks" in text
    card = (report_folder / "README.md").read_text()
    assert f"automatic 7.80 (no interval), 5 masks of {automatic['images']} image" in card
    assert all("Ada" not in each for each in (text, card, json.dumps(found)))


def test_a_study_of_another_dataset_is_refused(small_dataset: Path, report_folder: Path) -> None:
    score = location_of(report_folder.parent / "study/score.json")
    with pytest.raises(UsageError, match="which is not a version of"):
        write_report(location_of(small_dataset), options=QUICK, study=score)


def test_an_audit_of_integrity_gets_its_statistics(small_dataset: Path, built_report: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.json"
    audit.write_text(to_json(audit_integrity(location_of(small_dataset), QUICK.sample)))
    with open_tables(location_of(small_dataset)) as tables:
        statistics = statistics_of(read_audit(location_of(audit)), "audit.json", tables, QUICK.sample)
    assert statistics.to_dict() == json.loads((built_report / "statistics.json").read_bytes())


def test_an_audit_of_another_version_is_refused(dataset: Path, tmp_path: Path) -> None:
    report = audit_integrity(location_of(dataset), QUICK.sample)
    audit = tmp_path / "audit.json"
    audit.write_text(to_json(report))
    written = write_report(location_of(dataset), location_of(tmp_path / "reused"), location_of(audit), QUICK)
    assert written.lines()[0] == f"note: {REUSED}"
    for page in ("index.html", "README.md"):
        assert unescape((tmp_path / "reused" / page).read_text()).count(REUSED) == 1
    assert "According to the audit, all files are intact" in (tmp_path / "reused" / "index.html").read_text()
    redact_first(dataset, tmp_path)
    now = current_digest(location_of(dataset))
    assert report.version is not None
    with pytest.raises(
        UsageError, match=rf"it checked sha256:{report.version.digest}, but .* is now sha256:{now}\. Audit it again"
    ):
        write_report(location_of(dataset), location_of(tmp_path / "report"), location_of(audit), QUICK)
    audit.write_text(to_json(replace(report, version=None)))
    written = write_report(location_of(dataset), location_of(tmp_path / "report"), location_of(audit), QUICK)
    assert written.lines()[0] == (f"note: {audit} doesn't name the version that it checked. Audit again")
    assert written.lines()[-1] == f"dataset digest: sha256:{now[:12]} (version 1)"
    assert f"SHA-256 {now} (version 1)" in parse_page((tmp_path / "report" / "index.html").read_text()).text
    assert f"| Version digest | SHA-256 {now} (version 1) |" in (tmp_path / "report" / "README.md").read_text()
    assert json.loads((tmp_path / "report" / "croissant.json").read_text())["version"] == "1.0.0"
    assert re.search(r"by 20\d\d-\d\d-\d\d, the date of version 1 \(redact\)", disclosure_in(tmp_path / "report"))


def disclosure_in(folder: Path) -> str:
    return (folder / "disclosure.md").read_text(encoding="utf-8")


def redact_first(dataset: Path, folder: Path) -> None:
    """Redact a region of the first image."""
    regions = folder / "regions.jsonl"
    regions.write_text('{"id": 1, "kind": "face", "x": 5, "y": 5, "w": 20, "h": 15}\n')
    redact(location_of(dataset), location_of(regions))


class RecordingStorage(Storage):
    """The real storage, with what was opened to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def read_part(self, uri: str, start: int, stop: int) -> bytes:
        self.names.append(base_name(uri))
        return super().read_part(uri, start, stop)


def test_data_of_somebody_else_is_measured_once_and_findings_lead_to_their_image(
    small_dataset: Path, tmp_path: Path
) -> None:
    def change(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            annotation["id"] += 10_000  # which would be a mask of the image of the next number, were it ours
        if document["image"]["image_id"] == 4:
            document["annotations"][0]["stability_score"] = 7.0

    data = loosen(small_dataset, tmp_path / "data", change)
    before = digests(data)
    with pytest.raises(UsageError, match="pass the report's folder with -o"):
        write_report(location_of(data))
    storage = RecordingStorage()
    report = write_report(Location(storage, str(data)), location_of(tmp_path / "report"), options=QUICK)
    assert digests(data) == before
    assert not {"croissant.json", "disclosure.md"}.intersection(report.files)
    jsons = sorted(path.name for path in data.glob("*.json"))
    assert sorted(name for name in storage.names if name.endswith(".json")) == jsons
    page = parse_page((tmp_path / "report" / "index.html").read_text())
    for unknown in (
        "It is unknown whether any images were rejected when this dataset was made.",
        "The license of the images is unknown.",
        "It is unknown whether faces and plates were redacted when this dataset was made.",
        "Licenses not audited . The licenses are unknown.",
        "Privacy not audited . It's unknown whether faces and plates were redacted.",
        "No images have a country",
        "Unknown, because segmint did not write this data.",
    ):
        assert unknown in page.text
    assert len(page.all("img")) == 6
    assert "None" not in page.text
    text = (tmp_path / "report" / "index.html").read_text()
    assert text.count('<a href="#figure-sa_4">image 4</a>') == 1
    assert text.count('<figure id="figure-sa_4">') == 1
    assert text.count('<a href="#figure-sa_') == 1


@pytest.mark.s3
@pytest.mark.long
def test_a_bucket_s_dataset_gets_the_same_report(
    small_dataset: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    storage = Storage(s3_options)
    uri = f"s3://{s3_bucket}/datasets/small"
    upload(small_dataset, Location(storage, uri))
    report = write_report(Location(storage, uri), options=QUICK)
    assert report.output == f"{uri}/report"
    local = tmp_path / "copy"
    shutil.copytree(small_dataset, local)
    write_report(location_of(local), options=QUICK)
    for name in report.files:
        there = storage.read(f"{uri}/report/{name}")
        if name != "index.html":  # which says where the dataset is
            assert hashlib.sha256(there).digest() == hashlib.sha256((local / "report" / name).read_bytes()).digest()


@pytest.mark.parametrize("place", ["report", "../elsewhere"])
def test_a_report_that_a_takedown_overtakes_leaves_nothing(
    dataset: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page has been rendered with the image when a takedown removes it and the dataset's report."""
    location, folder = location_of(dataset), dataset.joinpath(place).resolve()

    def overtaken(*given: Any) -> str:
        takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
        return render_page(*given)

    with monkeypatch.context() as patch:
        patch.setattr("segmint.pipeline.quality.report.report.render_page", overtaken)
        with pytest.raises(UnfinishedError, match="was corrected during the report"):
            write_report(location, location_of(folder), options=QUICK)
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert prove(location, "2").found == ()
    write_report(location, location_of(folder), options=QUICK)
    assert prove(location, "2").found == ()


def test_the_statistics_of_an_audit_are_taken_if_they_are_of_these_images(reported: str) -> None:
    with open_tables(location_of(reported)) as tables:
        computed = statistics_of(audit_of(), "audit.json", tables, 10)
        assert computed.images == 6
        changed = replace(computed, without_masks=12345)
        assert statistics_of(audit_of(statistics=changed), "audit.json", tables, 10) == changed
        other = audit_of(statistics=replace(computed, masks=computed.masks + 1))
        with pytest.raises(UsageError, match=r"audit.json counts 11 masks, .* 10. Audit it again"):
            statistics_of(other, "audit.json", tables, 10)


def test_damaged_shards_are_left_out(reported: str) -> None:
    audit = audit_of(not_compared=(1,))
    with open_tables(location_of(reported), leave_out=frozenset(audit.not_compared)) as tables:
        assert statistics_of(audit, "audit.json", tables, 10).images == 3


@pytest.mark.parametrize(
    ("folder", "dataset", "expected"),
    [
        ("/data/street/report", "/data/street", ".."),
        ("/data/reports/street", "/data/street", "../../street"),
        ("s3://bucket/street/report", "s3://bucket/street", ".."),
        ("s3://bucket/street/a/b", "s3://bucket/street/", "../.."),
        ("s3://bucket/reports", "s3://bucket/street", "s3://bucket/street"),
        ("/data/report", "s3://bucket/street", "s3://bucket/street"),
    ],
)
def test_a_report_knows_the_way_to_its_dataset(folder: str, dataset: str, expected: str) -> None:
    assert path_to_dataset(folder, dataset) == expected


def test_no_image_is_shown_if_some_detections_are_not_listed() -> None:
    privacy = SimpleNamespace(found=(), found_total=1)
    shown = pictures_of(None, SimpleNamespace(with_images=True), SimpleNamespace(privacy=privacy), None)
    assert (shown.flagged, shown.samples) == ((), ())
    assert "doesn't list all remaining detections" in shown.why
