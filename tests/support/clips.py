"""A tiny CLIP with random weights and a tokenizer, as `save_pretrained` writes them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel

WORDS = ("a", "photo", "of", "red", "blue", "green", "circle", "square", "bar")
START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unk>"
SIDE, PATCH = 32, 8


def write_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP for crops of 32 pixels and embeddings of 16 numbers; return the folder."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    ids = {word: number for number, word in enumerate((UNKNOWN, *WORDS, START, END))}
    text = {**size, "vocab_size": len(ids), "max_position_embeddings": 12, "eos_token_id": ids[END]}
    config = CLIPConfig(
        text_config={**text, "bos_token_id": ids[START], "pad_token_id": ids[END]},
        vision_config={**size, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=16,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():  # the initial weights are so small that all embeddings are alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    save_tokenizer(folder, ids)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]})
    )
    return folder


def save_tokenizer(folder: Path, ids: dict[str, int]) -> None:
    """Write a tokenizer whose tokens are words."""
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def model_of(folder: Path) -> CLIPModel:
    """The model of a folder, loaded by transformers."""
    return CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
