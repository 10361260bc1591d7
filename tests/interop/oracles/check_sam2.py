"""SAM 2.1 of the `sam2` and `transformers` packages beside ours, on the same weights.

    python tests/interop/oracles/check_sam2.py [tiny] [small] [base_plus] [large] [masks]

On random weights, it compares the model tensor by tensor in each size that is named. With `masks`, it compares the
generators' masks of photographs on weights that find many, which it trains first. Without arguments, it does all of it.
It prints the largest difference of each tensor and the number of masks, and fails if a difference is over its bound.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import Tensor

from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.rle import MaskRecord
from segmint.model.automatic.settings import MaskSettings
from segmint.model.kernels.cpu.library import usable_kernels
from segmint.model.sam import load
from segmint.model.sam.image_encoder_hiera import HIERA_SHAPES
from segmint.model.sam.load import Sam
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.preprocess import normalized, stretch
from tests.support.overfitted_sam2 import FEWEST, PHOTOGRAPHS, POINTS_PER_SIDE, overfitted_sam
from tests.support.photographs import photograph
from tests.support.random_weights import randomize

CONFIGS = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
TENSOR, IOU, OVERFITTED_IOU = 1e-4, 1e-6, 1e-5
"""Largest differences of tensors, of predicted IoUs with random weights, and of those with overfitted weights."""


class Comparison:
    """The largest differences so far, by what was compared."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.signs = 0

    def tensor(self, name: str, ours: Tensor, theirs: Tensor, bound: float = TENSOR) -> None:
        """Compare two tensors, whose numbers may differ by `bound`."""
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        assert theirs.numel() < 4 or theirs.std() > 1e-3, f"{name} is nearly constant, so it compares nothing"
        difference = float((ours - theirs).abs().max())
        self.found[name] = max(difference, self.found.get(name, 0.0))
        assert difference <= bound, f"{name} differs by {difference:.2g}"

    def logits(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Compare logits; a sign may only differ near 0. Theirs are cut off at 32."""
        self.tensor(name, ours.clamp(-32, 32), theirs.clamp(-32, 32))
        other = (ours > 0) != (theirs > 0)
        self.signs += int(other.sum())
        assert (theirs[other].abs() <= TENSOR).all(), f"{name} has another sign"

    def report(self) -> None:
        """Print the largest differences."""
        for name, difference in self.found.items():
            print(f"  {name}: {difference:.2g}")
        print(f"  signs that differ: {self.signs}", flush=True)


def same_weights(size: str, folder: Path, made: Sam | None = None) -> tuple[Sam, torch.nn.Module]:
    """Return our model and theirs with the weights of `made`, or random ones, both loaded from a file of theirs."""
    made = made or randomize(load.build_sam(f"hiera_{size}"))  # type: ignore[arg-type]
    config, file = f"configs/sam2.1/sam2.1_hiera_{CONFIGS[size]}.yaml", folder / f"{size}.pt"
    state, ours = build_sam2(config, device="cpu").state_dict(), made.state_dict()
    names = {name: load.our_name(name) for name in state if not load.is_memory(name)}
    assert set(names.values()) == set(ours), set(names.values()) ^ set(ours)
    left_out = sorted({name.split(".")[0] for name in state if load.is_memory(name)})
    unused = [part for part in load.SAM2_MEMORY if part.removesuffix(".") not in left_out]
    assert not unused, f"the package has none of {unused}"
    print(f"{size}: {len(names)} tensors, {len(state) - len(names)} left out: {', '.join(left_out)}")
    state.update({name: ours[our_name] for name, our_name in names.items()})
    torch.save({"model": state}, file)
    loaded = load.load_sam(file)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())
    return loaded, build_sam2(config, str(file), device="cpu").eval()


@torch.inference_mode()
def compare(size: str, folder: Path) -> None:
    """Compare one size of the model."""
    sam, theirs = same_weights(size, folder)
    found = Comparison()
    image = skimage.data.coffee()
    reference, ours = SAM2ImagePredictor(theirs), Predictor(sam, kernels=None)
    reference.set_image(image)
    embedding = ours.embed(image)
    pixels = reference._transforms(image)[None]  # noqa: SLF001 - the reference shows its input nowhere else
    trunk = theirs.image_encoder.trunk(pixels)
    for stage, (one, other) in enumerate(zip(sam.image_encoder.trunk(pixels), trunk, strict=True)):
        found.tensor(f"stage {stage + 1}", one, other)
    features = reference._features  # noqa: SLF001 - nor its features
    found.tensor("embedding", embedding.features, features["image_embed"])
    for name, one, other in zip("10", embedding.high_res, features["high_res_feats"][::-1], strict=True):
        found.tensor(f"high-resolution s{name}", one, other)

    height, width = image.shape[:2]
    rng = np.random.default_rng(0)
    points = rng.uniform(0, [width, height], (6, 2))
    labels = np.array([1, 0, 1])
    box, mask = np.array([100.0, 50.5, 400.0, 300.0]), rng.normal(0, 4, (1, 256, 256)).astype(np.float32)
    prompts = {
        "point": (points[:1], labels[:1], None, None),
        "points": (points[:3], labels, None, None),
        "box": (None, None, box, None),
        "box and points": (points[:3], labels, box, None),
        "mask": (None, None, None, mask),
        "point and mask": (points[:1], labels[:1], None, mask),
        "all": (points[:3], labels, box, mask),
    }
    with_kernels = Predictor(sam)
    assert (with_kernels.kernels is None) == (usable_kernels() is None)
    for name, prompt in prompts.items():
        for multimask in (True, False):
            expected = reference.predict(*prompt, multimask_output=multimask, return_logits=True)
            masks, ious, low = (torch.from_numpy(part)[None] for part in expected)
            for predictor in (ours, with_kernels):
                way = "" if predictor is ours else " (kernels)"
                made = predictor.predict(embedding, *prompt, multimask=multimask)
                found.logits(f"logits{way}", made.low_res_logits, low)
                found.tensor(f"predicted IoU{way}", made.predicted_iou, ious, IOU)
                if name == "point":
                    found.logits(f"upscaled{way}", predictor.upscale(made.low_res_logits, embedding), masks)

    grid = torch.from_numpy(points)
    expected = [reference.predict(point[None], np.ones(1), multimask_output=True)[1:] for point in points]
    ious, low = (torch.from_numpy(np.stack(part)) for part in zip(*expected, strict=True))
    for predictor in (ours, with_kernels):
        way = "torch" if predictor is ours else "kernels"
        plan = predictor.plan_points(embedding)
        assert (plan.kernels is not None) == (predictor.kernels is not None)
        decoded = predictor.decode_points(embedding, plan, grid)
        drawn = predictor.draw_masks(plan, decoded, torch.ones(len(points), 3, dtype=torch.bool))
        found.tensor(f"points' predicted IoU ({way})", decoded.predicted_iou, ious, IOU)
        found.logits(f"points' logits ({way})", drawn.view(low.shape), low)

    scaled = grid[:, None] * torch.tensor([1024 / width, 1024 / height])
    ones = torch.ones(len(points), 1)
    prompt = sam.prompt_encoder(scaled, ones, None, None)
    sparse, dense = theirs.sam_prompt_encoder((scaled, ones.int()), None, None)
    found.tensor("sparse embedding", prompt.sparse, sparse)
    found.tensor("dense embedding", prompt.dense.expand_as(dense), dense)
    positions = theirs.sam_prompt_encoder.get_dense_pe()
    found.tensor("positions", sam.prompt_encoder.dense_positions(), positions)
    high_res = list(embedding.high_res[::-1])
    *_, tokens, scores = theirs.sam_mask_decoder(embedding.features, positions, sparse, dense, True, True, high_res)
    output, _ = sam.mask_decoder.attend(embedding.features, positions, prompt)
    found.tensor("mask tokens", output[:, 2:5], tokens)
    found.tensor("object score", sam.mask_decoder.pred_obj_score_head(output[:, 5]), scores)
    found.report()


def compare_generators(folder: Path) -> None:
    """Compare both generators on random weights, with few points and nearly no filters.

    Random weights give masks of speckles whose boxes are alike, so nothing is suppressed.
    """
    sam, theirs = same_weights("tiny", folder)
    image = np.ascontiguousarray(skimage.data.coffee()[50:290, 120:456])
    keys = {"points_per_side": 2, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.1, "box_nms_thresh": 1.0}
    for layers, use_m2m in ((0, False), (0, True), (1, False)):
        more = {**keys, "crop_n_layers": layers, "use_m2m": use_m2m, "crop_nms_thresh": 1.0}
        ways = ("auto", None) if layers == 0 else ("auto",)
        compare_annotations("random weights", sam, theirs, image, more, ways, 6, speckles=True)


def compare_masks(folder: Path) -> None:
    """Compare both generators on weights that find many masks, with the filters and the suppression of the package."""
    sam, theirs = same_weights("tiny", folder, overfitted_sam())
    for name in PHOTOGRAPHS:
        for layers in (0, 1):
            for use_m2m in (False, True):
                fewest = FEWEST // 2 if use_m2m else FEWEST
                keys = {"points_per_side": POINTS_PER_SIDE, "crop_n_layers": layers, "use_m2m": use_m2m}
                compare_annotations(name, sam, theirs, photograph(name), keys, ("auto", None), fewest)


def compare_annotations(
    name: str,
    sam: Sam,
    theirs: torch.nn.Module,
    image: NDArray[np.uint8],
    keys: dict[str, Any],
    ways: tuple[Any, ...],
    fewest: int,
    speckles: bool = False,
) -> None:
    """Compare the masks, their order, and their boxes, without the CPU kernels for None among `ways`.

    There must be `fewest` masks. The boxes of speckles may differ by a pixel.
    """
    annotations = SAM2AutomaticMaskGenerator(theirs, **keys).generate(image)
    settings = MaskSettings.sam2(**keys, crop_n_points_downscale_factor=1)
    for kernels in ways:
        records = MaskGenerator(Predictor(sam, kernels=kernels), settings).generate(image).records
        assert len(records) == len(annotations) >= fewest, (len(records), len(annotations))
        pairs = list(zip(records, annotations, strict=True))
        others = [differing_pixels(*pair, speckles) for pair in pairs]
        assert sum(others) <= (1e-4 if speckles else 1e-6) * len(records) * image.shape[0] * image.shape[1], others
        how = ", ".join(f"{key} {value}" for key, value in keys.items() if key in ("crop_n_layers", "use_m2m"))
        print(
            f"{name} ({how}, {'torch' if kernels is None else 'kernels'}): {len(records)} masks in the same order, "
            f"{len({record.crop_box for record in records})} crops, {sum(others)} other pixels",
            flush=True,
        )


def differing_pixels(record: MaskRecord, annotation: dict[str, Any], speckles: bool) -> int:
    """Compare a mask with theirs, and return how many pixels differ.

    The boxes of speckles may differ by a pixel. Overfitted weights are larger than random ones, so they round more.
    """
    box, iou = (1, IOU) if speckles else (0, OVERFITTED_IOU)
    assert [list(record.point_coords)] == annotation["point_coords"]
    assert list(record.crop_box) == annotation["crop_box"]
    assert abs(record.predicted_iou - annotation["predicted_iou"]) <= iou
    assert abs(record.stability_score - annotation["stability_score"]) <= 1e-3
    assert np.abs(np.array(record.bbox) - annotation["bbox"]).max() <= box, (record.bbox, annotation["bbox"])
    return int((record.mask != annotation["segmentation"]).sum())


TRANSFORMERS_NAMES = (
    (r"^image_encoder\.high_res_projections\.0", "mask_decoder.conv_s1"),
    (r"^image_encoder\.high_res_projections\.1", "mask_decoder.conv_s0"),
    (r"^image_encoder\.no_memory_embed", "no_memory_embedding"),
    (r"^image_encoder\.trunk", "vision_encoder.backbone"),
    (r"^image_encoder", "vision_encoder"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"((?:mlps\.\d|head))\.layers\.0", r"\1.proj_in"),
    (r"((?:mlps\.\d|head))\.layers\.1", r"\1.layers.0"),
    (r"((?:mlps\.\d|head))\.layers\.2", r"\1.proj_out"),
    (r"\.mlp\.lin1", ".mlp.proj_in"),
    (r"\.mlp\.lin2", ".mlp.proj_out"),
    (r"\.out_proj", ".o_proj"),
    (r"\.norm(\d|_final_attn)", r".layer_norm\1"),
)
"""Patterns of our names with their replacements in `transformers`, in this order."""


def of_transformers(size: str, sam: Sam) -> Any:
    """Return the model of `transformers` with the weights of ours."""
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

    shape = HIERA_SHAPES[f"hiera_{size}"]
    backbone = Sam2HieraDetConfig(
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        blocks_per_stage=list(shape.depths),
        embed_dim_per_stage=list(shape.widths),
        num_attention_heads_per_stage=[shape.heads << stage for stage in range(4)],
        window_size_per_stage=list(shape.windows),
        global_attention_blocks=list(shape.global_blocks),
        window_positional_embedding_background_size=[shape.background, shape.background],
    )
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=list(shape.widths[::-1]))
    model = Sam2Model(Sam2Config(vision_config=vision)).eval()
    state, kinds = {}, []
    for name, tensor in sam.state_dict().items():
        if ".point_embeddings." in name:
            kinds.append(tensor)
            continue
        for pattern, theirs in TRANSFORMERS_NAMES:
            name = re.sub(pattern, theirs, name)
        state[name] = tensor
    state["prompt_encoder.point_embed.weight"] = torch.cat(kinds)
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(state)
    return model


@torch.inference_mode()
def compare_with_transformers(size: str) -> None:
    """Compare one size of the model with `transformers`."""
    sam = randomize(load.build_sam(f"hiera_{size}"))  # type: ignore[arg-type]
    model, ours, found = of_transformers(size, sam), Predictor(sam, kernels=None), Comparison()
    image = skimage.data.coffee()
    embedding = ours.embed(image)
    pixels = normalized(stretch(torch.from_numpy(image), 1024))[None]
    encoded = model.get_image_embeddings(pixels)
    scale = torch.tensor([1024 / image.shape[1], 1024 / image.shape[0]])
    points = torch.tensor([[[100.0, 80.0], [300.0, 200.5]], [[410.0, 160.0], [20.0, 390.0]]])
    labels, boxes = torch.tensor([[1, 0], [1, 1]]), torch.tensor([[80.0, 60, 500, 350], [10, 20, 200, 300]])
    for name, points_, labels_, boxes_ in (
        ("points", points, labels, None),
        ("boxes", None, None, boxes),
        ("both", points, labels, boxes),
    ):
        for multimask in (True, False):
            expected = model(
                image_embeddings=encoded,
                input_points=None if points_ is None else (points_ * scale)[None],
                input_labels=None if labels_ is None else labels_[None],
                input_boxes=None if boxes_ is None else (boxes_ * scale.repeat(2))[None],
                multimask_output=multimask,
            )
            made = ours.predict(embedding, points_, labels_, boxes_, multimask=multimask)
            found.logits(f"logits of {name}", made.low_res_logits, expected.pred_masks[0])
            found.tensor("predicted IoU", made.predicted_iou, expected.iou_scores[0], IOU)
    maps = (*embedding.high_res[::-1], embedding.features)
    for name, one, other in zip(("s0", "s1", "embedding"), maps, encoded, strict=True):
        found.tensor(name, one, other)
    scaled = points.double() * scale.double(), labels.double(), boxes.double() * scale.repeat(2)
    prompt = sam.prompt_encoder(*scaled, None)
    output, _ = sam.mask_decoder.attend(embedding.features, sam.prompt_encoder.dense_positions(), prompt)
    score = sam.mask_decoder.pred_obj_score_head(output[:, 5])
    found.tensor("object score", score, expected.object_score_logits[0])
    print(f"{size}, transformers:")
    found.report()


def main() -> None:
    """Compare what is named, or everything."""
    torch.manual_seed(0)
    named = sys.argv[1:] or [*CONFIGS, "masks"]
    sizes = [size for size in named if size != "masks"]
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            compare(size, Path(folder))
        if sizes:
            compare_generators(Path(folder))
        if "masks" in named:
            compare_masks(Path(folder))
    for size in sizes:
        compare_with_transformers(size)


if __name__ == "__main__":
    main()
