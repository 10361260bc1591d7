"""Template of the configuration that `segmint init` writes: required keys, and the most frequently changed ones."""

from collections.abc import Sequence
from typing import Any

_TEXT = """\
# segmint configuration. A commented-out key shows its default. To change it, remove the # before it and before the key
# that it is indented under. docs/configuration.md describes all keys. segmint checks this file before it starts
# anything and reports each problem with its line.

# The dataset's name: letters, digits, dots, hyphens, and underscores.
{name}
# The source catalog: a Parquet, JSON Lines, or CSV file. `segmint catalog scan FOLDER -o FILE` creates one.
{catalog}
# The output: a folder, or a bucket prefix such as s3://acme-datasets/street-2026.
{output}
# Catalog rows per shard. A shard is committed, or lost, as a whole.
#images_per_shard: 500

# The allowed licenses: SPDX identifiers, or LicenseRef-... for your own agreements.
license:
  {licenses}
# Only accept rows with `redistributable: true`.
#  require_redistributable: false

# Limits for the source images.
#ingest:
#  formats: auto
#  max_bytes: 256MiB
#  max_pixels: 250000000
#  min_short_side: 64

# Redaction of faces and license plates: the bundled detectors (for trials), `none`, or a file.
#deidentify:
#  faces:
#    detector: mtcnn
#  plates:
#    detector: clp

# The released images. `format: annotations` writes masks without images.
#release:
#  short_side: 1500
#  jpeg_quality: 95
#  format: images

# The masks. Profile `sa1b` follows the SAM paper; `official` and `sam2` follow SAM's and SAM 2's reference code.
#masks:
#  profile: sa1b
#  points_per_side: 32
#  crop_n_layers: 2
#  pred_iou_thresh: 0.88
#  stability_score_thresh: 0.95

# The weights: mobile_sam, vit_b, vit_l, vit_h, or a file. `segmint assets list` lists them. auto: vit_h on GPUs,
# mobile_sam on CPUs.
#model:
#  weights: auto
#  device: auto
# Your own model in place of `masks` and `model`, such as `{{stage: lamps.Lamps}}`; see docs/own-model.md.
#segmenter: null

# A shard of at least 100 rows is put on hold if more than this share of its rows is rejected for one reason.
#max_reject_ratio: 0.5
# How many rows of a shard may be rejected because they never work, for example because the store refuses to send them.
#max_faults: 0
# How long a part of the run may stall before it is retried.
#stall_timeout: 30min
"""


def template(name: str, catalog: str, output: str, licenses: Sequence[str]) -> str:
    """Return a configuration as YAML text. Comments list all other keys with their defaults."""
    return _TEXT.format(
        name=_line("name", name),
        catalog=_line("catalog", catalog),
        output=_line("output", output),
        licenses=_line("allow", list(licenses)),
    )


def _line(key: str, value: Any) -> str:
    import yaml  # imported here, so that the command line's help doesn't import YAML

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    document, _, _ = text.partition("\n...")  # YAML ends a bare value with this marker
    return f"{key}: {document.rstrip()}"
