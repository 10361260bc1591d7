"""CLIP's embeddings: equal to transformers', restricted to a mask exactly, and from safe local files only."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from segmint.infra.errors import UsageError
from segmint.operators.text import Clip, ClipFolder
from tests.support.clips import PATCH, SIDE, model_of, write_clip

MEAN, STD = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return ClipFolder.open(folder).load()


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def features(model: Any, crops: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.get_image_features(pixel_values=(crops.float() / 255 - MEAN) / STD).pooler_output
    return found


def test_the_restricted_last_layer_is_the_last_layer_of_the_kept_tokens(
    folder: Path, clip: Clip, crops: torch.Tensor
) -> None:
    model = model_of(folder).double()
    pixels = torch.zeros(5, SIDE, SIDE, dtype=torch.bool)
    kept = [[0], [5, 6, 9], [0, 15], [3], list(range(15))]
    for image, patches in enumerate(kept):
        for patch in patches:  # one pixel of the patch is enough
            pixels[image, patch // 4 * PATCH + image, patch % 4 * PATCH + 2 * image % PATCH] = True
    found = clip.embed_crops(crops, pixels)
    vision = model.vision_model
    with torch.no_grad():
        states = vision.pre_layrnorm(vision.embeddings(((crops.float() / 255 - MEAN) / STD).double()))
        for layer in vision.encoder.layers[:-1]:
            states = layer(states, None)
        for image, patches in enumerate(kept):
            own = states[image : image + 1, [0, *(1 + patch for patch in patches)]]
            pooled = vision.post_layernorm(vision.encoder.layers[-1](own, None)[:, 0])
            expected = model.visual_projection(pooled)[0]
            assert (found[image].double() - expected).abs().max() < 1e-5
    unrestricted = clip.embed_crops(crops, torch.ones(5, SIDE, SIDE, dtype=torch.bool))
    assert ((found - unrestricted).abs().amax(1) > 1e-2).all()
    assert torch.equal(unrestricted, features(model_of(folder), crops))  # nothing is left behind in the model


def test_texts_are_embedded_as_by_transformers_and_long_ones_are_cut(folder: Path, clip: Clip) -> None:
    texts = ["a photo of a red circle", "Blue", " ".join(20 * ["green"]), "unknown words"]
    found = clip.embed_texts(texts)
    model, tokenizer = model_of(folder), clip.tokenizer
    tokens = [tokenizer.encode(text).ids for text in texts]
    assert [len(ids) for ids in tokens] == [8, 3, 12, 4]
    end = tokenizer.token_to_id("<|endoftext|>")
    padded = torch.tensor([ids + (12 - len(ids)) * [end] for ids in tokens])
    attended = torch.tensor([[1] * len(ids) + (12 - len(ids)) * [0] for ids in tokens])
    with torch.no_grad():
        expected = model.get_text_features(input_ids=padded, attention_mask=attended).pooler_output
    assert (found - expected).abs().max() < 1e-5
    assert torch.equal(clip.embed_texts(texts[1:2]), found[1:2])
    assert clip.embed_texts([]).shape == (0, 16)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_loaded_without_the_network_and_without_its_code(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of the folder ran')\n")
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    clip = ClipFolder.open(folder).load()
    assert clip.embed_texts(["red"]).isfinite().all()


def test_the_hash_changes_with_each_file_that_matters_and_with_no_other(folder: Path, tmp_path: Path) -> None:
    copy = write_clip(tmp_path / "clip")
    assert ClipFolder.open(copy).sha256 == ClipFolder.open(folder).sha256
    (copy / "README.md").write_text("other")
    assert ClipFolder.open(copy).sha256 == ClipFolder.open(folder).sha256
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"):
        before, data = ClipFolder.open(copy).sha256, (copy / name).read_bytes()
        (copy / name).write_bytes(data + b" ")
        assert ClipFolder.open(copy).sha256 != before
        (copy / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("config.json", None, "contains no config.json"),
        ("tokenizer.json", None, "contains no tokenizer.json"),
        ("model.safetensors", None, "contains no safetensors file"),
        ("config.json", b'{"model_type": "siglip"}', "of the type 'siglip': expected clip"),
        ("config.json", b"{", "isn't JSON"),
        ("model.safetensors", b"PK", "can't be loaded as CLIP"),
        ("tokenizer.json", b"{}", "can't be loaded as CLIP"),
    ],
)
def test_a_folder_that_is_no_clip_is_refused(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    folder = write_clip(tmp_path / "clip")
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        ClipFolder.open(folder).load()


def test_missing_weights_and_a_tokenizer_without_an_end_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in weights.items() if name != "visual_projection.weight"}
    save_file(left, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 of CLIP's weights, such as visual_projection.weight"):
        ClipFolder.open(folder).load()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match="expected its end token"):
        ClipFolder.open(folder).load().embed_texts(["red"])


@pytest.mark.parametrize(
    "settings",
    [
        '{"image_mean": null}',
        '{"image_mean": [0.5, 0.5]}',
        '{"image_mean": [NaN, 0, 0]}',
        '{"image_std": [0, 1, 1]}',
        '{"image_processor": 5}',
    ],
)
def test_a_normalization_that_cannot_be_used_is_refused(tmp_path: Path, settings: str) -> None:
    folder = write_clip(tmp_path / "clip")
    (folder / "preprocessor_config.json").write_text(settings)
    with pytest.raises(UsageError, match=r"preprocessor_config.json needs an image_mean and an image_std of three"):
        ClipFolder.open(folder).load()


def test_damaged_weights_and_the_configuration_of_another_clip_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    for value in (torch.nan, torch.inf, 0.0):
        names = ("visual_projection.weight", "text_projection.weight")
        damaged = {**weights, **{name: torch.full_like(weights[name], value) for name in names}}
        save_file(damaged, folder / "model.safetensors", {"format": "pt"})
        clip = ClipFolder.open(folder).load()
        crop = torch.zeros(1, 3, clip.side, clip.side, dtype=torch.uint8)
        with pytest.raises(UsageError, match="zero or isn't finite, so its weights are damaged"):
            clip.embed_texts(["red"])
        with pytest.raises(UsageError, match="zero or isn't finite, so its weights are damaged"):
            clip.embed_crops(crop, crop[:, 0] == 0)
    save_file({**weights, "logit_scale": torch.tensor(200.0)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"contains the logit_scale 200.0"):
        ClipFolder.open(folder).load()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"weights that config.json doesn't describe, such as vision_model"):
        ClipFolder.open(folder).load()


def test_missing_packages_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "transformers" else object())
    with pytest.raises(UsageError, match=r"missing packages: transformers. Run `pip install 'segmint\[text\]'`"):
        ClipFolder.open(folder)
