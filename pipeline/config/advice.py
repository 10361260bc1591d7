"""Advice before building a large dataset, for `segmint plan` and `segmint build`."""

from segmint.pipeline.config.config import Config

LARGE_ROWS = 10_000
"""Maximum number of rows that gets no advice."""


def advice(config: Config, rows: int, *, on_gpu: bool, begun: bool) -> list[str]:
    """Return a sentence for each default in use that only suits trials. Up to `LARGE_ROWS` rows need no advice.

    `on_gpu` is true if masks are computed on a GPU. `begun` is true once shards are committed, which fixes the weights.
    """
    if rows <= LARGE_ROWS:
        return []
    found = []
    if len(config.deidentify.detectors) > len(config.deidentify.detector_files):
        found.append("the bundled face and plate detectors are for trials; their training data may restrict their use")
    if on_gpu and not begun and "weights" not in config.model.model_fields_set:
        found.append(
            f"model.weights is not set, so the masks come from {config.model.weights}, the smallest encoder; "
            "the SAM paper uses vit_h. You can't change a dataset's weights later: set model.weights to vit_b, "
            f"vit_l, or vit_h, or to {config.model.weights} to keep it without this advice"
        )
    return found
