"""C2PA manifests: which assertions are read, and in what forms."""

import subprocess
import sys
from typing import Any

import pytest

from segmint.operators import opt_out
from segmint.operators.opt_out import C2paMissingError, c2pa_values
from tests.support.signed_images import PLUS, TDM, VOCABULARY, image, signed, training


def values(assertions: dict[str, Any]) -> list[tuple[str, str]]:
    return c2pa_values(signed(image("JPEG"), "JPEG", assertions), "image/jpeg")


def test_all_entries_of_both_assertions_are_read_and_no_other_assertion() -> None:
    entries = {"cawg.ai_training": {"use": "allowed"}, "org.example.own": {"use": "notAllowed"}, "odd": 7}
    found = values(
        {
            "cawg.training-mining": {"entries": entries},
            **training("c2pa", "constrained", "ai_inference"),
            "org.example.training-mining": {"entries": {"c2pa.ai_training": {"use": "notAllowed"}}},
        }
    )
    assert sorted(found) == [
        ("c2pa.ai_inference", "constrained"),
        ("cawg.ai_training", "allowed"),
        ("org.example.own", "notAllowed"),
    ]


@pytest.mark.parametrize(
    "content", [{"entries": 3}, {"entries": {"c2pa.ai_training": {"use": 1}}}, {}, {"entries": []}]
)
def test_odd_assertions_have_no_entries(content: Any) -> None:
    assert values({"c2pa.training-mining": content}) == []


def test_entries_without_their_map_are_read() -> None:
    """As the first version of CAWG's schema had it."""
    assert values({"cawg.training-mining": {"cawg.data_mining": {"use": "notAllowed"}}}) == [
        ("cawg.data_mining", "notAllowed")
    ]


def test_xmp_as_json_is_read_in_each_assertion_that_contains_metadata() -> None:
    term = f"{VOCABULARY}DMI-PROHIBITED"
    found = values(
        {
            "stds.iptc": {"@context": {"plus": PLUS}, "plus:DataMining": term},
            "c2pa.metadata": {"@context": {"p": PLUS}, "@graph": [{"p:DataMining": {"@id": term}}]},
            "cawg.metadata": {"@context": {"tdm": TDM}, "tdm:reservation": 1},
            "stds.iptc.photo-metadata": {f"{PLUS}DataMining": ["DMI-ALLOWED"]},
            "org.example.own": {"plus:DataMining": term},
        }
    )
    assert sorted(found) == [
        ("plus:DataMining", "DMI-ALLOWED"),
        ("plus:DataMining", term),
        ("plus:DataMining", term),
        ("tdm:reservation", "1"),
    ]
    assert values({"com.litware.metadata": {"@context": {"p": PLUS}, "p:DataMining": term}}) == [
        ("plus:DataMining", term)
    ]
    other = {"@context": {"plus": "https://example.org/"}, "plus:DataMining": term, "dc:creator": [{"@value": "Zoë"}]}
    assert values({"stds.iptc": other}) == []


def test_in_a_manifest_that_cannot_be_read_the_words_are_enough() -> None:
    """The library refuses a manifest whose metadata has no context."""
    unreadable = {"cawg.metadata": {"no context": 1}}
    assert values(unreadable) == []
    assert values(unreadable | training("cawg", "notAllowed")) == [("cawg.ai_training", "notAllowed")]
    assert values(unreadable | {"stds.iptc": {"plus:DataMining": f"{VOCABULARY}DMI-PROHIBITED"}}) == [
        ("plus:DataMining", "DMI-PROHIBITED-UNREADABLE")
    ]


def test_the_manifest_of_an_ingredient_is_read_too() -> None:
    """An image that was edited and signed again keeps the manifest that it had."""
    first = signed(image("JPEG"), "JPEG", training("c2pa", "notAllowed"))
    again = signed(first, "JPEG", training("cawg", "allowed"), parent=True)
    assert c2pa_values(again, "image/jpeg") == [("cawg.ai_training", "allowed"), ("c2pa.ai_training", "notAllowed")]


def test_without_the_library_an_image_with_a_manifest_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    data = signed(image("JPEG"), "JPEG", training("cawg", "notAllowed"))
    monkeypatch.setitem(sys.modules, "c2pa", None)
    opt_out.load_library.cache_clear()
    with pytest.raises(C2paMissingError, match=r"pip install 'segmint\[build\]'"):
        c2pa_values(data, "image/jpeg")
    opt_out.load_library.cache_clear()


def test_the_library_is_loaded_with_the_first_manifest_alone() -> None:
    program = """
import sys
from segmint.operators.opt_out import opt_out
assert opt_out(sys.stdin.buffer.read()) is None
print("c2pa" in sys.modules)
"""
    for data, loaded in (
        (image("JPEG"), "False"),
        (signed(image("JPEG"), "JPEG", training("c2pa", "allowed")), "True"),
    ):
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
        assert done.stdout.decode().strip() == loaded
