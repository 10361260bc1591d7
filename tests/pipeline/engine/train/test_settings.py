"""The configuration of a training run: problems with their places, presets, and values that do not fit together."""

import re
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.model.training.recipe import FINETUNE, MASK_MAKING, PAPER
from segmint.pipeline.engine.train.run import check_layers
from segmint.pipeline.engine.train.settings import (
    RUNTIME_KEYS,
    TrainConfig,
    identity_keys,
    load_train_config,
    recipe_of,
    with_preset,
)

GOOD = "datasets: [{uri: data/street}]\noutput: out\n"


def loaded(folder: Path, text: str = "", *overrides: str) -> TrainConfig:
    path = folder / "t.yaml"
    path.write_text(GOOD + text, encoding="utf-8")
    return load_train_config(str(path), list(overrides))


def problems(folder: Path, text: str, good: str = GOOD) -> list[str]:
    path = folder / "t.yaml"
    path.write_text(good + text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_train_config(str(path))
    return [line.strip().replace(f"{folder}/", "") for line in str(caught.value).splitlines()[1:]]


def test_wrong_keys_and_values_are_named_with_their_lines(tmp_path):
    found = problems(
        tmp_path,
        """\
datasets:
  - {uri: a, mask: human}
  - {uri: b, weight: true}
  - {uri: c, masks: humans}
stepps: 3
steps: true
losses: {focal_gamma: 0.5}
optimizer: {learning_rate: fast, decay_steps: [yes]}
""",
        "output: out\n",
    )
    assert found[0] == "t.yaml:3: datasets[0].mask is not a configuration key: did you mean masks?"
    assert found[1] == "t.yaml:4: datasets[1].weight is true: expected a number"
    assert found[2] == "t.yaml:5: datasets[2].masks is 'humans': expected 'all', 'human' or 'automatic'"
    assert found[3] == "t.yaml:6: stepps is not a configuration key: did you mean steps?"
    assert found[4] == "t.yaml:7: steps is true: expected a number"
    assert found[5].startswith("t.yaml:8: losses is {'focal_gamma': 0.5}: focal_gamma is 0.5: expected 0, or 1 or more")
    assert found[6] == "t.yaml:9: optimizer.decay_steps[0] is true: expected a number"
    assert found[7].startswith("t.yaml:9: optimizer.learning_rate is 'fast': expected a number")


def test_what_is_missing_comes_with_an_example(tmp_path):
    (line,) = problems(tmp_path, "", "output: out\n")
    assert line == "t.yaml: datasets is missing: expected a list such as [{uri: out/street}]"


@pytest.mark.parametrize(("second", "fits"), [("human", False), ("all", False), ("automatic", True)])
def test_a_dataset_is_named_twice_with_other_masks_alone(tmp_path, second, fits):
    good = f"output: out\ndatasets: [{{uri: a, masks: human, weight: 10}}, {{uri: a, masks: {second}}}]\n"
    if fits:
        path = tmp_path / "t.yaml"
        path.write_text(good)
        assert [entry.weight for entry in load_train_config(str(path)).datasets] == [10, 1]
    else:
        (line,) = problems(tmp_path, "", good)
        assert "is listed twice with the same masks" in line


def test_the_paper_preset_depends_on_the_architecture_and_explicit_keys_override_it(tmp_path):
    config = loaded(tmp_path, "preset: paper\nsteps: 100000\noptimizer: {weight_decay: 0.2}\n")
    huge = with_preset(config, "vit_h")
    assert huge.encoder == "trained"
    assert huge.steps == 100_000
    assert huge.optimizer.weight_decay == 0.2
    assert (huge.optimizer.learning_rate, huge.optimizer.warmup) == (8e-4, 278)
    assert huge.optimizer.decay_steps == (66_667, 96_296)
    assert (huge.optimizer.layer_decay, huge.optimizer.drop_path, huge.optimizer.dropout) == (0.8, 0.4, 0.1)
    assert (huge.batch.images, huge.batch.masks_per_image, huge.batch.masks) == (256, 64, 256 * 64)
    config = loaded(tmp_path, "preset: paper\n")
    base, large = (with_preset(config, name) for name in ("vit_b", "vit_l"))
    assert (base.steps, base.batch.images) == (large.steps, large.batch.images) == (180_000, 128)
    assert (base.optimizer.layer_decay, base.optimizer.drop_path) == (0.6, 0.6)
    assert base.held_out.every == 1000
    short = with_preset(loaded(tmp_path, "preset: paper\nsteps: 90\n"), "vit_h")
    assert {each.held_out.patience for each in (huge, base, large, short)} == {None}  # the paper's doesn't stop early
    assert short.optimizer.decay_steps == (60, 87)
    patient = with_preset(loaded(tmp_path, "preset: paper\nheld_out: {patience: 3}\n"), "vit_h")
    assert patient.held_out.patience == 3
    assert (large.optimizer.learning_rate, large.optimizer.layer_decay) == (4e-4, 0.8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch: {images: 9, masks: 8}\n", "batch.masks is 8 for 9 images"),
        ("steps: 10\noptimizer: {warmup: 10}\n", "optimizer.warmup is 10: expected fewer than the 10 steps"),
        ("optimizer: {decay_steps: [20, 10]}\n", "expected ascending steps"),
        ("optimizer: {decay_steps: [20, 400]}\n", "optimizer.decay_steps end at 400"),
        ("preset: paper\n", "preset: paper supports vit_b, vit_l, vit_h, but the weights are mobile_sam"),
        ("preset: mask-making\n", "preset: mask-making supports vit_b"),
        ("jitter: [0.1, 2.0]\n", "jitter needs encoder: trained, because a frozen encoder embeds each whole image"),
        ("encoder: trained\njitter: [2.0, 0.1]\n", "jitter is [2.0, 0.1]: expected the lowest and then the highest"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        with_preset(loaded(tmp_path, text), "mobile_sam")


def test_the_mask_making_preset_trains_on_masks_of_people(tmp_path):
    config = with_preset(loaded(tmp_path, "preset: mask-making\n"), "vit_h")
    assert {entry.masks for entry in config.datasets} == {"human"}
    assert (config.steps, config.held_out.patience, config.encoder) == (177_656, None, "trained")
    assert (config.sampling.clicks, config.sampling.box_share) == (3, 0)
    assert (config.decoder_layers, config.jitter) == (3, (0.1, 2.0))
    assert recipe_of(config) == MASK_MAKING["vit_h"]
    with pytest.raises(UsageError, match="the weights have 2"):
        check_layers(config, 2)
    check_layers(config, 3)
    named = with_preset(loaded(tmp_path, "preset: paper\ndecoder_layers: 3\n"), "vit_b")
    with pytest.raises(UsageError, match=r"decoder_layers is 3, but the weights have 2\. Set encoder_weights"):
        check_layers(named, 2)  # it would have no effect
    check_layers(with_preset(loaded(tmp_path, "preset: paper\n"), "vit_b"), 3)
    path = tmp_path / "all.yaml"
    path.write_text("output: out\ndatasets: [{uri: a, masks: all}]\npreset: mask-making\n")
    with pytest.raises(UsageError, match=r"but .*a has masks: all\. Use masks: human"):
        with_preset(load_train_config(str(path)), "vit_h")


def test_runtime_keys_are_keys_and_do_not_identify_a_run(tmp_path):
    one, other = loaded(tmp_path), loaded(tmp_path, "", "cache.gb=1", "checkpoints.keep=1")
    assert TrainConfig.model_fields.keys() >= RUNTIME_KEYS
    assert identity_keys(one) == identity_keys(other)
    assert identity_keys(one) != identity_keys(loaded(tmp_path, "", "seed=1"))


def test_the_presets_are_the_recipes(tmp_path):
    assert recipe_of(with_preset(loaded(tmp_path), "mobile_sam")) == FINETUNE
    assert loaded(tmp_path).model_dump() == with_preset(loaded(tmp_path), "vit_b").model_dump()
    for architecture, recipe in PAPER.items():
        assert recipe_of(with_preset(loaded(tmp_path, "preset: paper\n"), architecture)) == recipe


@pytest.mark.parametrize(("steps", "warmup", "decays"), [(180, 18, (136,)), (45, 4, (34,)), (2, 0, ()), (1, 0, ())])
def test_the_schedule_of_a_preset_is_as_long_as_the_run(tmp_path, steps, warmup, decays):
    optimizer = with_preset(loaded(tmp_path, f"steps: {steps}\n"), "mobile_sam").optimizer
    assert (optimizer.warmup, optimizer.decay_steps) == (warmup, decays)
    explicit = loaded(tmp_path, "steps: 24\noptimizer: {warmup: 5, decay_steps: []}\n")
    optimizer = with_preset(explicit, "mobile_sam").optimizer
    assert (optimizer.warmup, optimizer.decay_steps) == (5, ())
