"""The pixels that a build segments."""

from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import DeidentifyConfig, FacesConfig, PlatesConfig
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import PrepareConfig, prepare_image
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.masks.options import Frame


def in_a_build(data: bytes, release: ReleaseConfig, masks: MasksConfig) -> Frame:
    """The pixels that a build segments of a photograph in which it redacts nothing."""
    nothing = DeidentifyConfig(faces=FacesConfig(detector="none"), plates=PlatesConfig(detector="none"))
    config = PrepareConfig(IngestConfig(), nothing, release, masks.original_crops)
    prepared = prepare_image(data, config, [])
    return Frame(decode_jpeg(prepared.release), None if prepared.original is None else decode_jpeg(prepared.original))
