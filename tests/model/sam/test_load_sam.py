import pytest
import torch
from segment_anything import sam_model_registry

from segmint.model.sam.load import Architecture, build_sam


@pytest.mark.parametrize("architecture", ["vit_b", "vit_l", "vit_h"])
def test_every_weight_has_the_name_and_shape_of_the_official_model(architecture: Architecture) -> None:
    """Shapes also tell which blocks attend globally: their position tables are longer."""
    with torch.device("meta"):
        ours, theirs = build_sam(architecture), sam_model_registry[architecture]()
    found = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


def test_a_model_knows_where_and_in_what_type_its_weights_are() -> None:
    sam = build_sam("mobile_sam")
    assert (sam.device, sam.dtype, sam.image_size) == (torch.device("cpu"), torch.float32, 1024)
    assert not sam.training
    assert sam.to(torch.bfloat16).dtype == torch.bfloat16
