import pytest

from segmint.model.training.recipe import LossSettings, SamplingSettings


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("focal_weight", -1.0, "0 or more"),
        ("dice_weight", float("nan"), "0 or more"),
        ("focal_alpha", 1.5, "from 0 to 1, or None"),
        ("focal_gamma", 0.5, "0, or 1 or more"),
        ("focal_normalization", "masks", "one of 'pixels', 'foreground'"),
        ("iou_supervision", "best", "one of 'lowest', 'all'"),
        ("resolution", 300, "one of 256, 512, 1024"),
    ],
)
def test_a_loss_setting_that_cannot_be_used_is_named(key: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is {value!r}: expected .*{expected}"):
        LossSettings(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"), [("clicks", 0), ("box_share", 1.1), ("box_noise", -0.1), ("box_noise_limit", float("inf"))]
)
def test_a_sampling_setting_that_cannot_be_used_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{key} is {value!r}: expected"):
        SamplingSettings(**{key: value})  # type: ignore[arg-type]


def test_the_papers_sampling_has_eleven_iterations() -> None:
    assert SamplingSettings().iterations == 11
    assert SamplingSettings(clicks=4).iterations == 7
