"""Advice before building a large dataset, for `segmint plan` and `segmint build`."""

from segmint.operators.prepare.deidentify import BUNDLED_DETECTORS
from segmint.operators.prepare.measured_recall import describe_recall
from segmint.pipeline.config.config import Config

LARGE_ROWS = 10_000
"""Largest number of rows for which `advice` returns nothing."""


def advice(config: Config, rows: int) -> list[str]:
    """Return a sentence for each default in use that only suits trials, or nothing for up to `LARGE_ROWS` rows."""
    return detector_advice(config) if rows > LARGE_ROWS else []


def detector_advice(config: Config) -> list[str]:
    """If the configuration uses the bundled detectors, return a sentence about them with their measured recall."""
    names = [name for name in config.deidentify.detectors.values() if name in BUNDLED_DETECTORS]
    if not names:
        return []
    trials = "the bundled face and plate detectors are for trials; their training data may restrict their use"
    measured = describe_recall(names)
    return [f"{trials}. {measured}" if measured else trials]


def stage_notes(config: Config) -> list[str]:
    """Return a sentence for plans, which leave out custom stages and the masks that they add."""
    if not config.stages:
        return []
    note = "custom stages aren't part of the plan"
    adding = [spec.label for spec in config.load_stages()[: len(config.stages)] if spec.masks]
    if adding:
        note += f", nor are the time, masks, and bytes that {' and '.join(adding)} will add"
    return [note]
