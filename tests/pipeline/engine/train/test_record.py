"""Weights that a run puts are official checkpoints, and another file in their place is refused."""

from pathlib import Path

import pytest
import torch

from segmint.infra.errors import UnfinishedError
from segmint.model.sam.load import build_sam, load_sam
from segmint.pipeline.engine.train.record import put_weights
from tests.support.locations import location_of


@pytest.mark.long
def test_weights_of_a_vit_load_in_the_reference_package(tmp_path: Path) -> None:
    from segment_anything import sam_model_registry

    parent = build_sam("vit_b")
    torch.save(parent.state_dict(), tmp_path / "parent.pth")
    trained = {"mask_decoder.iou_token.weight": torch.full((1, 256), 0.5)}
    file, _ = put_weights(location_of(tmp_path / "out"), tmp_path / "parent.pth", trained)
    reference = sam_model_registry["vit_b"](checkpoint=str(tmp_path / "out" / file)).state_dict()
    ours = load_sam(tmp_path / "out" / file).state_dict()
    assert torch.equal(reference["mask_decoder.iou_token.weight"], trained["mask_decoder.iou_token.weight"])
    assert all(torch.equal(reference[name], tensor) for name, tensor in ours.items())


def test_weights_have_one_name_and_are_put_once(tmp_path: Path, mobile_sam_path: Path) -> None:
    output = location_of(tmp_path)
    trained = {"mask_decoder.iou_token.weight": torch.full((1, 256), 0.5)}
    file, sha256 = put_weights(output, mobile_sam_path, trained)
    assert put_weights(output, mobile_sam_path, trained) == (file, sha256)
    assert file == f"sam-{sha256[:12]}.pth"
    with pytest.raises(ValueError, match=r"the parent has no weights named mask_decoder\.other"):
        put_weights(output, mobile_sam_path, {"mask_decoder.other": torch.zeros(1)})
    (tmp_path / file).write_bytes(b"another file")
    with pytest.raises(UnfinishedError, match="exists with different content"):
        put_weights(output, mobile_sam_path, trained)
