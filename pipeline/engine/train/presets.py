"""Presets: conversion of the recipes in `model/training/recipe.py` to configuration keys and back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from segmint.infra.errors import UsageError, raise_problems
from segmint.model.sam.load import Architecture
from segmint.model.training.recipe import (
    ALL_PARTS,
    FINETUNE,
    MASK_MAKING,
    MASK_MAKING_JITTER,
    MASK_MAKING_LAYERS,
    PAPER,
    Recipe,
)
from segmint.pipeline.engine.train.settings import TrainConfig

_LONG, _SELDOM = 10_000, 1000
"""Number of steps from which a preset is long, and a long preset's interval of evaluations, overlays, and
checkpoints."""


def with_preset(config: TrainConfig, architecture: Architecture) -> TrainConfig:
    """Fill in the preset's values for the parent's architecture. Keys that the user has set take precedence.

    If `steps` differs from the preset's, the warm-up and the decay steps are scaled in proportion. Raises `UsageError`
    for values that contradict each other.
    """
    recipe, explicit, preset = FINETUNE, config.model_dump(exclude_unset=True), dict[str, Any]()
    if config.preset != "finetune":
        if architecture not in PAPER:
            raise UsageError(
                f"preset: {config.preset} supports {', '.join(PAPER)}, but the weights are {architecture}. Use preset: "
                "finetune"
            )
        recipe = (PAPER if config.preset == "paper" else MASK_MAKING)[architecture]
        preset = {"held_out": {"patience": None}}
    if config.preset == "mask-making":
        preset |= {"decoder_layers": MASK_MAKING_LAYERS, "jitter": MASK_MAKING_JITTER}
        explicit["datasets"] = [{"masks": "human", **entry} for entry in explicit["datasets"]]
    recipe = _of_length(recipe, explicit.get("steps", recipe.steps))
    filled = TrainConfig.model_validate(merged(merged(keys_of(recipe), preset), explicit))
    _check_together(filled, explicit)
    return filled


def recipe_of(config: TrainConfig) -> Recipe:
    """Convert a configuration to the recipe that `build_optimizer` takes."""
    keys = config.optimizer
    return Recipe(
        parts=ALL_PARTS if config.encoder == "trained" else FINETUNE.parts,
        learning_rate=keys.learning_rate,
        steps=config.steps,
        warmup_steps=keys.warmup,
        decay_steps=keys.decay_steps,
        batch_images=config.batch.images,
        masks_per_image=config.batch.masks_per_image,
        largest_mask=config.max_mask_area_ratio,
        weight_decay=keys.weight_decay,
        layer_decay=keys.layer_decay,
        drop_path=keys.drop_path,
        dropout=keys.dropout,
        losses=config.losses.settings(),
        sampling=config.sampling.settings(),
    )


def keys_of(recipe: Recipe) -> dict[str, Any]:
    """Convert a recipe to the configuration keys that it determines, as the inverse of `recipe_of`."""
    tree: dict[str, Any] = {
        "encoder": "trained" if "image_encoder" in recipe.parts else "frozen",
        "steps": recipe.steps,
        "batch": {
            "images": recipe.batch_images,
            "masks": recipe.batch_images * recipe.masks_per_image,
            "masks_per_image": recipe.masks_per_image,
        },
        "optimizer": {
            "learning_rate": recipe.learning_rate,
            "warmup": recipe.warmup_steps,
            "decay_steps": recipe.decay_steps,
            "weight_decay": recipe.weight_decay,
            "layer_decay": recipe.layer_decay,
            "drop_path": recipe.drop_path,
            "dropout": recipe.dropout,
        },
        "losses": asdict(recipe.losses),
        "sampling": asdict(recipe.sampling),
        "max_mask_area_ratio": recipe.largest_mask,
    }
    long = {name: {"every": _SELDOM} for name in ("held_out", "overlays", "checkpoints")}
    return merged(tree, long) if recipe.steps >= _LONG else tree


def _of_length(recipe: Recipe, steps: int) -> Recipe:
    """Scale a recipe's schedule to a number of steps."""
    if steps == recipe.steps:
        return recipe
    decays = sorted({max(1, round(step * steps / recipe.steps)) for step in recipe.decay_steps})
    return replace(
        recipe,
        steps=steps,
        warmup_steps=min(steps - 1, round(recipe.warmup_steps * steps / recipe.steps)),
        decay_steps=tuple(step for step in decays if step < steps),
    )


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees. If both contain a value, the value from `over` applies."""
    tree = dict(under)
    for key, value in over.items():
        below = tree.get(key)
        tree[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return tree


def _check_together(config: TrainConfig, explicit: Mapping[str, Any]) -> None:
    batch, optimizer, problems = config.batch, config.optimizer, list[str]()
    if config.jitter is not None and config.encoder == "frozen":
        problems.append("jitter needs encoder: trained, because a frozen encoder embeds each whole image only once")
    if config.jitter is not None and config.jitter[0] > config.jitter[1]:
        problems.append(f"jitter is {list(config.jitter)}: expected the lowest and then the highest scale")
    if config.preset == "mask-making":
        problems += [
            f"preset: mask-making trains on people's masks, but {entry.uri} has masks: {entry.masks}. Use masks: human"
            for entry in config.datasets
            if entry.masks != "human"
        ]
    if batch.masks < batch.images:
        problems.append(
            f"batch.masks is {batch.masks} for {batch.images} images: expected at least batch.images, because each "
            "image of a step needs a mask"
        )
    if config.resources.workers > batch.images:
        problems.append(
            f"resources.workers is {config.resources.workers} for {batch.images} images per step: expected at most "
            "batch.images, because a worker takes whole images"
        )
    problems += schedule_problems("optimizer", optimizer.warmup, optimizer.decay_steps, config.steps)
    raise_problems(problems)


def schedule_problems(under: str, warmup: int, decay_steps: Sequence[int], steps: int) -> list[str]:
    """Return the problems of a learning-rate schedule. Its keys are below the key `under`."""
    decays, problems = list(decay_steps), []
    if warmup >= steps:
        problems.append(f"{under}.warmup is {warmup}: expected fewer than the {steps} steps")
    if decays != sorted(set(decays)):
        problems.append(f"{under}.decay_steps are {decays}: expected ascending steps, each once")
    if decays and decays[-1] >= steps:
        problems.append(f"{under}.decay_steps end at {decays[-1]}: expected steps before the last, {steps}")
    return problems
