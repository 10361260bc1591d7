"""A small dataset with all that a report may have to show, and an audit of it with findings: made-up rows, no model."""

import json
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import CatalogPart, DatasetHandle, DatasetManifest, ModelWeights
from segmint.catalogs.layout import MANIFEST, json_sha256, part_path
from segmint.catalogs.lineage import TrainingDatasetRef, TrainingRound
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.operators.describe import describe_table
from segmint.operators.rows import SEGMENTED, to_table
from segmint.operators.shards.write import ShardTask, write_shard
from segmint.pipeline.engine.study.privacy import sample_privacy, score_privacy
from segmint.pipeline.quality.audit.audit import AuditOptions
from tests.support.committed import row_of
from tests.support.locations import location_of
from tests.support.named_image import image_of
from tests.support.rated import rate

QUICK = AuditOptions(sample=4, privacy_sample=0, now=datetime(2026, 11, 20, tzinfo=UTC))
"""Without detectors, whose loading takes longest."""

ROWS = 8
"""Rows of the dataset, in two shards; the last row of each is refused."""

SCRIPT = '<script>alert("x")</script>'
ATTRIBUTION = f"{SCRIPT} & **Zoë** [link](javascript:alert(1)) | `code` https://example.org"
IMAGE_ID = f"photo-{SCRIPT}"

CONFIG: dict[str, Any] = {
    "images_per_shard": 4,
    "license": {"allow": ["CC-BY-4.0", "LicenseRef-acme"], "require_redistributable": False},
    "deidentify": {"faces": {"detector": "mtcnn", "score": None}, "plates": {"detector": "none", "score": None}},
    "release": {"format": "images", "short_side": 1500, "jpeg_quality": 95},
    "masks": {
        "profile": "sa1b",
        "points_per_side": 32,
        "crop_n_layers": 0,
        "pred_iou_thresh": 0.1,
        "stability_score_thresh": 0.1,
    },
}

_COUNTRIES = ("DE", "KE", None, "BR", "US", "IN", "DE", "DE")


def write_reported(folder: Path) -> str:
    """Commit the dataset; its third image has no mask, and the first one a name and an attribution of an attacker.

    Two people rated some of its masks.
    """
    uri, storage = str(folder), Storage()
    manifest = DatasetManifest(
        name="street & <b>2026</b>",
        config=CONFIG,
        config_sha256=json_sha256(CONFIG),
        numerics={"device": "cpu", "precision": "fp32"},
        code_version="0.4.0",
        weights=ModelWeights(name="mobile_sam", sha256="0" * 64),
        catalog=(
            CatalogPart(path=part_path(0, "0" * 64), rows=ROWS, sha256="0" * 64, source_sha256="0" * 64, first_shard=0),
        ),
        images_per_shard=4,
        policy_date=date(2026, 1, 1),
        lineage=(
            TrainingRound(weights="1" * 64, name="vit_b"),
            TrainingRound(
                weights="0" * 64, name="mobile_sam", datasets=(TrainingDatasetRef(name=SCRIPT, digest="2" * 64),)
            ),
        ),
    )
    storage.put(join(uri, MANIFEST), manifest.to_json())
    for shard in range(2):
        rows = [_row(ordinal) for ordinal in range(4 * shard, 4 * shard + 4)]
        table = describe_table(to_table(rows, SEGMENTED))
        task = ShardTask(
            shard=shard,
            start=4 * shard,
            stop=4 * shard + 4,
            dataset=DatasetHandle.open(location_of(uri)),
            numerics=manifest.numerics_fingerprint,
            max_reject_ratio=1.0,
            generation=1,
        )
        assert write_shard(task, [(0, 4)], table).status == "committed"
    rate(location_of(uri), {"Ada": [8, 6, 10, 9, 7], SCRIPT: [9, 3]})
    return uri


def score_a_study(uri: str, folder: Path) -> None:
    """Have people find a face in one of the dataset's images, and write the score of that privacy study."""
    sample_privacy(location_of(uri), ROWS, 0, location_of(folder))
    images = json.loads((folder / "manifest.json").read_text())["images"]
    answers = {
        "categories": [{"id": 1, "name": "face"}],
        "images": [{"id": image["id"], "file_name": f"sa_{image['id']}.jpg"} for image in images],
        "annotations": [{"id": 1, "image_id": images[0]["id"], "category_id": 1, "bbox": [1, 1, 8, 8]}],
    }
    (folder / "corrected.json").write_text(json.dumps(answers))
    (folder / "score.json").write_text(json.dumps(asdict(score_privacy(location_of(folder)))))


def audit_with_findings(uri: str, path: Path) -> dict[str, Any]:
    """Write an audit of that dataset as `segmint audit --json` does, with a finding of each area; returns it."""
    findings = [
        _finding("mask_area", "masks/sa_000000-0123456789ab.parquet", "mask 20001", "600", "601"),
        _finding("still_detected", "shards/sa_000000-0123456789ab.tar", "id 2", "no face", SCRIPT),
        _finding("missing_attribution", "images/sa_000001-0123456789ab.parquet", "ordinal 4", "a name", "none"),
    ]
    audit = {
        "dataset": uri,
        "kind": "segmint",
        "scope": "all",
        "shards": 2,
        "sample": 100,
        "findings_total": 103,
        "findings_by_code": {"mask_area": 101, "missing_attribution": 1, "still_detected": 1},
        "findings": findings,
        "checked": {"commits": 2, "files": 8, "bytes": 4096, "images": 6, "rejects": 2, "masks": 10},
        "not_built": [[2, 2]],
        "files_of_writers": ["shards/sa_000002-0123456789ab.tar"],
        "not_compared": [],
        "licenses": {
            "judged_on": "2026-11-20",
            "by_license": [{"license": "CC-BY-4.0", "images": 6, "allowed": True}],
            "by_provider": [],
            "expired": 0,
            "expired_since_build": 0,
            "without_attribution": 1,
        },
        "privacy": {
            "images_checked": 6,
            "detectors": [
                {"kind": "face", "name": "mtcnn", "score": 0.9, "found": 1, "images": 1, "inside_regions": 0}
            ],
            "found": [
                {
                    "id": 2,
                    "shard": 0,
                    "kind": "face",
                    "detector": "mtcnn",
                    "score": 0.97,
                    "x": 1,
                    "y": 2,
                    "w": 3,
                    "h": 4,
                }
            ],
            "found_total": 1,
            "inside_regions": 0,
        },
        "duplicates": {"images_compared": 6, "distance": 3, "repeated_sources": 0, "similar": 2},
        "notes": [f"a note {SCRIPT}"],
        "statistics": None,
    }
    path.write_text(json.dumps(audit), encoding="utf-8")
    return audit


def _row(ordinal: int) -> dict[str, Any]:
    row = row_of(ordinal, refused=ordinal % 4 == 3)
    if "release" not in row:
        return row
    region = {"kind": "face", "score": 0.99, "x": 1, "y": 2, "w": 3, "h": 4, "source": "mtcnn"}
    changes: dict[str, Any] = {
        "provider": "Acme $tock$ pictures",
        "country": _COUNTRIES[ordinal],
        "source_width": 160,
        "source_height": 120,
        "faces": int(ordinal == 1),
        "regions": [region] if ordinal == 1 else [],
    }
    if ordinal == 0:
        changes |= {"image_id": IMAGE_ID, "attribution": ATTRIBUTION, "license": "LicenseRef-acme"}
    if ordinal == 2:
        changes |= {"masks": []}
    return {**row, **changes}


def _finding(code: str, file: str, where: str, expected: str, found: str) -> dict[str, Any]:
    place = {"shard": 0, "file": file, "where": where, "image": image_of(where)}
    return {"code": code, **place, "expected": expected, "found": found}
