"""The whole audit of a real dataset: its areas, the files it writes, and a face that goes from found to redacted."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.catalogs.layout import json_sha256
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import load_config
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.audit.result import AuditReport, Duplicates, from_json, result_lines, to_dict, to_json
from segmint.pipeline.quality.report.report import write_report
from tests.support.bombs import jpeg_saying
from tests.support.builds import digests, photograph
from tests.support.committed_shard import CommittedShard, change_manifest
from tests.support.everything import upload
from tests.support.foreign_data import loosen
from tests.support.locations import location_of
from tests.support.planting import LATER, ShardEdit, edit_row, flip


def audit(dataset: Path, privacy_sample: int | None = 0, **options) -> AuditReport:
    return audit_dataset(location_of(dataset), AuditOptions(privacy_sample=privacy_sample, now=LATER, **options))


def test_five_findings_of_a_code_are_named_and_where_the_rest_is(small_dataset: Path) -> None:
    report = audit(small_dataset)
    collector, place = FindingCollector(), FindingLocation("shards/images.parquet")
    collector.extend(place.finding(Code.LICENSE_EXPIRED, "a license", "none", f"row {row}") for row in range(7))
    lines = result_lines(replace(report, findings=collector.collected()))
    assert sum("shards/images.parquet" in line for line in lines) == 5
    assert lines[-2:] == ["  and 2 more", "--json lists up to 100 findings per code"]
    assert lines[0].startswith("verdict: ")
    assert "with --json" not in "\n".join(result_lines(report))


def test_a_good_dataset_has_no_finding_in_any_area_and_is_not_changed(small_dataset: Path) -> None:
    before = digests(small_dataset)
    report = audit(small_dataset, privacy_sample=None)
    assert [finding.line() for finding in report.findings] == []
    assert result_lines(report)[0] == (
        "verdict: no findings; only the build's own face and plate detectors searched, and they repeat their own "
        "misses; not searched: faces under 20 px (rotated: twice that) by mtcnn, rotated plates by clp"
    )
    value = to_dict(report)
    assert json.loads(to_json(report)) == value
    assert from_json(to_json(report), "audit.json") == report
    assert (value["scope"], value["kind"], value["findings_total"]) == ("all", "segmint", 0)
    assert value["licenses"] == {
        "judged_on": LATER.date().isoformat(),
        "by_license": [{"license": "CC0-1.0", "images": 6, "allowed": True}],
        "by_provider": [{"provider": None, "images": 6}],
        "expired": 0,
        "expired_since_build": 0,
        "without_attribution": 0,
        "asserted": [],
    }
    privacy = report.privacy
    assert (privacy.images_checked, privacy.found, privacy.found_total) == (6, (), 0)
    assert [(d.kind, d.name, d.score) for d in privacy.detectors] == [
        ("face", "mtcnn", 0.7),
        ("plate", "clp", 0.5),
    ]
    assert value["duplicates"] == {
        "images_compared": 6,
        "distance": 2,
        "repeated_sources": 0,
        "similar": 0,
        "across_splits": None,
    }
    assert (value["statistics"]["images"], value["statistics"]["masks"]) == (6, report.checked.masks)
    assert digests(small_dataset) == before


def test_only_the_sample_is_searched_and_nothing_is_called_clean(small_dataset: Path) -> None:
    report = audit(small_dataset, privacy_sample=2)
    assert report.privacy.images_checked == 2
    text = "\n".join(result_lines(report))
    assert "privacy      no findings; 2 of 6 images searched" in text
    assert "0 faces found by mtcnn at score 0.7 or above in 0 of 2 images" in text
    assert "0 plates found by clp at score 0.5 or above in 0 of 2 images" in text
    assert "clean" not in text
    damaged = replace(report, checked=replace(report.checked, images=3), not_compared=(1,))
    assert "2 of 6 images searched" in "\n".join(result_lines(damaged)), "also images of shards that weren't compared"
    assert max(map(len, result_lines(report, 60)[1:])) <= 60
    statistics = replace(report.statistics, rejected_by_reason={"taken_down": 2, "not_found": 1})
    assert "rejected rows (2 taken down)" in result_lines(replace(report, statistics=statistics), 500)[1]
    assert "no image was searched" in "\n".join(result_lines(audit(small_dataset)))


def with_a_face(taken: CommittedShard) -> None:
    pixels = np.fliplr(photograph("astronaut", (240, 180)))
    taken.members[0] = taken.members[0][0], release(pixels, ReleaseConfig()).jpeg


@pytest.mark.parametrize("name", [pytest.param("regions.jsonl", marks=pytest.mark.long), "regions.parquet"])
def test_what_is_found_is_shown_and_redacted_and_then_found_no_more(dataset: Path, tmp_path: Path, name: str) -> None:
    ShardEdit(1, with_a_face)(dataset)
    regions, pictures = tmp_path / name, tmp_path / "pictures"
    report = audit(dataset, None, regions=location_of(regions), pictures=location_of(pictures))
    assert report.findings.counts == {Code.STILL_DETECTED: 1}
    (found,) = report.privacy.found
    assert (found.id, found.shard, found.kind, found.detector) == (4, 1, "face", "mtcnn")
    assert (report.privacy.detectors[0].found, report.privacy.detectors[0].images) == (1, 1)
    assert from_json(to_json(report), "audit.json") == report
    assert "1 face found by mtcnn at score 0.7 or above in 1 of 6 images" in "\n".join(result_lines(report))

    (path,) = pictures.iterdir()
    assert path.name == "sa_4_1_face.jpg"
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.size == (240, 180)

    done = redact(location_of(dataset), location_of(regions))
    assert (done.regions, done.changed_shards) == (1, (1,))
    again = audit(dataset, None)
    assert [finding.line() for finding in again.findings] == []


def test_pictures_of_an_audit_that_dies_are_noted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ShardEdit(1, with_a_face)(dataset)
    monkeypatch.setattr("segmint.pipeline.quality.audit.content.find_copies", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audit(dataset, None, pictures=location_of(tmp_path / "pictures"))
    assert len(list((tmp_path / "pictures").iterdir())) == 1
    assert [note.command for note in read_notes(location_of(dataset))] == ["audit --pictures"]


def test_attributions_name_every_image(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "attributions.csv"
    audit(dataset, attributions=location_of(file), pictures=location_of(tmp_path / "pictures"))
    assert [note.command for note in read_notes(location_of(dataset))] == ["audit --attributions"]  # no pictures
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["image"] for row in rows] == [f"sa_{id}.jpg" for id in (1, 2, 4, 5, 6, 7)]
    assert {row["license_url"] for row in rows} == {"https://creativecommons.org/publicdomain/zero/1.0/"}
    with pytest.raises(UsageError, match=r"\.csv, \.jsonl, \.md"):
        audit(dataset, attributions=location_of(tmp_path / "attributions.txt"))


def test_a_damaged_shard_is_left_out_of_what_its_files_would_say(dataset: Path) -> None:
    flip(dataset / CommittedShard(dataset, 1).commit.file("images").path)
    report = audit(dataset)
    assert report.findings.counts == {Code.FILE_DIGEST: 1}
    assert report.statistics.images == 3
    assert report.licenses.by_license[0].images == 3
    assert from_json(to_json(report), "audit.json") == report
    assert any(
        "left out of statistics and attributions" in line and line.endswith(": 1") for line in result_lines(report)
    )


def test_a_damaged_tar_says_nothing_of_its_pictures(dataset: Path) -> None:
    flip(dataset / CommittedShard(dataset, 1).commit.file("shards").path)
    report = audit(dataset, None)
    assert report.findings.counts == {Code.FILE_DIGEST: 1}
    assert report.privacy.images_checked == 3
    assert report.duplicates.images_compared == 3


def test_a_damaged_tar_names_its_images_and_repair_is_next(dataset: Path) -> None:
    def flipped(jpeg: bytes) -> bytes:
        middle = len(jpeg) // 2
        return jpeg[:middle] + bytes([jpeg[middle] ^ 1]) + jpeg[middle + 1 :]

    ShardEdit(1, lambda taken: taken.edit_member(0, flipped)).raw(dataset, "shards")
    (finding,) = audit(dataset).findings
    assert finding.code is Code.FILE_DIGEST
    assert finding.found.endswith("; images that differ from the tables: 4")
    for more in (["--integrity-only"], ["--privacy-sample", "0"]):
        done = CliRunner().invoke(app, ["audit", str(dataset), *more])
        assert f"next: segmint repair {dataset}" in done.stderr
        assert "next: segmint report" not in done.stderr


def test_an_image_without_its_tables_is_neither_judged_nor_compared(dataset: Path) -> None:
    for path in (dataset / "masks").iterdir():
        path.unlink()
    lines = result_lines(audit(dataset))
    assert "licenses     no image was judged" in lines
    assert "duplicates   no image was compared" in lines
    assert not any("images by license" in line for line in lines)


def test_an_image_of_other_hashes_is_one_finding(dataset: Path) -> None:
    def edit(taken: CommittedShard) -> None:
        row = taken.rows["images"][0]
        row.update(release_sha256="0" * 64, hashes=[each ^ 1 for each in row["hashes"]])

    ShardEdit(1, edit)(dataset)
    assert audit(dataset).findings.counts == {Code.OTHER_RELEASE: 1}


def test_all_pictures_are_read_to_their_end(dataset: Path) -> None:
    ShardEdit(1, lambda taken: taken.edit_member(0, lambda d: d[: len(d) // 2] + d[-2:]))(dataset)
    report = audit(dataset, sample=0)
    assert report.findings.counts == {Code.BAD_JPEG: 1}
    assert report.duplicates.images_compared == 5


def test_an_image_of_the_same_bytes_is_told_once(dataset: Path) -> None:
    def repeat(taken: CommittedShard) -> None:
        taken.rows["images"][1]["source_sha256"] = taken.rows["images"][0]["source_sha256"]
        taken.members[2] = taken.members[2][0], taken.members[0][1]

    ShardEdit(1, repeat)(dataset)
    assert audit(dataset).findings.counts == {Code.REPEATED_SOURCE: 1}


def test_a_source_that_is_not_known_is_like_no_other(dataset: Path) -> None:
    edit_row("images", 1, 0, source_sha256=None)(dataset)
    edit_row("images", 1, 1, source_sha256="no digest")(dataset)
    assert audit(dataset).findings.total == 0


def test_a_manifest_without_rules_is_a_finding(dataset: Path) -> None:
    config = {name: part for name, part in load_manifest(location_of(dataset)).config.items() if name != "license"}
    change_manifest(dataset, config=config)
    report = audit(dataset)
    assert report.findings.counts == {Code.BAD_MANIFEST: 2}, "the hash, and this"
    assert report.licenses is None


def test_a_detector_of_one_s_own_is_looked_for_in_the_build_s_configuration(small_dataset: Path, dataset: Path) -> None:
    config = load_manifest(location_of(dataset)).config
    own = {**config["deidentify"], "plates": {"detector": "0" * 64, "score": None}}
    change_manifest(dataset, config={**config, "deidentify": own})
    with pytest.raises(UsageError, match=r"deidentify\.plates\.detector .*--config.*--privacy-sample 0"):
        audit(dataset, None)
    with pytest.raises(UsageError, match=r"deidentify\.plates\.detector"):
        audit(dataset, None, build=load_config(str(small_dataset.parent / "build.yaml")))
    assert audit(dataset).findings.counts == {Code.BAD_MANIFEST: 1}


def test_nothing_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        audit(tmp_path / "nowhere")


def test_a_dataset_without_its_manifest_is_not_taken_for_foreign_data(dataset: Path) -> None:
    (dataset / "dataset.json").unlink()
    with pytest.raises(UsageError, match=r"has no dataset\.json, but .*Run `segmint repair"):
        audit(dataset)
    with pytest.raises(UsageError, match=r"has no dataset\.json, but .*Run `segmint repair"):
        write_report(location_of(dataset))


def test_data_that_segmint_did_not_write_is_audited_as_far_as_it_can_be(small_dataset: Path, tmp_path: Path) -> None:
    folder = loosen(small_dataset, tmp_path / "loose")
    report = audit(folder)
    assert report.findings.total == 0
    assert (report.scope, report.kind, report.licenses, report.privacy) == ("all", "sa1b", None, None)
    assert report.duplicates == Duplicates(images_compared=6, distance=2, repeated_sources=0, similar=0)
    assert report.statistics.masks == audit(small_dataset).statistics.masks
    assert from_json(to_json(report), "audit.json") == report
    lines = result_lines(report)
    assert lines[0].startswith("verdict: no image was searched for faces and plates (6 of 6 images (--privacy-sample ")
    assert any(line.startswith("integrity    no findings; checked 6 images, ") for line in lines)
    assert "segmint didn't write this, so its licenses and redacted regions are unknown" in lines
    with pytest.raises(UsageError, match="Remove --complete"):
        audit(folder, complete=True)

    jpeg = (folder / "sa_6.jpg").read_bytes()
    (folder / "sa_6.jpg").write_bytes(jpeg[: len(jpeg) // 2] + jpeg[-2:])
    (folder / "sa_7.jpg").write_bytes((folder / "sa_4.jpg").read_bytes())
    (folder / "sa_2.jpg").write_bytes(jpeg_saying(65_500, 65_500))
    findings = audit(folder).findings
    found = [(finding.code, finding.file, finding.image) for finding in findings]
    torn = [("bad_jpeg", "sa_2", 2), ("bad_jpeg", "sa_6", 6)]
    assert found == [*torn, ("jpeg_size", "sa_2.jpg", 2), ("repeated_source", "sa_7", 7)]
    assert "is 4,290,250,000 pixels; at most 250,000,000 are decoded" in findings.kept[0].found


def test_findings_say_their_image(dataset: Path) -> None:
    def spoil(taken: CommittedShard) -> None:
        taken.rows["masks"][0]["stability_score"] = 7.0

    ShardEdit(1, spoil)(dataset)
    flip(dataset / CommittedShard(dataset, 2).commit.file("masks").path)
    found = {(finding.code, finding.image, finding.mask) for finding in audit(dataset).findings}
    assert {("score_range", 4, 40_000), ("file_digest", None, None)} <= found


def test_a_jpeg_of_another_form_is_decoded_apart(dataset: Path) -> None:
    def progressive(jpeg: bytes) -> bytes:
        with Image.open(io.BytesIO(jpeg)) as image:
            sink = io.BytesIO()
            image.save(sink, "JPEG", progressive=True, quality="keep")
        return sink.getvalue()

    ShardEdit(1, lambda taken: taken.edit_member(0, progressive))(dataset)
    report = audit(dataset, privacy_sample=None)
    assert report.findings.counts == {Code.JPEG_METADATA: 1}
    assert (report.checked.jpegs_decoded, report.privacy.images_checked) == (6, 6)


def test_annotations_without_images_are_not_searched(dataset: Path) -> None:
    config = load_manifest(location_of(dataset)).config
    config = {**config, "release": {**config["release"], "format": "annotations"}}
    change_manifest(dataset, config=config, config_sha256=json_sha256(config))
    for shard in range(3):
        ShardEdit(shard, without_jpegs)(dataset)
    report = audit(dataset, None)
    assert [finding.line() for finding in report.findings] == []
    assert (report.privacy.images_checked, report.duplicates.images_compared) == (0, 0)
    assert "no image was searched" in "\n".join(result_lines(report))


def without_jpegs(taken: CommittedShard) -> None:
    taken.members = [(name, data) for name, data in taken.members if name.endswith(".json")]


def test_a_build_without_detectors_is_told(dataset: Path) -> None:
    config = load_manifest(location_of(dataset)).config
    none = {kind: {"detector": "none", "score": None} for kind in ("faces", "plates")}
    config = {**config, "deidentify": {**config["deidentify"], **none}}
    change_manifest(dataset, config=config, config_sha256=json_sha256(config))
    report = audit(dataset, None)
    assert report.findings.total == 0
    assert "not searched: the build used no detectors" in "\n".join(result_lines(report))


@pytest.mark.long
@pytest.mark.s3
def test_the_same_on_s3(small_dataset: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    upload(small_dataset, Location(storage, uri))
    there = Location(storage, f"s3://{s3_bucket}/answers")
    options = AuditOptions(privacy_sample=1, now=LATER, attributions=there / "a.md", regions=there / "r.jsonl")
    report = audit_dataset(Location(storage, uri), options)
    assert replace(report, dataset=str(small_dataset)) == audit(small_dataset, 1)
    assert (there / "a.md").read().startswith(b"# Attributions")
    assert (there / "r.jsonl").read() == b""
