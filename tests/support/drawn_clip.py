"""A small CLIP that learns the colors and the shapes of `drawn_scenes`, in the format of `save_pretrained`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from segmint.operators.text.clip import Clip, ClipFolder
from segmint.operators.text.crops import training_crop
from tests.support.clips import END, START, UNKNOWN, save_tokenizer
from tests.support.drawn_scenes import COLORS, SHAPES, TRAINED, DrawnObject, Scene

SIDE, PATCH = 48, 8
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
_SCALE = 20.0


def train_drawn_clip(folder: Path, scenes: Sequence[Scene], steps: int, batch: int = 128) -> list[float]:
    """Train on crops as a training run of SAM makes them, and save to a folder; returns the losses.

    Texts are those of single colors, of single shapes, and of the trained pairs.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    vocabulary = (UNKNOWN, *COLORS, *SHAPES, START, END)
    ids = {word: number for number, word in enumerate(vocabulary)}
    model = _model(ids)
    texts = [*(" ".join(pair) for pair in TRAINED), *COLORS, *SHAPES]
    tokens = [torch.tensor([[ids[word] for word in (START, *text.split(), END)] for text in part]) for part in
              (texts[: len(TRAINED)], texts[len(TRAINED) :])]  # fmt: skip
    objects = [(scene, each) for scene in scenes for each in scene.objects]
    pair_of = {pair: number for number, pair in enumerate(TRAINED)}
    colors, shapes = list(COLORS), list(SHAPES)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0}])
    losses = []
    for step in range(steps):
        rate = 2e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = [objects[index] for index in random.integers(0, len(objects), batch)]
        crops, shown = drawn_crops(random, chosen)
        pixels = _unit(_embed_crops(model, crops, shown))
        pairs, words = (_unit(_features(model.get_text_features(input_ids=each))) for each in tokens)
        of = [(each.color, each.shape) for _, each in chosen]
        pair = torch.tensor([pair_of[each] for each in of])
        color = torch.tensor([colors.index(each[0]) for each in of])
        shape = torch.tensor([shapes.index(each[1]) for each in of])
        both = torch.tensor([(colors.index(a), len(colors) + shapes.index(b)) for a, b in TRAINED])
        loss = (
            F.cross_entropy(_SCALE * pixels @ pairs.T, pair)
            + F.cross_entropy(_SCALE * pixels @ words[: len(colors)].T, color)
            + F.cross_entropy(_SCALE * pixels @ words[len(colors) :].T, shape)
            + (1 - (pixels * pairs[pair]).sum(1)).mean()
            + (1 - (pairs * _unit(words[both].sum(1))).sum(1)).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        model.logit_scale.fill_(math.log(_SCALE))
    model.save_pretrained(folder)
    save_tokenizer(folder, ids)
    return losses


def drawn_crops(random: np.random.Generator, objects: Sequence[tuple[Scene, DrawnObject]]) -> tuple[Tensor, Tensor]:
    """Crops of objects for `Clip.embed_crops`, half of which show only the object."""
    made = [
        training_crop(scene.image, each.mask, SIDE, 1 + random.random(), random.random() < 0.5)
        for scene, each in objects
    ]
    crops, shown = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    return crops.permute(0, 3, 1, 2).contiguous(), shown


def retrieval(clip: Clip, scenes: Sequence[Scene], pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """How often the text of an object is nearer to its crop than those of the scene's others, for objects of `pairs`.

    The second number is the mean cosine of a crop and its text.
    """
    random, right, cosines = np.random.default_rng(1), [], []
    for scene in scenes:
        texts = _unit(clip.embed_texts([each.label for each in scene.objects]))
        crops = _unit(clip.embed_crops(*drawn_crops(random, [(scene, each) for each in scene.objects])))
        similar = crops @ texts.T
        for index, each in enumerate(scene.objects):
            if (each.color, each.shape) in pairs:
                right.append(int(similar[index].argmax()) == index)
                cosines.append(float(similar[index, index]))
    return float(np.mean(right)), float(np.mean(cosines))


def _model(ids: dict[str, int]) -> CLIPModel:
    size = {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 4}
    text = {**size, "num_hidden_layers": 1, "vocab_size": len(ids), "max_position_embeddings": 8}
    config = CLIPConfig(
        text_config={**text, "eos_token_id": ids[END], "bos_token_id": ids[START], "pad_token_id": ids[END]},
        vision_config={**size, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=64,
        attn_implementation="eager",
    )
    return CLIPModel(config)


def _embed_crops(model: Any, crops: Tensor, shown: Tensor) -> Tensor:
    """`Clip.embed_crops` with gradients."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (_MEAN, _STD))
    inside = F.max_pool2d(shown[:, None].float(), PATCH).flatten(1) > 0
    mask = torch.zeros(len(inside), 1, inside.shape[1] + 1, inside.shape[1] + 1)
    mask[:, 0, 0, 1:].masked_fill_(~inside, -torch.inf)

    def with_mask(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest = {name: value for name, value in named.items() if name != "attention_mask"}
        return (given[0], mask, *given[2:]), rest

    handle = model.vision_model.encoder.layers[-1].register_forward_pre_hook(with_mask, with_kwargs=True)
    try:
        return _features(model.get_image_features(pixel_values=(crops.float() / 255 - mean) / std))
    finally:
        handle.remove()


def _features(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings, dim=1)


def load_drawn_clip(folder: Path) -> Clip:
    return ClipFolder.open(folder).load()
