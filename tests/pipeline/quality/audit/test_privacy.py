"""What detectors find becomes findings, counts and gaps; those of the build and others are compared on real images.

`test_audit` has the search by the build's detectors alone.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.findings import Code, FindingLocation
from segmint.catalogs.layout import json_sha256
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.model.detectors.cascade import SMALLEST
from segmint.model.detectors.detection import Kind
from segmint.operators.audit.privacy import DetectorSpec, IsolatedDetector, RemainingDetection
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import DeidentifyConfig, PlatesConfig, build_detectors
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.audit.privacy import PrivacySummary, SearchResult
from segmint.pipeline.quality.audit.result import (
    SMALLEST_FACE,
    AuditReport,
    DetectorAgreement,
    UnsearchedImages,
    from_json,
    result_lines,
    to_dict,
    to_json,
)
from segmint.pipeline.quality.statistics.values import json_value
from tests.support.builds import photograph
from tests.support.committed_shard import CommittedShard, change_manifest
from tests.support.foreign_data import loosen
from tests.support.locations import location_of
from tests.support.planting import LATER, ShardEdit
from tests.support.torchscript import (
    CYAN,
    MAGENTA,
    FailingDetector,
    MagentaDetector,
    OnlyScores,
    SmallEgoBlur,
    saved,
    spot,
    traced,
)


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Audits with the same file share a child process: each child imports torch, which takes seconds."""
    known: dict[tuple[Any, ...], IsolatedDetector] = {}

    def shared(path: Path, kind: Kind, **options: Any) -> IsolatedDetector:
        key = sha256_of(path), path.name, kind, *sorted(options.items())
        if key not in known:
            known[key] = IsolatedDetector(path, kind, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segmint.operators.audit.privacy.IsolatedDetector", shared)
        yield
    for detector in known.values():
        detector.close()


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of detectors: `spot.pt` sees magenta squares, `large.pt` those of 20 pixels, and `failing.pt` none."""
    folder = tmp_path_factory.mktemp("modules")
    saved(MagentaDetector(least=4), folder / "spot.pt")
    saved(MagentaDetector(least=20), folder / "large.pt")
    saved(FailingDetector(), folder / "failing.pt")
    return folder


LEFT = RemainingDetection(7, "face", "mtcnn", 0.9, 1, 2, 30, 40, redacted=False)
REDACTED = RemainingDetection(7, "plate", "clp", 0.8, 50, 60, 20, 10, redacted=True)
SEARCH = SearchResult((LEFT, REDACTED), {})


def test_what_was_redacted_is_no_finding() -> None:
    (finding,) = SEARCH.findings(FindingLocation("shards/sa_000000.tar", 0))
    assert (finding.code, finding.image) == (Code.STILL_DETECTED, 7)
    assert finding.found == "a face by mtcnn at score 0.9"


def test_what_was_redacted_is_counted_apart() -> None:
    summary = PrivacySummary([SimpleNamespace(kind="face", name="mtcnn", score=0.7)])  # type: ignore[list-item]
    summary.add(3, [SEARCH])
    answer = summary.answer()
    assert (answer.images_checked, answer.found_total, answer.inside_regions) == (1, 1, 1)
    row = {"id": 7, "kind": "face", "detector": "mtcnn", "score": 0.9, "x": 1, "y": 2, "w": 30, "h": 40}
    assert summary.regions() == [{**row, "found_by": ["mtcnn"]}]
    agreed = {"found_by": [{"detector": "mtcnn", "score": 0.9}], "missed_by": []}
    assert [list(found.items()) for found in json_value(answer)["found"]] == [
        list({**row, "shard": 3, **agreed}.items())
    ]


def audit(dataset: Path, privacy_sample: int | None = None, **options) -> AuditReport:
    return audit_dataset(location_of(dataset), AuditOptions(privacy_sample=privacy_sample, now=LATER, **options))


def given(*modules: tuple[str, Path | str]) -> tuple[DetectorSpec, ...]:
    return tuple(DetectorSpec.of(f"{kind}={path}") for kind, path in modules)


def verdict(report: AuditReport) -> str:
    """The last line, which is that of the JSON."""
    line = result_lines(report)[0]
    assert line == f"verdict: {to_dict(report)['verdict']}"
    assert from_json(to_json(report), "audit.json") == report
    return line


LIMITS = "faces under 20 px (rotated: twice that) by mtcnn", "rotated plates by clp"
"""Limits of the bundled detectors, as the verdict lists them."""


def only_own(kinds: str) -> str:
    return f"only the build's own {kinds} detectors searched, and they repeat their own misses"


def test_the_smallest_face_is_the_one_that_mtcnn_searches_for() -> None:
    assert SMALLEST == SMALLEST_FACE


def test_the_builds_own_file_is_no_other_detector(dataset: Path, modules: Path, tmp_path: Path) -> None:
    """A copy with another name is the same detector, and a file with other bytes is another one."""
    copy = tmp_path / "copy.pt"
    copy.write_bytes((modules / "large.pt").read_bytes())
    none = {"detector": "none", "score": None}
    own = {"detector": sha256_of(copy), "score": None}
    reconfigure(dataset, deidentify={"faces": own, "plates": none, "orientations": [0, 90, 180, 270]})
    again = audit(dataset, 1, detectors=given(("face", copy)))
    assert [(each.name, each.origin) for each in again.privacy.detectors] == [("copy.pt", "build")]
    assert f"; {only_own('face')}; not searched: " in verdict(again)
    other = audit(dataset, 1, detectors=given(("face", modules / "spot.pt")))
    assert [each.origin for each in other.privacy.detectors] == ["audit"]
    assert "; another face detector searched: spot.pt (SHA-256 " in verdict(other)


def reconfigure(dataset: Path, **parts: object) -> None:
    config = {**load_manifest(location_of(dataset)).config, **parts}
    change_manifest(dataset, config=config, config_sha256=json_sha256(config))


def with_a_face_and_a_spot(taken: CommittedShard) -> None:
    pixels = spot(np.fliplr(photograph("astronaut", (240, 180))), 20, 120, side=12)
    taken.members[0] = taken.members[0][0], release(pixels, ReleaseConfig()).jpeg


@pytest.mark.parametrize("name", ["regions.jsonl", pytest.param("regions.parquet", marks=pytest.mark.long)])
def test_what_one_detector_finds_is_listed_shown_blurred_and_redacted(
    dataset: Path, modules: Path, tmp_path: Path, name: str
) -> None:
    ShardEdit(1, with_a_face_and_a_spot)(dataset)
    regions, pictures = tmp_path / name, tmp_path / "pictures"
    # 20 pixels: the spot is seen in tiles at twice the size alone.
    others = given(("face", modules / "large.pt"), ("face", "mtcnn"))
    report = audit(dataset, detectors=others, regions=location_of(regions), pictures=location_of(pictures))

    assert report.findings.counts == {Code.STILL_DETECTED: 2}
    privacy = report.privacy
    names = [(each.kind, each.name, each.origin, each.found, each.sha256 is None) for each in privacy.detectors]
    assert names == [
        ("face", "mtcnn", "build", 1, True),
        ("plate", "clp", "build", 0, True),
        ("face", "large.pt", "audit", 1, False),
        ("face", "mtcnn on tiles", "build", 1, True),
    ]
    face, only = privacy.found
    assert [each.detector for each in face.found_by] == ["mtcnn", "mtcnn on tiles"]
    assert face.missed_by == ("large.pt",)
    assert ([each.detector for each in only.found_by], only.missed_by) == (["large.pt"], ("mtcnn", "mtcnn on tiles"))
    assert (only.id, only.kind, only.shard, only.score) == (4, "face", 1, 0.95)
    assert only.x <= 20 < 32 <= only.x + only.w
    assert only.y <= 120 < 132 <= only.y + only.h
    assert privacy.agreement == (
        DetectorAgreement("face", ("mtcnn", "large.pt", "mtcnn on tiles"), 0),
        DetectorAgreement("face", ("mtcnn", "mtcnn on tiles"), 1),
        DetectorAgreement("face", ("mtcnn",), 0),
        DetectorAgreement("face", ("large.pt",), 1),
        DetectorAgreement("face", ("mtcnn on tiles",), 0),
    )
    text = " ".join(line.strip() for line in result_lines(report))
    assert "a face by large.pt at score 0.95, and not by mtcnn or mtcnn on tiles" in text
    assert "1 by mtcnn and mtcnn on tiles, 0 by mtcnn only, 1 by large.pt only" in text
    assert "clean" not in text
    assert verdict(report) == (
        f"verdict: 2 findings (2 in privacy); another face detector searched: large.pt (SHA-256 "
        f"{sha256_of(modules / 'large.pt')}); {only_own('plate')}; not searched: {', '.join(LIMITS)}"
    )

    assert {path.name for path in pictures.iterdir()} == {"sa_4_1_face.jpg", "sa_4_2_face.jpg"}
    shown = [decode_jpeg(path.read_bytes()) for path in pictures.iterdir()]
    assert all(picture.shape[0] < 180 for picture in shown), "cut out"
    (faces,) = build_detectors(DeidentifyConfig(plates=PlatesConfig(detector="none")))
    assert [faces.detect(picture) for picture in shown] == [[], []]

    done = redact(location_of(dataset), location_of(regions))
    assert (done.regions, done.changed_shards) == (2, (1,))
    assert [finding.line() for finding in audit(dataset, detectors=others).findings] == []


def with_a_face_and_a_plate_for_egoblur(taken: CommittedShard) -> None:
    pixels = spot(np.flipud(photograph("coffee", (240, 180))), 20, 120, side=12)
    taken.members[0] = taken.members[0][0], release(spot(pixels, 180, 20, 12, CYAN), ReleaseConfig()).jpeg


def test_a_network_with_the_outputs_of_egoblur_finds_what_the_build_missed(dataset: Path, tmp_path: Path) -> None:
    ShardEdit(1, with_a_face_and_a_plate_for_egoblur)(dataset)
    face = traced(SmallEgoBlur(MAGENTA), tmp_path / "ego_blur_face.jit")
    plate = traced(SmallEgoBlur(CYAN), tmp_path / "ego_blur_lp.jit")
    regions = tmp_path / "regions.jsonl"
    others = given(("face", face), ("plate", plate))
    report = audit(dataset, detectors=others, regions=location_of(regions))
    found = [(each.kind, each.detector, each.missed_by) for each in report.privacy.found]
    assert found == [("face", "ego_blur_face.jit", ("mtcnn",)), ("plate", "ego_blur_lp.jit", ("clp",))]
    for each, (x, y) in zip(report.privacy.found, ((20, 120), (180, 20)), strict=True):
        assert each.x <= x < x + 12 <= each.x + each.w
        assert each.y <= y < y + 12 <= each.y + each.h
    searchers = (
        f"another face detector searched: ego_blur_face.jit (SHA-256 {sha256_of(face)}); another plate detector "
        f"searched: ego_blur_lp.jit (SHA-256 {sha256_of(plate)}); not searched: "
    )
    assert verdict(report).startswith(f"verdict: 2 findings (2 in privacy); {searchers}")
    redact(location_of(dataset), location_of(regions))
    assert audit(dataset, detectors=others).findings.total == 0


def with_a_recorded_pattern(taken: CommittedShard) -> None:
    """A spot beside a gray mosaic, recorded as one that the build left."""
    pixels = spot(photograph("coffee", (240, 180)), 70, 120, side=30)
    pixels[120:150, 40:70] = 90
    taken.members[0] = taken.members[0][0], release(pixels, ReleaseConfig()).jpeg
    row = taken.rows["images"][0]
    across, down = row["source_width"] / row["width"], row["source_height"] / row["height"]
    place = {"x": round(40 * across), "y": round(120 * down), "w": round(30 * across), "h": round(30 * down)}
    row["regions"] = [{"kind": "plate", "score": 1.0, **place, "source": "manual"}]
    pattern = {"kind": "face", "score": 0.95, "x": 61, "y": 111, "w": 48, "h": 48, "source": "spot.pt"}
    row["residual_detections"] = [{**pattern, "orientation": 0}]


def test_what_the_build_left_because_redaction_made_it_is_counted_and_strictly_a_finding(
    dataset: Path, modules: Path, tmp_path: Path
) -> None:
    ShardEdit(1, with_a_recorded_pattern)(dataset)
    spots = given(("face", modules / "spot.pt"))
    report = audit(dataset, detectors=spots, pictures=location_of(tmp_path / "pictures"))
    assert Code.STILL_DETECTED not in report.findings.counts
    assert (report.privacy.residual, report.privacy.found_total) == (1, 0)
    assert "; 1 detection caused by redaction and left (--strict counts them)" in verdict(report)
    assert not (tmp_path / "pictures").exists()
    strict = audit(dataset, detectors=spots, strict=True)
    assert strict.findings.counts[Code.STILL_DETECTED] == 1
    assert (strict.privacy.residual, strict.privacy.found_total) == (0, 1)
    assert "left by the build" not in verdict(strict)


def test_the_build_s_detectors_that_are_not_here_are_named_and_the_others_search(dataset: Path, modules: Path) -> None:
    ShardEdit(1, with_a_face_and_a_spot)(dataset)
    own = {
        "faces": {"detector": "0" * 64, "score": None},
        "plates": {"detector": "none", "score": None},
        "orientations": [0, 180],
    }
    reconfigure(dataset, deidentify=own)
    report = audit(dataset, 3, detectors=given(("face", modules / "spot.pt")))
    assert [each.name for each in report.privacy.detectors] == ["spot.pt"]
    assert report.privacy.agreement == ()
    gaps = [(gap.reason, gap.images, gap.kind) for gap in report.unsearched]
    assert gaps == [("detector_not_here", 6, "face"), ("no_detector", 6, "plate"), ("not_sampled", 3, None)]
    assert "SHA-256 0000" in report.unsearched[0].detail
    assert "own" not in verdict(report)
    assert verdict(report).endswith(
        "; not searched: faces by the build's detector (not available here), plates (no detector), 3 of 6 images "
        "(not in the sample), faces rotated by 90° or 270°"
    )


def test_a_detector_that_fails_on_an_image_is_named_and_the_others_go_on(dataset: Path, modules: Path) -> None:
    ShardEdit(1, with_a_face_and_a_spot)(dataset)
    report = audit(dataset, detectors=given(("plate", modules / "failing.pt")))
    assert report.findings.counts == {Code.STILL_DETECTED: 1}
    assert report.privacy.images_checked == 6
    assert report.privacy.detectors[2].failed == 6
    (gap,) = report.unsearched
    assert (gap.reason, gap.images, gap.kind, gap.detector) == ("detector_failed", 6, "plate", "failing.pt")
    assert "only squares" in gap.detail
    limits = f"{', '.join(LIMITS)}, rotated plates by failing.pt"
    assert verdict(report).endswith(
        f"; {only_own('face and plate')}; not searched: plates by failing.pt in 6 of 6 images (it failed), {limits}"
    )


def without_detectors(dataset: Path) -> None:
    none = {"detector": "none", "score": None}
    own = load_manifest(location_of(dataset)).config["deidentify"]
    reconfigure(dataset, deidentify={**own, "faces": none, "plates": none})


def test_all_detectors_failing_is_nothing_looked_at(dataset: Path, modules: Path) -> None:
    without_detectors(dataset)
    report = audit(dataset, detectors=given(("plate", modules / "failing.pt")))
    assert (report.findings.total, report.privacy.images_checked, report.nothing_looked_at) == (0, 0, True)
    assert verdict(report).startswith("verdict: no image was searched for faces and plates (faces (no detector), ")


def test_none_searched_is_never_no_finding(dataset: Path, small_dataset: Path, tmp_path: Path) -> None:
    skipped = audit(small_dataset, 0)
    assert (skipped.findings.total, skipped.nothing_looked_at) == (0, False)
    assert verdict(skipped) == (
        "verdict: no image was searched for faces and plates (6 of 6 images (--privacy-sample 0)); 0 findings otherwise"
    )
    without_detectors(dataset)
    report = audit(dataset)
    assert (report.findings.total, report.nothing_looked_at, report.privacy.images_checked) == (0, True, 0)
    assert verdict(report) == (
        "verdict: no image was searched for faces and plates (faces (no detector), plates (no detector)); 0 findings "
        "otherwise"
    )
    foreign = audit(loosen(small_dataset, tmp_path / "loose"), 1)
    assert (foreign.findings.total, foreign.privacy.images_checked) == (0, 1)
    assert verdict(foreign).startswith(
        "verdict: no findings; only segmint's own face and plate detectors searched, and they miss some; not searched: "
        "5 of 6 images (not in the sample), faces under 20 px"
    )


def test_images_that_cannot_be_read_are_named(dataset: Path) -> None:
    ShardEdit(1, lambda taken: taken.edit_member(0, lambda data: data[: len(data) // 2] + data[-2:]))(dataset)
    report = audit(dataset, sample=0)
    assert report.findings.counts == {Code.BAD_JPEG: 1}
    assert report.unsearched == (UnsearchedImages("unreadable", 1, 6),)
    assert f"; {only_own('face and plate')}; not searched: 1 of 6 images (couldn't be read), " in verdict(report)


@pytest.mark.parametrize(
    ("change", "sample", "message"),
    [
        (lambda dataset: None, 0, "can't be used with --privacy-sample 0, which searches no images"),
        (lambda dataset: reconfigure(dataset, release={"format": "annotations"}), 20, "only annotations"),
    ],
)
def test_a_detector_that_would_look_at_nothing_is_refused(
    dataset: Path, change: Callable[[Path], None], sample: int, message: str
) -> None:
    change(dataset)
    with pytest.raises(UsageError, match=message):
        audit(dataset, sample, detectors=given(("face", "mtcnn")))


def test_a_wrong_file_is_refused_before_anything_is_looked_at(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.quality.audit.audit.audit_integrity", None)
    other = saved(OnlyScores(), tmp_path / "other.pt")
    with pytest.raises(UsageError, match="failed on a blank image"):
        audit(small_dataset, detectors=given(("face", other)))
    loose = loosen(small_dataset, tmp_path / "loose")
    monkeypatch.setattr("segmint.pipeline.quality.audit.audit.open_tables", None)
    credits = location_of(tmp_path / "credits.csv")
    for wrong, message in (
        ({"detectors": given(("face", other))}, "failed on a blank image"),
        (
            {"detectors": given(("face", "mtcnn")), "attributions": credits},
            "Remove --attributions",
        ),
        ({"strict": True}, "Remove --strict"),
    ):
        with pytest.raises(UsageError, match=message):
            audit(loose, **wrong)
    with pytest.raises(UsageError, match="can't be used with --privacy-sample 0"):
        audit(loose, 0, detectors=given(("face", "mtcnn")))


def test_detectors_search_data_that_segmint_did_not_write(small_dataset: Path, modules: Path, tmp_path: Path) -> None:
    loose = loosen(small_dataset, tmp_path / "loose", name="photo ")
    marked = loose / "photo 4.jpg"
    pixels = spot(np.asarray(Image.open(marked)), 40, 30, 24)
    Image.fromarray(pixels).save(marked, quality=98)
    detectors = given(("plate", modules / "large.pt"))
    regions, pictures = tmp_path / "regions.jsonl", tmp_path / "pictures"
    report = audit(loose, detectors=detectors, regions=location_of(regions), pictures=location_of(pictures))
    assert report.findings.counts == {Code.STILL_DETECTED: 1}
    (finding,) = report.findings
    assert (finding.image, finding.expected, finding.where[:9]) == (4, "no plate", "photo 4: ")
    (row,) = map(json.loads, regions.read_text().splitlines())
    assert (row["id"], row["image"], row["kind"], row["found_by"]) == (4, "photo 4", "plate", ["large.pt"])
    assert row["x"] <= 40 < 64 <= row["x"] + row["w"]
    assert row["y"] <= 30 < 54 <= row["y"] + row["h"]
    (picture,) = pictures.iterdir()
    assert picture.name.startswith("photo_4_")
    assert picture.name.endswith("_1_plate.jpg")
    assert (report.privacy.images_checked, report.privacy.found_total) == (6, 1)
    faces = UnsearchedImages("no_detector", 6, 6, "face")
    assert report.unsearched == (faces,)
    assert verdict(report).endswith(
        f"; another plate detector searched: large.pt (SHA-256 {sha256_of(modules / 'large.pt')}); not searched: faces "
        "(no detector), rotated plates by large.pt"
    )
    some = audit(loose, 1, detectors=detectors)
    assert (some.privacy.images_checked, some.unsearched) == (1, (faces, UnsearchedImages("not_sampled", 5, 6)))
