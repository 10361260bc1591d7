"""Settings and prompts are checked before anything is loaded, and say what was expected."""

import pytest

from segmint.infra.errors import UsageError
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.masks.options import (
    MasksOptions,
    PhotographPrompt,
    check_device,
    check_prompts,
    masks_config,
    read_prompts,
    release_config,
)


def test_settings_of_the_released_frame_are_a_build_s():
    assert release_config(["release.short_side=1000"]) == ReleaseConfig(short_side=1000)
    with pytest.raises(UsageError, match="did you mean short_side"):
        release_config(["release.short_sid=1000"])
    with pytest.raises(UsageError, match=r"release\.format is annotations, but only builds support it"):
        release_config(["release.format=annotations"])


def test_settings_come_from_profile_and_overrides():
    assert masks_config("official", []) == MasksConfig(profile="official")
    assert masks_config("sa1b", []) == MasksConfig(crop_n_layers=0)
    assert masks_config("sa1b", ["crop_n_layers=2"]) == MasksConfig()
    assert masks_config("sa1b", ["points_per_side=8", "masks.crop_n_layers=1"]).points_per_side == 8
    with pytest.raises(UsageError, match=r"masks\.drop_redaction_artifacts is 0\.9, but only builds support it"):
        masks_config("sa1b", ["drop_redaction_artifacts=0.9"])
    with pytest.raises(UsageError) as caught:
        masks_config("sa1b", ["points_per_sid=8", "box_nms_thresh=much"])
    assert "did you mean points_per_side?" in str(caught.value)
    assert "box_nms_thresh is 'much': expected a number" in str(caught.value)


def test_a_box_and_points_are_one_prompt_together():
    assert read_prompts([], [], []) == ()
    assert read_prompts(["3,4", "5,6,0"], [], []) == (PhotographPrompt(((3, 4, 1), (5, 6, 0))),)
    assert read_prompts(["3,4,0"], ["1,2,30,40"], []) == (PhotographPrompt(((3, 4, 0),), (1, 2, 30, 40)),)
    assert read_prompts([], ["1,2,3,4", "5,6,7,8"], []) == (
        PhotographPrompt(box=(1, 2, 3, 4)),
        PhotographPrompt(box=(5, 6, 7, 8)),
    )
    texts = ["box:1,2,3,4  point:2,3,0 point:2.5,3", "point:9,9"]
    assert read_prompts([], [], texts) == (
        PhotographPrompt(((2, 3, 0), (2.5, 3, 1)), (1, 2, 3, 4)),
        PhotographPrompt(((9, 9, 1),)),
    )
    for text in texts:
        (prompt,) = read_prompts([], [], [text])
        assert read_prompts([], [], [str(prompt)]) == (prompt,)


@pytest.mark.parametrize(
    ("points", "boxes", "prompts", "told"),
    [
        (["3,4,0"], [], [], "only has background points"),
        ([], [], ["point:3,4,0 point:5,6,0"], "only has background points"),
        (["3,4"], ["1,2,3,4", "5,6,7,8"], [], "expected one box"),
        (["3,4"], [], ["point:5,6"], "can't be combined with --point or --box"),
        ([], [], ["box:1,2,3,4 box:1,2,3,4"], "at most one box"),
        ([], [], ["point:1,2 circle:3,4,5"], "expected at most one box:X,Y,W,H"),
        ([], [], [" "], "expected at most one box:X,Y,W,H"),
        ([], [], ["point:1"], "expected X,Y or X,Y,LABEL"),
        ([], [], ["box:1,2,0,4"], "positive width and height"),
        ([], ["1,2,3000000000,4"], [], "expected X,Y,W,H in pixels"),
        ([f"{'9' * 400},1"], [], [], "expected X,Y or X,Y,LABEL"),
    ],
)
def test_prompts_that_make_no_sense_are_refused_with_the_reason(points, boxes, prompts, told):
    with pytest.raises(UsageError, match=told):
        read_prompts(points, boxes, prompts)


def test_prompts_outside_the_image_are_refused():
    check_prompts([PhotographPrompt(((0, 0, 1), (10, 5, 0)), (4, 3, 6, 2))], "x.jpg", height=5, width=10)
    with pytest.raises(UsageError, match="10 x 5 pixels"):
        check_prompts([PhotographPrompt(((11, 0, 1),))], "x.jpg", height=5, width=10)
    told = r"^box .* is outside x\.jpg \(10 x 5 pixels\), at least in part: expected X,Y,W,H, which"
    for box in ((10, 0, 4, 4), (4, 3, 10, 2), (4, 3, 6, 5), (-1, 0, 4, 4), (0, -1, 4, 4)):
        with pytest.raises(UsageError, match=told):
            check_prompts([PhotographPrompt(box=box)], "x.jpg", height=5, width=10)


def test_a_device_that_exists_nowhere_is_refused():
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        check_device(device)
    with pytest.raises(UsageError, match="expected auto, cpu, cuda"):
        check_device("tpu")


def test_settings_hold_what_decides_masks_and_nothing_else():
    plain = MasksOptions().settings("1" * 64)
    assert MasksOptions(overlay=True, device="cuda", weights="vit_b").settings("1" * 64) == plain
    smaller = ReleaseConfig(short_side=100)
    for other in (
        MasksOptions(MasksConfig(points_per_side=8)),
        MasksOptions(MasksConfig(profile="official")),
        MasksOptions(precision="bf16"),
        MasksOptions(full_frame=True),
        MasksOptions(release=smaller),
        MasksOptions(prompts=(PhotographPrompt(((1, 2, 1),)),)),
        MasksOptions(prompts=(PhotographPrompt(((1, 2, 1),)),), all_masks=True),
    ):
        assert other.settings("1" * 64) != plain
    official = MasksConfig(profile="official")
    assert MasksOptions(official, release=smaller).settings("1" * 64) == MasksOptions(official).settings("1" * 64)
