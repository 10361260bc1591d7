"""Names and classes as the Hub has them."""

import pytest

from segmint.catalogs.licenses import hub_licenses, size_category


@pytest.mark.parametrize(
    ("images", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (11_185_362, "10M<n<100M"), (2 * 10**9, "n>1B")],
)
def test_sizes_are_the_hub_s(images: int, category: str) -> None:
    assert size_category(images) == category


def test_licenses_that_the_hub_does_not_know_are_named() -> None:
    assert hub_licenses([]) == {"license": ["unknown"]}
    assert hub_licenses(["CC0-1.0", "CC-BY-4.0", "CC0-1.0"]) == {"license": ["cc-by-4.0", "cc0-1.0"]}
    assert hub_licenses(["LicenseRef-acme", "CC0-1.0"]) == {
        "license": ["cc0-1.0", "other"],
        "license_name": "LicenseRef-acme",
    }
    assert hub_licenses(["CC-BY-4.0", None]) == {"license": ["cc-by-4.0", "unknown"]}
