"""Models by name: a checkpoint's weights, or random ones."""

from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry as reference_registry

from segmint.compat import build_sam, sam_model_registry
from segmint.infra.errors import UsageError
from segmint.model.sam.load import build_sam as build
from segmint.model.sam.load import load_sam


def test_a_checkpoint_is_loaded_by_path_and_by_name(mobile_sam_path: Path) -> None:
    expected = load_sam(mobile_sam_path).state_dict()
    for checkpoint in (mobile_sam_path, str(mobile_sam_path), "mobile_sam"):
        sam = sam_model_registry["vit_t"](checkpoint=checkpoint)
        assert not sam.training
        found = sam.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_references_names_give_models_with_its_tensors_names_and_shapes() -> None:
    assert set(reference_registry) <= set(sam_model_registry)
    assert sam_model_registry["default"] is build_sam
    with torch.device("meta"):
        theirs = reference_registry["vit_b"]().state_dict()
        ours = sam_model_registry["vit_b"]()
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.items()
    }
    assert ours.image_encoder.img_size == 1024


def test_a_checkpoint_of_another_model_is_refused_with_its_name(mobile_sam_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mobile_sam, not vit_b\. Load it with sam_model_registry\['mobile_sam'\]"):
        sam_model_registry["vit_b"](checkpoint=mobile_sam_path)
    torch.save(build("hiera_tiny").state_dict(), tmp_path / "hiera.pt")
    with pytest.raises(ValueError, match=r"hiera_tiny, not vit_h\. Load it with segmint\.load_sam\."):
        build_sam(tmp_path / "hiera.pt")
    with pytest.raises(UsageError, match="neither a known name"):
        sam_model_registry["vit_h"](checkpoint="sam_vit_h.pth")
    with pytest.raises(UsageError, match="checkpoint is clp, which isn't a SAM model: expected mobile_sam, vit_b"):
        sam_model_registry["vit_h"](checkpoint="clp")
