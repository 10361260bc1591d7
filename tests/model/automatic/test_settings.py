"""Profiles give every key a default; explicit keys win; a wrong key or value names itself."""

import dataclasses
import pickle

import pytest

from segmint.model.automatic.settings import MaskSettings


def test_official_has_the_reference_codes_defaults() -> None:
    settings = MaskSettings.official()

    assert settings.points_per_side == 32
    assert (settings.crop_n_layers, settings.crop_n_points_downscale_factor) == (0, 1)
    assert settings.crop_overlap_ratio == 512 / 1500
    assert (settings.pred_iou_thresh, settings.stability_score_thresh) == (0.88, 0.95)
    assert settings.stability_score_offset == 1.0
    assert (settings.box_nms_thresh, settings.crop_nms_thresh) == (0.7, 0.7)
    assert (settings.min_mask_region_area, settings.max_mask_area_ratio) == (0, 0)


def test_sam2_has_the_defaults_of_sam_2s_reference_code() -> None:
    assert MaskSettings.sam2() == dataclasses.replace(MaskSettings.official(), profile="sam2", pred_iou_thresh=0.8)
    assert not MaskSettings.sam2().use_m2m
    with pytest.raises(ValueError, match=r"masks.use_m2m is 1: expected true or false"):
        MaskSettings.sam2(use_m2m=1)


def test_official_halves_the_grid_once_crops_are_asked_for() -> None:
    assert MaskSettings.official(crop_n_layers=1).crop_n_points_downscale_factor == 2
    assert MaskSettings.official(crop_n_layers=1, crop_n_points_downscale_factor=1).crop_n_points_downscale_factor == 1


def test_sa1b_prompts_as_the_paper_counts_them() -> None:
    settings = MaskSettings.sa1b()

    sides = [settings.points_of_layer(layer) for layer in range(settings.crop_n_layers + 1)]
    assert sides == [32, 16, 8]
    assert sum(side**2 * 4**layer for layer, side in enumerate(sides)) == 3072
    assert (settings.min_mask_region_area, settings.max_mask_area_ratio) == (100, 0.95)


def test_explicit_keys_override_a_profile_found_by_name() -> None:
    settings = MaskSettings.of("sa1b", points_per_side=8, pred_iou_thresh=0)

    assert (settings.profile, settings.points_per_side, settings.pred_iou_thresh) == ("sa1b", 8, 0)


def test_a_profile_gives_what_is_left_out_its_defaults() -> None:
    assert MaskSettings() == MaskSettings.sa1b()
    assert MaskSettings(points_per_side=16) == MaskSettings.sa1b(points_per_side=16)
    assert MaskSettings(profile="official", crop_n_layers=1) == MaskSettings.official(crop_n_layers=1)
    assert dataclasses.replace(MaskSettings.official(), points_per_side=4) == MaskSettings.official(points_per_side=4)
    assert pickle.loads(pickle.dumps(MaskSettings())) == MaskSettings()


def test_the_device_decides_the_chunk_where_none_is_given() -> None:
    free, given = MaskSettings.sa1b(), MaskSettings.sa1b(points_per_chunk=5)
    assert [free.chunk_on(device) for device in ("cpu", "cuda")] == [8, 256]
    assert [given.chunk_on(device) for device in ("cpu", "cuda")] == [5, 5]
    many = MaskSettings.sa1b(points_per_chunk=1024)  # as a dataset of a CPU may have it
    assert many.chunk_on("cpu") == 1024
    with pytest.raises(ValueError, match="from 1 to 1023"):
        many.chunk_on("cuda")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("points_per_side", 0, "at least 1"),
        ("points_per_side", 3, "at least 4"),
        ("points_per_side", True, "an integer"),
        ("crop_n_layers", -1, "at least 0"),
        ("crop_n_points_downscale_factor", 1.5, "an integer"),
        ("crop_overlap_ratio", 1.2, "from 0 to 1"),
        ("pred_iou_thresh", float("nan"), "finite number"),
        ("stability_score_offset", -1, "at least 0"),
        ("box_nms_thresh", "0.7", "from 0 to 1"),
        ("crop_nms_thresh", -0.1, "from 0 to 1"),
        ("min_mask_region_area", 0.5, "an integer"),
        ("max_mask_area_ratio", 95, "from 0 to 1"),
        ("points_per_chunk", 0, "at least 1"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_was_expected(key: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        MaskSettings.sa1b(**{key: value})

    message = str(caught.value)
    assert f"masks.{key} is {value!r}" in message
    assert expected in message


def test_a_wrong_key_or_profile_names_itself() -> None:
    with pytest.raises(ValueError, match=r"masks\.point_per_side .*points_per_side"):
        MaskSettings.official(point_per_side=8)
    with pytest.raises(ValueError, match=r"masks\.profile is 'sa2'"):
        MaskSettings.of("sa2")
