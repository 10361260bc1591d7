import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from segmint.model.sam.load import (
    Architecture,
    SamWeightsError,
    build_sam,
    inspect_checkpoint,
    load_sam,
    sam_from_state_dict,
)
from tests.support.random_weights import randomize
from tests.support.sam2_files import official


def shapes_only(architecture: Architecture, decoder_depth: int = 2) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(build_sam(architecture, decoder_depth).state_dict())


@pytest.mark.parametrize("decoder_depth", [2, 3])
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_the_weights_tell_the_architecture(architecture: Architecture, decoder_depth: int) -> None:
    state = shapes_only(architecture, decoder_depth)
    loaded = sam_from_state_dict(state)
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    assert len(loaded.mask_decoder.transformer.layers) == decoder_depth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_model_comes_back_in_float32_ready_to_predict(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = randomize(build_sam("mobile_sam", decoder_depth=3)).to(dtype)
    torch.save(saved.state_dict(), tmp_path / "three_layers.pt")
    loaded = load_sam(tmp_path / "three_layers.pt")
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype in (torch.float32, torch.int64), name
        assert torch.equal(tensor, saved.state_dict()[name].to(tensor.dtype)), name


def test_the_published_mobile_sam_loads(mobile_sam_path: Path) -> None:
    sam = load_sam(str(mobile_sam_path))
    assert len(sam.mask_decoder.transformer.layers) == 2
    assert sam.image_encoder.layers[2].blocks[0].attn.attention_biases.abs().max() > 0


def test_a_checkpoint_tells_its_architecture_without_being_loaded(mobile_sam_path: Path, tmp_path: Path) -> None:
    assert inspect_checkpoint(mobile_sam_path) == ("mobile_sam", 2)
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SamWeightsError, match=rf"^{re.escape(str(tmp_path / 'no.pt'))} is not a PyTorch checkpoint"):
        inspect_checkpoint(tmp_path / "no.pt")


def test_loading_does_not_import_torchs_compiler(mobile_sam_path: Path) -> None:
    """That takes longer than all the rest of it."""
    code = (
        "import sys; from segmint.model.sam.load import load_sam; load_sam(sys.argv[1]); "
        "sys.exit('torch._dynamo' in sys.modules or 'torch._inductor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(mobile_sam_path)], check=True)


def test_weights_that_miss_or_add_a_part_are_refused_by_name() -> None:
    state = shapes_only("mobile_sam")
    state["image_encoder.extra"] = state.pop("image_encoder.neck.0.weight")
    with pytest.raises(SamWeightsError) as caught:
        sam_from_state_dict(state)
    assert "1 are missing: image_encoder.neck.0.weight" in str(caught.value)
    assert "1 are not SAM's: image_encoder.extra" in str(caught.value)


def test_weights_of_another_shape_are_refused_by_name() -> None:
    state = shapes_only("vit_b")
    state["mask_decoder.mask_tokens.weight"] = torch.zeros(7, 256)
    with pytest.raises(SamWeightsError, match=r"mask_tokens.weight is \(7, 256\), not \(4, 256\)"):
        sam_from_state_dict(state)


@pytest.mark.parametrize("architecture", ["hiera_tiny", "hiera_small", "hiera_base_plus", "hiera_large"])
def test_tensors_with_the_names_and_shapes_of_a_sam_2_file_become_a_model(architecture: Architecture) -> None:
    state = shapes_only(architecture)
    file = {"model": official(state)}
    assert "sam_mask_decoder.transformer.layers.1.mlp.layers.0.weight" in file["model"]
    assert "image_encoder.trunk.blocks.0.mlp.layers.1.bias" in file["model"]
    loaded = sam_from_state_dict(file)
    assert list(loaded.state_dict()) == list(state)
    assert loaded.geometry.placement == "stretched"
    assert loaded.prompt_encoder.pads_boxes


def test_a_file_of_sam_2_that_misses_or_adds_a_part_is_refused_by_name() -> None:
    state = official(shapes_only("hiera_tiny"))
    state["memory_bank.weight"] = state.pop("no_mem_embed")
    with pytest.raises(SamWeightsError) as caught:
        sam_from_state_dict({"model": state})
    assert "1 are missing: image_encoder.no_memory_embed" in str(caught.value)
    assert "1 are not SAM's: memory_bank.weight" in str(caught.value)
    del state["image_encoder.trunk.blocks.11.attn.qkv.weight"]
    with pytest.raises(SamWeightsError, match=r"2 are missing: .*, image_encoder.trunk.blocks.11.attn.qkv.weight; "):
        sam_from_state_dict({"model": state})
    shallow = {name: tensor for name, tensor in state.items() if "blocks.11" not in name}
    with pytest.raises(SamWeightsError, match=r"the Hiera has 11 blocks: expected 12 \(hiera_tiny\), 16"):
        sam_from_state_dict({"model": shallow})


@pytest.mark.parametrize(
    "name", ["image_encoder.trunk.pos_embed", "image_encoder.trunk.patch_embed.proj.bias", "no_mem_embed"]
)
@pytest.mark.parametrize("how", ["missing", "renamed", "reshaped"])
def test_a_file_of_sam_2_without_a_tensor_is_refused_by_its_name(name: str, how: str) -> None:
    state = official(shapes_only("hiera_tiny"))
    tensor = state.pop(name)
    if how != "missing":
        state[f"{name}_2" if how == "renamed" else name] = tensor[None]
    told = {"missing": "1 are missing: .*", "renamed": "1 are missing: .*1 are not SAM's: ", "reshaped": "shaped: .*"}
    with pytest.raises(SamWeightsError, match=told[how] + (f"{name}_2" if how == "renamed" else "embed|bias")):
        sam_from_state_dict({"model": state})


def test_a_file_with_two_names_of_the_same_weights_is_refused() -> None:
    state = official(shapes_only("hiera_tiny"))
    state["prompt_encoder.no_mask_embed.weight"] = state["sam_prompt_encoder.no_mask_embed.weight"]
    with pytest.raises(SamWeightsError, match=r"sam_prompt_encoder\.no_mask_embed\.weight and prompt_encoder\.no_mask"):
        sam_from_state_dict({"model": state})


def test_only_files_of_sam_2_may_have_memory() -> None:
    state = shapes_only("mobile_sam")
    state["no_obj_ptr"] = torch.zeros(1, 256)
    with pytest.raises(SamWeightsError, match="1 are not SAM's: no_obj_ptr"):
        sam_from_state_dict(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no SAM mask decoder"),
        ({"fc.weight": torch.zeros(2)}, "no SAM mask decoder among the weights; found fc.weight"),
        ({"model": {"a": torch.zeros(1)}}, "model is not a tensor.*save only its model's state dict"),
        ([torch.zeros(1)], "found a list"),
        ({"mask_decoder.transformer.layers.0.norm1.bias": torch.zeros(1)}, "no SAM image encoder"),
        (
            {
                "mask_decoder.transformer.layers.0.norm1.bias": torch.zeros(1),
                "image_encoder.pos_embed": torch.zeros(1, 64, 64, 384),
            },
            r"384 channels wide: expected 768 \(vit_b\), 1024 \(vit_l\), 1280 \(vit_h\)",
        ),
    ],
)
def test_a_foreign_checkpoint_is_refused_with_the_files_name(tmp_path: Path, state: object, message: str) -> None:
    path = tmp_path / "foreign.pt"
    torch.save(state, path)
    with pytest.raises(SamWeightsError, match=rf"foreign\.pt: .*{message}"):
        load_sam(path)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off", b"\x80\x02."], ids=repr)
def test_a_file_that_is_no_checkpoint_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(SamWeightsError, match=r"broken\.pt is not a PyTorch checkpoint"):
        load_sam(path)


class Malice:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"weights": Malice(tmp_path / "ran")}, tmp_path / "malice.pt")
    (tmp_path / "malice.pkl").write_bytes(pickle.dumps(Malice(tmp_path / "ran"), protocol=2))
    for name in ("malice.pt", "malice.pkl"):
        with pytest.raises(SamWeightsError):
            load_sam(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        load_sam(tmp_path / "nowhere.pt")


def test_unknown_architectures_and_empty_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'vit_x': expected one of vit_b, vit_l, vit_h, mobile_sam"):
        build_sam("vit_x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 layers: expected at least 1"):
        build_sam("mobile_sam", decoder_depth=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: torch.full_like(tensor, torch.nan), "1 of the weights aren't finite numbers: mask_decoder"),
        (lambda tensor: tensor.to("meta"), "1 of the weights aren't finite numbers: mask_decoder"),
        (lambda tensor: tensor.to_sparse(), "1 of the weights aren't finite numbers: mask_decoder"),
        (lambda tensor: tensor.to(torch.int8), "1 are of another type: mask_decoder.iou_token.weight is torch.int8"),
        (lambda tensor: tensor.to(torch.complex64), "iou_token.weight is torch.complex64"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused_by_name(
    tmp_path: Path, change: Callable[[Tensor], Tensor], message: str
) -> None:
    state = build_sam("mobile_sam").state_dict()
    state["mask_decoder.iou_token.weight"] = change(state["mask_decoder.iou_token.weight"])
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(SamWeightsError, match=rf"odd\.pt: .*{message}"):
        load_sam(tmp_path / "odd.pt")


def test_counts_of_batches_may_have_any_type() -> None:
    """A training run stores all tensors of MobileSAM as float32."""
    state = build_sam("mobile_sam").state_dict()
    assert any(name.endswith("num_batches_tracked") for name in state)
    sam_from_state_dict({name: tensor.float() for name, tensor in state.items()})
