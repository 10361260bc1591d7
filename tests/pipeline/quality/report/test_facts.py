"""What a report says of a dataset beside its statistics."""

import json
import shutil
from pathlib import Path

from segmint.pipeline.quality.report.croissant import croissant_json
from segmint.pipeline.quality.report.facts import CreditFact, DetectorFact, RedactedRegions, gather_facts
from segmint.pipeline.quality.report.page import made_of
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.locations import location_of
from tests.support.reported import ATTRIBUTION


def test_facts_of_a_dataset(reported: str) -> None:
    with open_tables(location_of(reported)) as tables:
        facts = gather_facts(tables)
    assert (facts.images, facts.masks, facts.rejected, facts.taken_down) == (6, 10, 2, 0)
    assert facts.bytes == sum(file.size for commit in facts.commits for file in commit.files)
    assert facts.licenses == (("CC-BY-4.0", 5), ("LicenseRef-acme", 1))
    provider = "Acme $tock$ pictures"
    assert facts.credits_total == 2
    assert facts.credits == (
        CreditFact("CC-BY-4.0", provider, "Zoë", 5),
        CreditFact("LicenseRef-acme", provider, ATTRIBUTION, 1),
    )
    assert facts.redacted == (RedactedRegions("face", "mtcnn", 1, 1),)
    assert facts.detectors == (DetectorFact("faces", "mtcnn"), DetectorFact("plates", None))
    assert [detector.bundled for detector in facts.detectors] == [True, False]
    assert facts.released == (80, 60)
    assert facts.sources == (160, 120)
    assert facts.with_images


def test_settings_of_another_type_are_not_stated(reported: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(reported, tmp_path / "dataset"), "dataset.json")
    manifest = json.loads(path.read_bytes())
    manifest["config"]["license"]["allow"] = True
    manifest["config"].setdefault("masks", {}).update(points_per_side=[[32]], crop_n_layers=10**400)
    path.write_text(json.dumps(manifest))
    with open_tables(location_of(path.parent)) as tables:
        build = gather_facts(tables).build
    assert build is not None
    assert (build.allowed, build.points_per_side, build.crop_n_layers) == ((), None, None)


def test_the_precision_of_the_decoder_is_stated_if_it_has_its_own(reported: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(reported, tmp_path / "dataset"), "dataset.json")
    manifest = json.loads(path.read_bytes())
    for own, expected in (({}, "cuda, bf16"), ({"decoder_precision": "fp16"}, "cuda, bf16 with the decoder in fp16")):
        manifest["numerics"].update(device="cuda", precision="bf16", **own)
        path.write_text(json.dumps(manifest))
        with open_tables(location_of(path.parent)) as tables:
            facts = gather_facts(tables)
        assert dict(made_of(facts))["Computed on"] == expected


def test_the_licenses_of_models_that_add_masks_are_stated(reported: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(reported, tmp_path / "dataset"), "dataset.json")
    manifest = json.loads(path.read_bytes())
    stage = {"place": 0, "after": "segment", "version": "1", "filters": {}}
    manifest["config"]["stages"] = {name: {**stage, "stage": f"our.{name}"} for name in ("lamps", "old")}
    stated = {"license": "MIT", "terms": "https://example.org/terms", "weights_sha256": "ab" * 32}
    manifest["adding"] = {"lamps": stated}  # earlier versions of segmint recorded none
    path.write_text(json.dumps(manifest))
    with open_tables(location_of(path.parent)) as tables:
        facts = gather_facts(tables)
    assert facts.build is not None
    assert facts.build.adding == (
        "segmenter our.lamps, version 1, license of its model: MIT; terms: https://example.org/terms",
        "segmenter our.old, version 1, license of its model: not stated",
    )
    (sam, lamps) = json.loads(croissant_json(facts, "x"))["isBasedOn"]
    assert sam["identifier"] == f"sha256:{manifest['weights']['sha256']}"
    assert lamps == {
        "@type": "sc:SoftwareApplication",
        "name": "lamps",
        "identifier": f"sha256:{'ab' * 32}",
        "license": "https://spdx.org/licenses/MIT.html",
        "usageInfo": "https://example.org/terms",
    }


def test_a_detector_of_one_s_own_is_not_bundled() -> None:
    assert not DetectorFact("faces", "0" * 64).bundled
