"""Redaction of additional regions in the described rows of a committed shard."""

from collections.abc import Sequence
from dataclasses import asdict

from segmint.catalogs.dataset.regions import WantedRegion
from segmint.catalogs.layout import DamagedDatasetError, bytes_sha256
from segmint.catalogs.lineage import STAGE_PREFIX, STAGE_SHA256
from segmint.infra.arrays import Pixels
from segmint.operators.describe import redaction_columns
from segmint.operators.images import JpegDecoder, UndecodableError, decode_jpeg
from segmint.operators.prepare.deidentify import Region
from segmint.operators.prepare.mosaic import rectangle, redact_patches
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.operators.redactions import MANUAL, redacted_share
from segmint.operators.rows import Row
from segmint.operators.similar.near import jpeg_hashes


def redact_row(row: Row, wanted: Sequence[WantedRegion], config: ReleaseConfig) -> Row:
    """Redact boxes of a row's released image, and record them in the row's region columns. Return the new row.

    The released JPEG is decoded, redacted, and encoded again, as in the release step. The masks' columns stay the same,
    except for the redaction measures. Values of applied columns become null, because a stage computed them from the
    former pixels. Boxes that are already among the row's regions are skipped, so the operation is idempotent. If no
    boxes remain, or the image was rejected or taken down, the same object is returned. The boxes must be inside the
    image. Raises `DamagedDatasetError` if the JPEG can't be decoded.
    """
    if not wanted or row.get("reason") is not None:
        return row
    known = [Region(**region) for region in row["regions"]]
    new = {}
    for box in wanted:
        region = source_region(row, box)
        if region not in known:
            new[region] = box
    if not new:
        return row
    image = _decoded(row)
    shape = image.shape[0], image.shape[1]
    patches = (rectangle(box.x, box.y, box.w, box.h, shape) for box in new.values())
    clean = redact_patches(image, filter(None, patches))
    regions = [*known, *new]
    jpeg = release(clean, config).jpeg
    redacted: Row = {
        **_without_applied(row),
        "release": jpeg,
        "release_sha256": bytes_sha256(jpeg),
        "hashes": jpeg_hashes(jpeg).tolist(),
        "regions": list(map(asdict, regions)),
        "faces": sum(region.kind == "face" for region in regions),
        "plates": sum(region.kind == "plate" for region in regions),
    }
    redacted["redacted_share"] = redacted_share(redacted)
    if row.get("masks"):
        redacted["masks"] = list(map(_without_applied, row["masks"]))
        redacted["masks"] = _measured(redacted)
    return redacted


def _without_applied(row: Row) -> Row:
    """Return a row of `images` or a mask without the values of applied columns."""
    after = dict(row)
    for name, value in row.items():
        if name.startswith(STAGE_PREFIX) and value is not None and STAGE_SHA256 in value:
            after[name] = None
    return after


def _measured(row: Row) -> list[Row]:
    """Recompute the redaction measures of a row's masks for its current regions.

    If any run lengths are damaged, no mask changes, because damage must not prevent a redaction.
    """
    try:
        shares, ious = redaction_columns(row, [mask["segmentation"]["counts"] for mask in row["masks"]])
    except ValueError:
        return list(row["masks"])
    masks = []
    for mask, share, iou in zip(row["masks"], shares, ious, strict=True):
        masks.append({**mask, "redacted_share": share, "redaction_iou": iou})
    return masks


def _decoded(row: Row) -> Pixels:
    try:
        with JpegDecoder(own=True, processes=1) as decoder:  # no child process starts for a JPEG in segmint's own form
            return decoder.run(decode_jpeg, row["release"])
    except UndecodableError as error:
        raise DamagedDatasetError(f"image {row['id']}: its JPEG can't be decoded: {error}") from error


def source_region(row: Row, box: WantedRegion) -> Region:
    """Convert a box of the released image to a region, which is the smallest box around it in upright source pixels."""
    region = Region(box.kind, 1.0, box.x, box.y, box.w, box.h, MANUAL)
    return region.scaled((row["width"], row["height"]), (row["source_width"], row["source_height"]))
