"""The paper's schedule by hand, the presets, and values that cannot be used."""

from dataclasses import replace

import pytest

from segmint.model.training.recipe import FINETUNE, MASK_MAKING, MASK_MAKING_JITTER, MASK_MAKING_LAYERS, PAPER


def test_the_papers_recipes() -> None:
    """Rate, steps, images a step, layer decay, drop path: Appendix A."""
    found = {name: (r.learning_rate, r.steps, r.batch_images, r.layer_decay, r.drop_path) for name, r in PAPER.items()}
    assert found == {
        "vit_b": (8e-4, 180_000, 128, 0.6, 0.6),
        "vit_l": (4e-4, 180_000, 128, 0.8, 0.4),
        "vit_h": (8e-4, 90_000, 256, 0.8, 0.4),
    }
    for recipe in PAPER.values():
        assert (recipe.weight_decay, recipe.dropout, recipe.warmup_steps) == (0.1, 0.1, 250)
        assert (recipe.masks_per_image, recipe.largest_mask, len(recipe.parts)) == (64, 0.9, 3)
        assert recipe.sampling.iterations == 11
        assert recipe.losses.resolution == 1024
    assert "image_encoder" not in FINETUNE.parts


def test_the_recipe_of_the_model_that_made_the_masks() -> None:
    """Steps, points, boxes, layers: Appendix B. All else is as in Appendix A."""
    for name, recipe in MASK_MAKING.items():
        assert (recipe.steps, 1 + recipe.sampling.clicks, recipe.sampling.box_share) == (177_656, 4, 0)
        assert [round(step / recipe.steps, 4) for step in recipe.decay_steps] == [0.6667, 0.963]
        paper = PAPER[name]
        assert replace(recipe, steps=paper.steps, decay_steps=paper.decay_steps, sampling=paper.sampling) == paper
    assert (MASK_MAKING_LAYERS, MASK_MAKING_JITTER) == (3, (0.1, 2.0))


def test_the_rate_warms_up_and_falls_to_a_tenth_twice() -> None:
    recipe = PAPER["vit_h"]
    steps = [0, 124, 249, 250, 59_999, 60_000, 86_665, 86_666, 89_999]
    expected = [0.004, 0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [recipe.rate_factor(step) for step in steps] == pytest.approx(expected)
    assert replace(recipe, warmup_steps=0).rate_factor(0) == 1


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("parts", (), "one or more, without duplicates, of image_encoder, prompt_encoder, mask_decoder"),
        ("parts", ("mask_decoder", "mask_decoder"), "one or more, without duplicates"),
        ("parts", ("decoder",), "one or more, without duplicates"),
        ("learning_rate", 0.0, "a number over 0"),
        ("learning_rate", float("nan"), "a number over 0"),
        ("steps", 0, "1 or more"),
        ("warmup_steps", -1, "0 or more"),
        ("decay_steps", (5, 5), "ascending steps from 1"),
        ("decay_steps", (0, 5), "ascending steps from 1"),
        ("largest_mask", 1.5, "a number over 0, up to 1"),
        ("weight_decay", -0.1, "a number of 0 or more"),
        ("layer_decay", 0.0, "a number over 0, up to 1"),
        ("drop_path", 1.0, "a number from 0 to below 1"),
        ("dropout", -0.1, "a number from 0 to below 1"),
    ],
)
def test_values_that_cannot_be_used_are_errors(key: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is .*: expected {expected}"):
        replace(FINETUNE, **{key: value})
