"""Tiny models of `transformers` with random weights, in folders as `save_pretrained` writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

SIDE, SAM3_SIDE, WIDTH = 64, 56, 32
"""Sides of the squares that images are resized to, and the length of the decoders' embeddings."""

PHRASES = ["cup", "red saucer"]


def write_sam(folder: Path) -> Path:
    """Write a SAM."""
    _save(transformers.SamModel, transformers.SamConfig(vision_config=_vit(), **_parts()), folder)
    _sam_processor().save_pretrained(folder)
    return folder


def write_sam_hq(folder: Path) -> Path:
    """Write a SAM-HQ."""
    _save(transformers.SamHQModel, transformers.SamHQConfig(vision_config=_vit(), **_parts(vit_dim=16)), folder)
    _sam_processor().save_pretrained(folder)
    return folder


def write_sam2(folder: Path) -> Path:
    """Write a SAM 2."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "window_positional_embedding_background_size": [2, 2],
        "blocks_per_stage": [1, 2, 1, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [2],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": WIDTH,
    }
    _save(transformers.Sam2Model, transformers.Sam2Config(vision_config=vision, **_parts()), folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def write_sam3_tracker(folder: Path) -> Path:
    """Write a tracker of SAM 3."""
    config = transformers.Sam3TrackerConfig(vision_config=_sam3_vision(), **_parts(patch=14))
    _save(transformers.Sam3TrackerModel, config, folder)
    _sam3_image_processor().save_pretrained(folder)
    return folder


def write_sam3(folder: Path) -> Path:
    """Write a SAM 3 whose tokenizer knows the words of `PHRASES`."""
    _save(transformers.Sam3Model, transformers.Sam3Config(**_sam3_parts()), folder)
    transformers.Sam3Processor(_sam3_image_processor(), _tokenizer()).save_pretrained(folder)
    return folder


def write_sam3_video(folder: Path) -> Path:
    """Write a SAM 3 together with its tracker, as facebook/sam3 contains both."""
    memory = {
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_rope_feat_sizes": [4, 4],
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 16,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 32,
        "image_size": SAM3_SIDE,
    }
    tracker = {"model_type": "sam3_tracker_video", "vision_config": _sam3_vision(), **_parts(patch=14), **memory}
    config = transformers.Sam3VideoConfig(
        detector_config={"model_type": "sam3", **_sam3_parts()}, tracker_config=tracker
    )
    _save(transformers.Sam3VideoModel, config, folder)
    weights = load_file(folder / "model.safetensors")
    # save_pretrained writes this prefix twice, unlike facebook/sam3, and then Sam3TrackerModel finds no weights.
    prefix = "tracker_model."
    renamed = {name.replace(prefix * 2, prefix): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    video = transformers.Sam2VideoVideoProcessor(size={"height": SAM3_SIDE, "width": SAM3_SIDE})
    transformers.Sam3VideoProcessor(_sam3_image_processor(), video, _tokenizer()).save_pretrained(folder)
    return folder


MASK_GENERATORS: Mapping[str, Callable[[Path], Path]] = {
    "sam": write_sam,
    "sam_hq": write_sam_hq,
    "sam2": write_sam2,
    "sam3_tracker": write_sam3_tracker,
    "sam3_video": write_sam3_video,
}
"""Functions that write models for the mask-generation pipeline, by the type of the model."""


def _sam3_parts() -> dict[str, Any]:
    """Return the configurations of the parts of a SAM 3."""
    attention = {"hidden_size": WIDTH, "num_attention_heads": 2}
    layers = {**attention, "num_layers": 1, "intermediate_size": 32}
    text = {
        "model_type": "clip_text_model",
        "vocab_size": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    return {
        "vision_config": _sam3_vision(),
        "text_config": text,
        "geometry_encoder_config": {**layers, "roi_size": 2},
        "detr_encoder_config": layers,
        "detr_decoder_config": {**layers, "num_queries": 8},
        "mask_decoder_config": attention,
    }


def _parts(patch: int = 16, **decoder: int) -> dict[str, Any]:
    """Return the configurations of the prompt encoder and the mask decoder."""
    prompts = {"hidden_size": WIDTH, "image_size": 4 * patch, "patch_size": patch, "mask_input_channels": 4}
    size = {"hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return {"prompt_encoder_config": prompts, "mask_decoder_config": {**size, **decoder}}


def _vit() -> dict[str, Any]:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32, "num_pos_feats": 16}
    return {
        **size,
        "output_channels": WIDTH,
        "image_size": SIDE,
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
    }


def _sam_processor() -> Any:
    size, mask_size = {"longest_edge": SIDE}, {"longest_edge": 16}
    pad = {"height": SIDE, "width": SIDE}
    return transformers.SamImageProcessor(
        size=size, mask_size=mask_size, pad_size=pad, mask_pad_size={"height": 16, "width": 16}
    )


def _sam3_vision() -> dict[str, Any]:
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SAM3_SIDE,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }
    sizes = [[16, 16], [8, 8], [4, 4]]
    return {"backbone_config": backbone, "fpn_hidden_size": WIDTH, "backbone_feature_sizes": sizes}


def _sam3_image_processor() -> Any:
    return transformers.Sam3ImageProcessor(
        size={"height": SAM3_SIDE, "width": SAM3_SIDE}, mask_size={"height": 16, "width": 16}
    )


def _tokenizer() -> Any:
    words = ["<pad>", "<start>", "<end>", "<unknown>", *" ".join(PHRASES).split()]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def _save(model_class: Any, config: Any, folder: Path) -> None:
    """Save a model with weights that make its masks and scores differ."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
