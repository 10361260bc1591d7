"""Keys that a dataset's segmint did not have get the values that it built by."""

import pytest

from segmint.catalogs.dataset.added_keys import ADDED_KEYS, with_added_keys


def test_a_missing_key_is_added_and_a_recorded_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADDED_KEYS, "release.progressive", False)
    monkeypatch.setitem(ADDED_KEYS, "curate.near", [1])
    config = {"release": {"format": "images"}, "name": "x"}
    assert with_added_keys(config) == {
        "release": {"format": "images", "progressive": False},
        "name": "x",
        "curate": {"near": [1]},
        "deidentify": {"rule": 1},
        "ingest": {"formats": ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]},
        "license": {"respect_opt_out": False},
        "masks": {"drop_redaction_artifacts": "off"},
    }
    assert config == {"release": {"format": "images"}, "name": "x"}
    assert with_added_keys({"release": {"progressive": True}})["release"] == {"progressive": True}


def test_a_tree_of_another_shape_is_left_to_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADDED_KEYS, "release.progressive", False)
    assert with_added_keys({"release": "odd"})["release"] == "odd"


def test_what_segmint_did_before_each_key() -> None:
    """Never change one: datasets that lack the key were built so."""
    assert ADDED_KEYS == {
        "deidentify.rule": 1,
        "ingest.formats": ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"],
        "license.respect_opt_out": False,
        "masks.drop_redaction_artifacts": "off",
    }
