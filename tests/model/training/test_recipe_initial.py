"""SAM from an encoder's weights: names, positions, new parts, and files that can't be used."""

from pathlib import Path

import pytest
import torch

from segmint.model.sam import load
from segmint.model.sam.load import SamWeightsError, inspect_checkpoint
from segmint.model.training.recipe import inspect_encoder, resized, sam_with_encoder
from tests.support.tiny_vit import TINY, mae, saved


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "VIT_SHAPES", {"vit_b": TINY})


def test_mae_weights_become_the_encoder_and_the_rest_is_new(tmp_path: Path) -> None:
    given = mae()
    path = saved(tmp_path, {"model": given})
    assert inspect_encoder(path) == "vit_b"
    sam, again, other = (sam_with_encoder(path, 3, seed) for seed in (0, 0, 1))
    state = sam.state_dict()
    assert torch.equal(state["image_encoder.blocks.1.mlp.lin2.weight"], given["blocks.1.mlp.fc2.weight"])
    assert torch.equal(state["image_encoder.patch_embed.proj.bias"], given["patch_embed.proj.bias"])
    assert not state["image_encoder.blocks.1.attn.rel_pos_h"].any()
    assert all(torch.equal(one, two) for one, two in zip(state.values(), again.state_dict().values(), strict=True))
    name = "mask_decoder.transformer.layers.2.mlp.lin1.weight"
    assert not torch.equal(state[name], other.state_dict()[name])
    torch.save(state, tmp_path / "sam.pth")
    assert inspect_checkpoint(tmp_path / "sam.pth") == ("vit_b", 3)


def test_vitdet_weights_bring_their_relative_positions(tmp_path: Path) -> None:
    given = mae("backbone.net.")
    table = torch.linspace(0, 1, 27)[:, None].expand(27, 16).contiguous()
    given["backbone.net.blocks.0.attn.rel_pos_h"] = table
    given["backbone.net.blocks.1.attn.rel_pos_h"] = table
    given["backbone.simfp_2.0.weight"] = torch.zeros(1)
    state = sam_with_encoder(saved(tmp_path, {"model": given}), 2, 0).state_dict()
    assert torch.equal(state["image_encoder.blocks.0.attn.rel_pos_h"], table)  # a window of 14 has 27 offsets
    whole = state["image_encoder.blocks.1.attn.rel_pos_h"]
    assert whole.shape == (127, 16)
    assert whole[[0, 63, 126], 0].tolist() == pytest.approx([0, 0.5, 1], abs=0.02)


def test_absolute_positions_keep_their_place_on_another_grid() -> None:
    ramp = torch.linspace(0, 1, 14)
    grid = torch.stack([ramp[:, None].expand(14, 14), ramp[None].expand(14, 14)], dim=-1)
    given = torch.cat([torch.full((1, 1, 2), 9.0), grid.reshape(1, 196, 2)], dim=1)
    larger = resized("pos_embed", given, torch.zeros(1, 64, 64, 2))
    middle = torch.linspace(0, 1, 64)[8:-8]
    assert torch.allclose(larger[0, 8:-8, 30, 0], middle, atol=0.04)
    assert torch.allclose(larger[0, 30, 8:-8, 1], middle, atol=0.04)
    same = torch.randn(1, 64, 64, 2)
    assert resized("pos_embed", same, torch.zeros(1, 64, 64, 2)) is same


def test_other_files_are_refused(tmp_path: Path) -> None:
    given = mae()
    del given["blocks.0.attn.qkv.bias"]
    with pytest.raises(SamWeightsError, match=r"lacks the encoder's blocks\.0\.attn\.qkv\.bias"):
        sam_with_encoder(saved(tmp_path, given), 2, 0)
    with pytest.raises(SamWeightsError, match="no SAM image encoder"):
        inspect_encoder(saved(tmp_path, {"conv1.weight": torch.zeros(1)}))
    with pytest.raises(SamWeightsError, match="is 48 channels wide"):
        inspect_encoder(saved(tmp_path, {"pos_embed": torch.zeros(1, 197, 48)}))
    wrong = mae() | {"blocks.0.norm1.weight": torch.zeros(31)}
    with pytest.raises(SamWeightsError, match=r"norm1\.weight is \(31,\), but the encoder's is \(32,\)"):
        sam_with_encoder(saved(tmp_path, wrong), 2, 0)
    for name in ("blocks.0.ls1.gamma", "blocks.1.residual.conv1.weight", "blocks.2.norm1.weight"):
        with pytest.raises(SamWeightsError, match=rf"has {name}, which SAM's encoder lacks"):
            sam_with_encoder(saved(tmp_path, mae() | {name: torch.zeros(32)}), 2, 0)
    (tmp_path / "bad").write_bytes(b"x")
    with pytest.raises(SamWeightsError, match="not a PyTorch checkpoint"):
        inspect_encoder(tmp_path / "bad")
