"""The names of the package `segment_anything`, so that notebooks written for it run with the import changed.

    from segmint.compat import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

The same masks, faster; what differs is in docs/python.md. New code is better off with `segmint.MaskGenerator` and
`segmint.Predictor`, which hold no image.
"""

from segmint.compat.generator import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
from segmint.compat.predictor import SamPredictor as SamPredictor
from segmint.compat.registry import build_sam as build_sam
from segmint.compat.registry import build_sam_vit_b as build_sam_vit_b
from segmint.compat.registry import build_sam_vit_h as build_sam_vit_h
from segmint.compat.registry import build_sam_vit_l as build_sam_vit_l
from segmint.compat.registry import sam_model_registry as sam_model_registry
