"""The configuration as a tree: defaults, profiles, identity."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from segmint.catalogs.layout import differing_keys
from segmint.infra.errors import UsageError
from segmint.model.automatic.settings import MaskSettings
from segmint.operators.custom.contract import adding_models
from segmint.pipeline.config.config import Config, LicenseConfig, as_pinned, identity, load_config, model_terms

NEEDED = {"name": "street", "catalog": "catalog.csv", "output": "out", "license": {"allow": ["CC0-1.0"]}}

FULL = """
name: street-2026
catalog: s3://licensed/catalog.parquet
output: s3://datasets/street-2026
images_per_shard: 500
license: {allow: [CC0-1.0, CC-BY-4.0, LicenseRef-acme-2026], require_redistributable: false}
ingest: {max_pixels: 250_000_000, min_short_side: 64, timeout_s: 120}
deidentify: {faces: {detector: mtcnn}, plates: {detector: clp}}
release: {short_side: 1500, jpeg_quality: 95, format: images}
masks: {profile: sa1b, points_per_side: 32, crop_n_layers: 2, crop_n_points_downscale_factor: 2,
        crop_overlap_ratio: 0.3413, pred_iou_thresh: 0.88, stability_score_thresh: 0.95, stability_score_offset: 1.0,
        box_nms_thresh: 0.7, crop_nms_thresh: 0.7, min_mask_region_area: 100, max_mask_area_ratio: 0.95}
model: {weights: auto, device: auto, precision: auto, threads: auto}
resources: {address: auto, prepare: {actors: auto, num_cpus: 1}, segment: {actors: auto, num_gpus: auto, num_cpus: 2}}
storage: {"s3://licensed": {profile: vendor}, "s3://datasets": {endpoint_url: "https://s3.example.org"}}
max_reject_ratio: 0.5
max_faults: 0
stall_timeout: 1800
"""


def config(**changes) -> Config:
    return Config(**{**NEEDED, **changes})


def test_every_documented_key_is_there_with_the_documented_default(tmp_path):
    (tmp_path / "full.yaml").write_text(FULL)
    full = load_config(str(tmp_path / "full.yaml"))
    least = config(
        name="street-2026",
        catalog=full.catalog,
        output=full.output,
        license={"allow": full.license.allow},
        storage=full.storage,
        masks={"crop_overlap_ratio": 0.3413},
    )
    assert full == least


def test_overlap_defaults_to_the_exact_ratio_of_the_paper():
    assert config().masks.crop_overlap_ratio == 512 / 1500


def test_the_tree_is_frozen():
    with pytest.raises(ValidationError):
        config().images_per_shard = 3
    with pytest.raises(ValidationError):
        config().masks.points_per_side = 3


@pytest.mark.parametrize(("written", "read"), [("auto", "auto"), (3, 3), ([1, 4], (1, 4)), ((2, 2), (2, 2))])
def test_actors_take_three_forms(written, read):
    assert config(resources={"segment": {"actors": written}}).resources.segment.actors == read


@pytest.mark.parametrize("actors", [0, True, "many", [1], [4, 1], [0, 2], [1, 2, 3], 1.5])
def test_other_actors_are_refused_with_the_three_forms(actors):
    with pytest.raises(ValidationError, match=r"expected auto, a whole number of at least 1, or \[min, max\]"):
        config(resources={"prepare": {"actors": actors}})


def test_licenses_are_spelled_as_spdx_spells_them():
    assert config(license={"allow": ["cc-by-4.0"]}).license.allow == ("CC-BY-4.0",)
    with pytest.raises(ValidationError, match=r"did you mean CC-BY-4\.0"):
        config(license={"allow": ["CC-BY"]})
    with pytest.raises(ValidationError, match="allow"):
        config(license={"allow": []})


def test_a_policy_judges_by_the_configured_licenses():
    policy = LicenseConfig(allow=("CC0-1.0",)).policy(date(2026, 1, 31))
    assert policy.judge("CC0-1.0", None, date(2026, 1, 31)) is None
    assert policy.judge("CC-BY-4.0", None, None) is not None
    assert policy.judge("CC0-1.0", None, date(2026, 1, 30)) is not None


@pytest.mark.parametrize(("written", "respected"), [("auto", True), (True, True), (False, False)])
def test_opt_outs_are_respected_in_new_datasets_unless_the_configuration_says_otherwise(written, respected):
    given = config(license={"allow": ["CC0-1.0"], "respect_opt_out": written})
    assert identity(given)["license"]["respect_opt_out"] is respected
    assert (given.license.policy(date(2026, 1, 1)).judge("CC0-1.0", None, None, True) is not None) is respected
    for begun in (True, False):
        kept = as_pinned(given, {**identity(given), "license": {"respect_opt_out": begun}}).license.respects_opt_out
        assert kept is (begun if written == "auto" else respected)
    with pytest.raises(ValidationError, match="expected auto, true, or false"):
        config(license={"allow": ["CC0-1.0"], "respect_opt_out": "yes"})


def test_formats_are_those_that_a_dataset_was_begun_with_and_all_in_a_new_one():
    first = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]
    assert identity(config())["ingest"]["formats"] == [*first, "AVIF", "HEIC"]
    chosen = config(ingest={"formats": ["PNG", "JPEG"]})
    assert identity(chosen)["ingest"]["formats"] == ["JPEG", "PNG"]

    begun = identity(config(ingest={"formats": first}))
    assert identity(as_pinned(config(), begun)) == begun
    assert as_pinned(config(), begun).ingest.decoded == tuple(first)
    assert differing_keys(begun, identity(as_pinned(chosen, begun))) == ["ingest.formats"]
    with pytest.raises(UsageError, match=r"ingest\.formats \['JXL'\], but segmint .* only decodes JPEG"):
        as_pinned(config(), {**begun, "ingest": {"formats": ["JXL"]}})


@pytest.mark.parametrize(
    "storage",
    [
        {"s3://b": {"secret": "hunter2"}},
        {"s3://b": {"key": "hunter2"}},
        {"s3://b": {"endpoint_url": "https://me:hunter2@example.org"}},
        {"gs://b": {"client_kwargs": {"token": "hunter2"}}},
        {"gs://b": {"session_kwargs": {"headers": {"Authorization": "Bearer hunter2"}}}},
        {"gs://b": {"endpoints": [{"url": "https://me:hunter2@example.org"}]}},
    ],
)
def test_credentials_are_refused_and_not_repeated(storage):
    with pytest.raises(ValidationError) as caught:
        config(storage=storage)
    assert "credential" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["catalog", "output", "assets"])
def test_uris_hold_no_credentials(key):
    with pytest.raises(ValidationError) as caught:
        config(**{key: "s3://me:hunter2@bucket/x"})
    assert "hunter2" not in str(caught.value)


def test_identity_is_json_and_round_trips():
    tree = identity(config())
    assert json.loads(json.dumps(tree)) == tree


@pytest.mark.parametrize(
    "runtime",
    [
        {"catalog": "elsewhere.csv"},
        {"output": "elsewhere"},
        {"resources": {"prepare": {"actors": 3}}},
        {"storage": {"s3://b": {"profile": "p"}}},
        {"assets": "s3://mirror"},
        {"ingest": {"timeout_s": 5}},
        {"masks": {"points_per_chunk": 16}},
        {"masks": {"drop_redaction_artifacts": 0.8}},
        {"masks": {"profile": "sa1b", "points_per_side": 32}},
        {"model": {"device": "cpu", "threads": 1, "precision": "bf16"}},
        {"max_reject_ratio": 0.9},
        {"max_faults": 5},
        {"stall_timeout": 3},
        {"window_shards": 1},
        {"rows_per_block": 1},
        {"retry_wait_s": 0},
        {"allow_mixed_numerics": True},
        {"license": {"allow": ["CC0-1.0", "CC0-1.0"], "policy_date": "2026-01-01"}},
    ],
)
def test_runtime_keys_are_no_identity(runtime):
    assert identity(config(**runtime)) == identity(config())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"name": "other"}, "name"),
        ({"images_per_shard": 7}, "images_per_shard"),
        ({"license": {"allow": ["CC0-1.0", "CC-BY-4.0"]}}, "license.allow"),
        ({"ingest": {"min_short_side": 1}}, "ingest.min_short_side"),
        ({"deidentify": {"faces": {"detector": "none"}}}, "deidentify.faces.detector"),
        ({"release": {"jpeg_quality": 80}}, "release.jpeg_quality"),
        ({"masks": {"points_per_side": 16}}, "masks.points_per_side"),
        ({"masks": {"profile": "official"}}, "masks.crop_n_layers"),
        ({"masks": {"drop_redaction_artifacts": 0.5}}, "masks.drop_redaction_artifacts"),
        ({"masks": {"drop_redaction_artifacts": "off"}}, "masks.drop_redaction_artifacts"),
        ({"model": {"weights": "vit_h"}}, "model.weights"),
    ],
)
def test_identity_keys_are_named_when_they_differ(changed, named):
    differences = list(differing_keys(identity(config()), identity(config(**changed))))
    assert named in differences if changed == {"masks": {"profile": "official"}} else differences == [named]


@pytest.mark.parametrize(
    ("profile", "written", "iou"),
    [
        ("sa1b", "auto", 0.8),
        ("official", "auto", None),
        ("sa1b", "off", None),
        ("sa1b", False, None),  # YAML's off
        ("official", 1, 1.0),
    ],
)
def test_artifacts_of_redaction_are_dropped_by_profile(profile, written, iou):
    masks = config(masks={"profile": profile, "drop_redaction_artifacts": written}).masks
    assert masks.artifact_iou == iou
    assert type(masks.artifact_iou) is type(iou)


@pytest.mark.parametrize("value", [0, -1, 1.01, True, None, "on", "0.8", float("nan")])
def test_other_values_for_artifacts_are_refused(value):
    with pytest.raises(ValidationError, match="expected auto, off, or a number over 0 and up to 1"):
        config(masks={"drop_redaction_artifacts": value})


def test_a_key_that_only_one_side_has_is_a_difference():
    assert list(differing_keys({"a": {"b": 1}}, {"a": {}})) == ["a.b"]


def test_weights_and_detectors_are_known_by_their_hashes():
    here = config(model={"weights": "/here/w.pt"})
    there = config(model={"weights": "/there/w.pt"})
    assert identity(here) != identity(there)
    assert identity(here, {"/here/w.pt": "ab12"}) == identity(there, {"/there/w.pt": "ab12"})


def test_overrides_win_over_the_file(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(NEEDED))
    loaded = load_config(
        str(path),
        [
            "masks.points_per_side=16",
            "resources.segment.actors=[1, 3]",
            "name=other",
            'storage."s3://a.b".region=eu-1',
            "stall_timeout=1e2",
        ],
    )
    assert loaded.masks.points_per_side == 16
    assert loaded.resources.segment.actors == (1, 3)
    assert loaded.name == "other"
    assert loaded.storage == {"s3://a.b": {"region": "eu-1"}}
    assert loaded.stall_timeout == 100
    with pytest.raises(UsageError):
        load_config(str(path), ["masks.points_per_side=none"])


def test_m2m_is_only_stored_where_it_is_used():
    """A dataset that was begun before the key existed has no such key."""
    assert "use_m2m" not in identity(config())["masks"]
    assert identity(config(masks={"use_m2m": True}))["masks"]["use_m2m"] is True
    assert config(masks={"profile": "sam2"}).masks.settings() == MaskSettings.sam2()
    assert config(masks={"profile": "sam2", "use_m2m": True}).masks.settings().use_m2m


def test_a_list_of_regions_to_leave_alone_counts_by_its_content() -> None:
    listed = config(deidentify={"left_alone": "list.jsonl", "max_redacted_share": 0.5})
    name = listed.deidentify.left_alone
    assert name is not None
    assert identity(listed, {name: "1" * 64})["deidentify"]["left_alone"] == "1" * 64
    assert identity(listed)["deidentify"]["max_redacted_share"] == 0.5
    assert identity(config())["deidentify"]["left_alone"] is None


SEGMENTER = {"stage": "tests.support.segmenters.Bright", "arguments": {"threshold": 90}}
SEGMENTER_IDENTITY = {
    **SEGMENTER,
    "version": "1",
    "wants_original": False,
    "wants_prompts": False,
    "filters": {"min_area": 9},
}


def test_a_segmenter_takes_the_place_of_masks_and_model_in_the_identity() -> None:
    config = Config.model_validate({**NEEDED, "segmenter": {**SEGMENTER, "filters": {"min_area": 9}}})
    tree = identity(config)
    assert not {"masks", "model", "stages"} & tree.keys()
    assert tree["segmenter"] == SEGMENTER_IDENTITY
    others = {"on_error": "reject", "batch_size": 4, "resources": {"actors": [1, 2], "num_gpus": 0.5}}
    assert (
        identity(Config.model_validate({**NEEDED, "segmenter": {**SEGMENTER, "filters": {"min_area": 9}, **others}}))
        == tree
    )
    assert "segmenter" not in identity(Config.model_validate(NEEDED))


def test_the_terms_of_a_model_are_what_its_class_and_the_configuration_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def terms(**given: Any) -> tuple[str | None, str | None, str | None]:
        config = Config.model_validate({**NEEDED, "segmenter": {**SEGMENTER, **given}})
        assert config.segmenter is not None
        stated = model_terms(config.segmenter)
        return stated.license, stated.terms, stated.weights_sha256

    def stated_by_class(name: str, value: Any) -> None:
        monkeypatch.setattr(f"tests.support.segmenters.Bright.{name}", value, raising=False)

    assert terms() == (None, None, None)
    before = identity(Config.model_validate({**NEEDED, "segmenter": SEGMENTER}))
    stated_by_class("license", "apache-2.0")
    stated_by_class("terms", lambda threshold: f"Only above {threshold}.")
    stated_by_class("weights_sha256", "ab" * 32)
    assert terms() == ("Apache-2.0", "Only above 90.", "ab" * 32)
    assert terms(license="Our license") == ("Our license", "Only above 90.", "ab" * 32)
    assert terms(terms="https://user:hunter2@example.org/t")[1] == "https://[redacted]@example.org/t"
    stated = Config.model_validate({**NEEDED, "segmenter": {**SEGMENTER, "license": "MIT", "terms": "none"}})
    assert identity(stated) == before
    with pytest.raises(ValidationError, match="at least 1 character"):
        terms(license="")
    stated_by_class("license", 3)
    with pytest.raises(
        UsageError, match=r"segmenter tests\.support\.segmenters\.Bright has invalid attributes: license"
    ):
        terms()
    stated_by_class("license", None)
    stated_by_class("weights_sha256", "abc")
    with pytest.raises(UsageError, match=r"has invalid attributes: weights_sha256"):
        terms()
    stated_by_class("weights_sha256", lambda folder: folder)
    with pytest.raises(UsageError, match=r"can't state its license and terms: TypeError"):
        terms()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"masks": {"profile": "official"}}, "segmenter takes the place of SAM, so remove masks"),
        ({"model": {"weights": "vit_b"}, "masks": {}}, "so remove masks and model"),
        ({"resources": {"segment": {"actors": 2}}}, r"so remove resources\.segment"),
    ],
)
def test_a_segmenter_excludes_the_settings_of_sam(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config.model_validate({**NEEDED, "segmenter": SEGMENTER, **more})


def test_a_segmenter_is_no_stage_and_a_stage_no_segmenter() -> None:
    stage = {"stage": "tests.support.custom_stages.Mean"}
    original = {"stage": "tests.support.segmenters.Original", "after": "segment"}
    for given, told in (
        ({"stages": [SEGMENTER]}, "Bright makes masks: to add them to SAM's, set `after: segment`"),
        ({"stages": [{**SEGMENTER, "after": "prepare"}]}, "to add them to SAM's, set `after: segment`"),
        ({"stages": [original]}, "without wants_original; to replace SAM's, set it as segmenter"),
        ({"stages": [{**stage, "filters": {}}]}, "Mean adds no masks: remove filters"),
        ({"stages": [{**stage, "on_error": "hold", "filters": {}}]}, "remove filters and on_error"),
        ({"stages": [{**stage, "license": "MIT", "terms": "none"}]}, "remove license and terms"),
        ({"segmenter": stage}, "doesn't set masks = True"),
        (
            {"segmenter": SEGMENTER, "stages": [{"stage": "tests.support.segmenters.BrightStage"}]},
            "the same name, bright",
        ),
    ):
        with pytest.raises(UsageError, match=told):
            Config.model_validate({**NEEDED, **given}).load_stages()
    both = Config.model_validate({**NEEDED, "segmenter": SEGMENTER, "stages": [stage]})
    assert [spec.name for spec in both.load_stages()] == ["mean", "bright"]
    assert list(identity(both)["stages"]) == ["mean"]


def test_a_stage_that_adds_masks_is_identified_by_its_filters_too() -> None:
    adding = {**SEGMENTER, "after": "segment", "filters": {"min_area": 9}, "on_error": "reject"}
    config = Config.model_validate({**NEEDED, "stages": [{"stage": "tests.support.custom_stages.Mean"}, adding]})
    tree = identity(config)
    assert {"masks", "model"} <= tree.keys()
    of_bright = {"place": 1, "after": "segment", **SEGMENTER_IDENTITY}
    assert tree["stages"]["bright"] == of_bright
    assert adding_models(tree) == {config.load_stages()[1].sha256}
    assert adding_models(identity(Config.model_validate(NEEDED))) == frozenset()
    assert "filters" not in tree["stages"]["mean"]
    other = Config.model_validate({**NEEDED, "stages": [{**adding, "filters": {}, "on_error": "hold"}]})
    assert identity(other)["stages"]["bright"] == {**of_bright, "place": 0, "filters": {}}
    assert adding_models(identity(other)) == adding_models(tree)
