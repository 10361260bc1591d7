"""Template of the configuration that `segmint init` writes: required keys, and the most frequently changed ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TemplateStart:
    """Values that a new configuration sets. All other keys are commented out with their defaults."""

    name: str = "my-dataset"
    catalog: str = "catalog.parquet"
    output: str = "dataset"
    licenses: Sequence[str] = ("CC0-1.0", "CC-BY-4.0")


_TEXT = """\
# A configuration of segmint. Lines that begin with # and a key show its default: to change it, remove the # before it
# and before the key that it is indented below.
# All keys: docs/configuration.md. A wrong one is refused before anything starts, with its line.

# The dataset's name: letters, digits, dot, hyphen and underscore.
{name}
# The source catalog: a Parquet, JSON Lines or CSV file. `segmint catalog scan FOLDER -o FILE` makes one of a folder.
{catalog}
# Where the dataset goes: a folder, or a prefix such as s3://acme-datasets/street-2026.
{output}
# Rows of the catalog in a shard, which is committed, and lost, as a whole.
#images_per_shard: 500

# The licenses that images may have: SPDX identifiers, or LicenseRef-... for your agreements.
license:
  {licenses}
# Take only rows that say `redistributable: true`.
#  require_redistributable: false

# What is decoded.
#ingest:
#  formats: auto
#  max_bytes: 256MiB
#  max_pixels: 250000000
#  min_short_side: 64

# What is blurred: faces and number plates, by the bundled detectors (for trials), `none`, or a TorchScript file.
#deidentify:
#  faces:
#    detector: mtcnn
#  plates:
#    detector: clp

# The image that leaves. `annotations` writes masks without images.
#release:
#  short_side: 1500
#  jpeg_quality: 95
#  format: images

# The masks: profile `sa1b` as SA-1B was made, or `official` as the reference code makes them.
#masks:
#  profile: sa1b
#  points_per_side: 32
#  crop_n_layers: 2
#  pred_iou_thresh: 0.88
#  stability_score_thresh: 0.95

# The weights: mobile_sam, vit_b, vit_l, vit_h, or a file. `segmint assets` lists them. On GPUs take vit_h.
#model:
#  weights: mobile_sam
#  device: auto

# A shard of 100 rows or more is put on hold if over this share of its rows is refused for one reason.
#max_reject_ratio: 0.5
# How long nothing may move before a part of the run is tried again.
#stall_timeout: 30min
"""


def template(start: TemplateStart) -> str:
    """Return the configuration as YAML text, including comments."""
    return _TEXT.format(
        name=_line("name", start.name),
        catalog=_line("catalog", start.catalog),
        output=_line("output", start.output),
        licenses=_line("allow", list(start.licenses)),
    )


def _line(key: str, value: Any) -> str:
    import yaml  # keeps YAML out of the command line's help

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    document, _, _ = text.partition("\n...")  # YAML ends a bare value with this
    return f"{key}: {document.rstrip()}"
