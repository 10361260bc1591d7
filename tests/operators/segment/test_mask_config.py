"""The masks and model parts of the configuration."""

from dataclasses import asdict

import pytest
from pydantic import ValidationError

from segmint.model.automatic.settings import MaskSettings
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig


@pytest.mark.parametrize("profile", ["sa1b", "official"])
@pytest.mark.parametrize("layers", [None, 0, 1, 3])
def test_profile_sets_the_models_defaults(profile, layers):
    asked = {} if layers is None else {"crop_n_layers": layers}
    assert MasksConfig(profile=profile, **asked).settings() == MaskSettings.of(profile, **asked)


def test_defaults_in_the_class_are_those_of_sa1b():
    # The defaults in documentation and schemas must equal those that the validator fills in.
    declared = {name: field.default for name, field in MasksConfig.model_fields.items()}
    sa1b = asdict(MaskSettings.sa1b())
    assert declared == {**sa1b, "points_per_chunk": "auto", "drop_redaction_artifacts": "auto"}


def test_an_auto_chunk_is_filled_in_with_the_settings():
    assert MasksConfig().settings(64).points_per_chunk == 64
    assert MasksConfig(points_per_chunk=5).settings(64).points_per_chunk == 5


def test_explicit_keys_override_the_profile():
    config = MasksConfig(profile="official", min_mask_region_area=50, points_per_side=16)
    assert (config.min_mask_region_area, config.points_per_side, config.crop_n_layers) == (50, 16, 0)


def test_values_that_do_not_fit_together_are_refused():
    with pytest.raises(ValidationError, match="have a point"):
        MasksConfig(points_per_side=2, crop_n_layers=3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("profile", "sam"),
        ("points_per_side", 0),
        ("pred_iou_thresh", float("nan")),
        ("box_nms_thresh", 1.5),
        ("crop_n_layers", 40),
        ("points_per_chunk", 0),
        ("unknown", 1),
    ],
)
def test_wrong_values_are_refused(key, value):
    with pytest.raises(ValidationError) as caught:
        MasksConfig(**{key: value})
    assert key in str(caught.value)


@pytest.mark.parametrize("threads", ["auto", 1, 8])
def test_threads_are_auto_or_a_count(threads):
    assert ModelConfig(threads=threads).threads == threads


@pytest.mark.parametrize("threads", [0, -1, "all", 1.5, True])
def test_other_threads_are_refused(threads):
    with pytest.raises(ValidationError, match="expected auto or a positive integer"):
        ModelConfig(threads=threads)
