"""Drop-in replacement for the `segment_anything` package: existing notebooks only need to change the import.

    from segmint.compat import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

It produces the same masks, but faster. docs/python.md lists the differences. New code should use
`segmint.MaskGenerator` and `segmint.Predictor`, which are stateless.
"""

from segmint.compat.automatic_mask_generator import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
from segmint.compat.build_sam import build_sam as build_sam
from segmint.compat.build_sam import build_sam_vit_b as build_sam_vit_b
from segmint.compat.build_sam import build_sam_vit_h as build_sam_vit_h
from segmint.compat.build_sam import build_sam_vit_l as build_sam_vit_l
from segmint.compat.build_sam import sam_model_registry as sam_model_registry
from segmint.compat.predictor import SamPredictor as SamPredictor
