"""What to consider before a large dataset is made: for `segmint plan` and `segmint build`."""

from segmint.pipeline.config.config import Config

LARGE_ROWS = 10_000
"""More rows than this are a large dataset."""


def advice(config: Config, rows: int, *, on_gpu: bool, begun: bool) -> list[str]:
    """Return a sentence on each default that is for trials, if there are over `LARGE_ROWS` rows to build.

    `on_gpu`: the masks are computed on a GPU. `begun`: shards are committed, so that the weights are settled.
    """
    if rows <= LARGE_ROWS:
        return []
    found = []
    if len(config.deidentify.detectors) > len(config.deidentify.detector_files):
        found.append("the bundled detectors of faces and plates are for trials; their training data may restrict use")
    if on_gpu and not begun and "weights" not in config.model.model_fields_set:
        found.append(
            f"model.weights is not set, so a GPU makes the masks with {config.model.weights}, the smallest encoder; "
            "the SAM paper's is vit_h. The weights of a dataset cannot be changed later: set model.weights to vit_b, "
            f"vit_l or vit_h, or to {config.model.weights} to keep it without this advice"
        )
    return found
